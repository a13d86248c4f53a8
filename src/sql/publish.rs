//! `nats_publish_{text,json,jsonb,binary}(subject, payload, reply, headers)`.

use std::borrow::Cow;

use super::call::{self, Outgoing};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::{self, Headers};
use crate::nats::subject;
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(nats_publish_text, |call: &Call<'_>| publish(
    call,
    text_payload(call)?
));
sql_function!(nats_publish_jsonb, |call: &Call<'_>| publish(
    call,
    jsonb_payload(call)?
));
sql_function!(nats_publish_binary, |call: &Call<'_>| publish(
    call,
    binary_payload(call)?
));

/// Second argument of type text, or of type json, which is sent as it was typed.
pub fn text_payload<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.text(1)?.map(bytes_of).ok_or_else(|| null("payload"))
}

/// Second argument of type jsonb, in its canonical text form.
pub fn jsonb_payload<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.jsonb(1)?.map(bytes_of).ok_or_else(|| null("payload"))
}

/// Second argument of type bytea.
pub fn binary_payload<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.bytes(1).map(Cow::Borrowed).ok_or_else(|| null("payload"))
}

/// First argument: a subject that may be published to.
pub fn subject_argument<'a>(call: &Call<'a>) -> Result<Cow<'a, str>> {
    let subject = call.text(0)?.ok_or_else(|| null("subject"))?;
    subject::check_publish(&subject)?;
    Ok(subject)
}

fn publish(call: &Call<'_>, payload: Cow<'_, [u8]>) -> Result<Value> {
    let subject = subject_argument(call)?;
    let reply = call.text(2)?;
    if let Some(reply) = &reply {
        subject::check_reply(reply)?;
    }
    let headers = call
        .jsonb(3)?
        .map_or(Ok(Headers::new()), |json| headers::parse(&json))?;
    call::publish(Outgoing {
        subject: subject.into_owned(),
        reply: reply.map(Cow::into_owned),
        headers,
        payload,
    })?;
    Ok(Value::Void)
}

/// The bytes of a text.
pub fn bytes_of(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// For a NULL where a value is needed.
pub fn null(what: &str) -> Error {
    let error = Error::new(Kind::NullArgument, format!("{what} must not be null"));
    // The kind's own hint is for payloads.
    if what == "payload" { error } else { error.hint("") }
}
