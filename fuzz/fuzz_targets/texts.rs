//! What sessions give as headers, subjects and names, and what NATS and Patroni answer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use litmus_pgnats::channel::marks::Marks;
use litmus_pgnats::nats::{ack, headers, names, raw_headers, subject};
use litmus_pgnats::patroni;

fuzz_target!(|input: &[u8]| {
    if let Some(mut member) = patroni::member(input) {
        patroni::complete(&mut member, "http://patroni:8008", input);
    }
    patroni::ttl(input);
    raw_headers::read(input);
    raw_headers::status(input);
    raw_headers::description(input);
    let text = &*String::from_utf8_lossy(input);
    ack::parse(text);
    let marks = Marks::parse(text);
    assert_eq!(Marks::parse(&marks.array()), marks);
    if let Ok(headers) = headers::parse(text) {
        assert_eq!(headers::parse(&headers::to_json(&headers)), Ok(headers.clone()));
        let parts = || headers.iter().flat_map(|(name, value)| [name, value]);
        assert!(
            !parts().any(|part| part.contains(['\r', '\n'])),
            "a header stays on its line"
        );
    }
    if subject::check_publish(text).is_ok() {
        assert_eq!(subject::check_subscribe(text), Ok(()));
        assert!(
            !text.contains(char::is_whitespace),
            "a subject stays in its place of the line"
        );
    }
    if names::check_key(text).is_ok() {
        assert_eq!(subject::check_publish(&format!("$KV.bucket.{text}")), Ok(()));
    }
});
