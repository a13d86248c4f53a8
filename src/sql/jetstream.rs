//! `nats_publish_{text,json,jsonb,binary}_stream(subject, payload, headers, domain)`.

use std::borrow::Cow;

use super::call::{self, unexpected_reply};
use super::publish::{binary_payload, jsonb_payload, subject_argument, text_payload};
use crate::channel::frame::Frame;
use crate::channel::message::{JetStreamCall, Reply};
use crate::error::Result;
use crate::nats::headers::{self, Headers};
use crate::nats::names;
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

/// The argument `domain`: NULL for the server's default.
pub fn domain_argument(call: &Call<'_>, index: usize) -> Result<Option<String>> {
    let domain = call.text(index)?.map(Cow::into_owned);
    if let Some(domain) = &domain {
        names::check_domain(domain)?;
    }
    Ok(domain)
}

/// A stream sequence or a revision as bigint.
pub fn number(reply: Frame<Reply>) -> Result<Value> {
    match reply.message {
        Reply::Number(number) => Ok(Value::Int8(i64::try_from(number).unwrap_or(i64::MAX))),
        _ => Err(unexpected_reply()),
    }
}

/// The reply to a call that returns nothing.
pub fn done(reply: Frame<Reply>) -> Result<Value> {
    match reply.message {
        Reply::Done => Ok(Value::Void),
        _ => Err(unexpected_reply()),
    }
}

/// Rows of a function that returns a set.
pub fn rows(reply: Frame<Reply>) -> Result<Value> {
    match reply.message {
        Reply::Rows(rows) => Ok(Value::Rows(rows)),
        _ => Err(unexpected_reply()),
    }
}
