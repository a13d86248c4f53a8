//! `nats_publish_{text,json,jsonb,binary}_stream(subject, payload, headers, domain)`: publishes that JetStream
//! acknowledges. Runs in backends and executors, on the main thread.

use std::borrow::Cow;

use super::answers::number;
use super::arguments::{binary_payload, domain_argument, jsonb_payload, subject_argument, text_payload};
use super::call;
use crate::channel::message::JetStreamCall;
use crate::error::Result;
use crate::nats::headers;
use crate::nats::headers::Headers;
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(nats_publish_text_stream, |call: &Call<'_>| publish(
    call,
    text_payload(call)?
));
sql_function!(nats_publish_jsonb_stream, |call: &Call<'_>| publish(
    call,
    jsonb_payload(call)?
));
sql_function!(nats_publish_binary_stream, |call: &Call<'_>| publish(
    call,
    binary_payload(call)?
));

fn publish(call: &Call<'_>, payload: Cow<'_, [u8]>) -> Result<Value> {
    let subject = subject_argument(call)?.into_owned();
    let headers = call
        .jsonb(2)?
        .map_or(Ok(Headers::new()), |json| headers::parse(&json))?;
    let publish = JetStreamCall::Publish { subject, headers };
    call::jetstream(domain_argument(call, 3)?, publish, &payload).and_then(number)
}
