//! `nats_request_{text,json,jsonb,binary}(subject, payload, timeout_ms)`. Runs in backends and executors, on the main
//! thread.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;

use super::arguments::{binary_payload, jsonb_payload, null, subject_argument, text_payload};
use super::call;
use super::session::unexpected_reply;
use crate::channel::message::{Reply, Request};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;
use crate::pg::encoding;
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(nats_request_text, |call: &Call<'_>| request(
    call,
    text_payload(call)?
)
.and_then(text)
.map(Value::Text));
sql_function!(nats_request_json, |call: &Call<'_>| request(
    call,
    text_payload(call)?
)
.and_then(json)
.map(Value::Text));
sql_function!(nats_request_jsonb, |call: &Call<'_>| request(
    call,
    jsonb_payload(call)?
)
.and_then(json)
.map(Value::Jsonb));
sql_function!(nats_request_binary, |call: &Call<'_>| request(
    call,
    binary_payload(call)?
)
.map(Value::Bytes));

fn request(call: &Call<'_>, payload: Cow<'_, [u8]>) -> Result<Bytes> {
    let subject = subject_argument(call)?.into_owned();
    let timeout_ms = call.int4(2).ok_or_else(|| null("timeout"))?;
    let timeout_ms = u32::try_from(timeout_ms)
        .ok()
        .filter(|ms| *ms > 0)
        .ok_or_else(|| {
            Error::new(Kind::InvalidArgument, "timeout must be at least 1 millisecond")
                .detail(format!("It is {timeout_ms}."))
        })?;
    let ask = |slot, wait_ms| Request::Ask {
        slot,
        subject,
        headers: Headers::new(),
        timeout_ms,
        wait_ms,
    };
    let reply = call::ask(
        &Headers::new(),
        &payload,
        Duration::from_millis(timeout_ms.into()),
        ask,
    )?;
    match reply.message {
        Reply::Message { .. } => Ok(reply.body),
        _ => Err(unexpected_reply()),
    }
}

/// A reply as text that PostgreSQL can store. Fails if it is not UTF-8, or has a zero byte.
pub fn text(reply: Bytes) -> Result<String> {
    let invalid = |what: &str| Error::new(Kind::InvalidEncoding, format!("reply is not valid text: {what}"));
    let text = String::from_utf8(reply.into()).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        invalid("not UTF-8").detail(format!("The first invalid byte is at offset {at}."))
    })?;
    match text.find('\0') {
        Some(at) => Err(invalid("a zero byte").detail(format!("It is at offset {at}."))),
        None => Ok(text),
    }
}

/// A reply as JSON text. Fails if it is not valid JSON; raises PostgreSQL's own error if the database's encoding lacks
/// a character.
pub fn json(reply: Bytes) -> Result<String> {
    let text = text(reply)?;
    match serde_json::from_str::<&serde_json::value::RawValue>(&text) {
        Ok(_) => {
            encoding::check_text(&text);
            Ok(text)
        }
        Err(error) => {
            let invalid = Error::new(Kind::InvalidReply, "reply is not valid JSON");
            Err(invalid.cause(&error.to_string()))
        }
    }
}
