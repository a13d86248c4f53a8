//! Arguments that several SQL functions take. Runs in backends and executors, on the main thread.

use std::borrow::Cow;

use crate::error::{Error, Kind, Result};
use crate::nats::{names, subject};
use crate::pg::fmgr::Call;

/// The second argument, of type text or of type json, which is sent as it was typed. Fails if it is NULL.
pub fn text_payload<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.text(1)?.map(bytes_of).ok_or_else(|| null("payload"))
}

/// The second argument, of type jsonb, in its canonical text form. Fails if it is NULL.
pub fn jsonb_payload<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.jsonb(1)?.map(bytes_of).ok_or_else(|| null("payload"))
}

/// The second argument, of type bytea. Fails if it is NULL.
pub fn binary_payload<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.bytes(1).map(Cow::Borrowed).ok_or_else(|| null("payload"))
}

/// The first argument, a subject to publish to. Fails if it is NULL or not valid.
pub fn subject_argument<'a>(call: &Call<'a>) -> Result<Cow<'a, str>> {
    let subject = call.text(0)?.ok_or_else(|| null("subject"))?;
    subject::check_publish(&subject)?;
    Ok(subject)
}

/// The argument `domain`; `None`, for NULL, stands for the foreign server's domain.
pub fn domain_argument(call: &Call<'_>, index: usize) -> Result<Option<String>> {
    let domain = call.text(index)?.map(Cow::into_owned);
    if let Some(domain) = &domain {
        names::check_domain(domain)?;
    }
    Ok(domain)
}

/// The bytes of a text.
pub fn bytes_of(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// The error for a NULL where a value is needed.
pub fn null(what: &str) -> Error {
    let error = Error::new(Kind::NullArgument, format!("{what} must not be null"));
    // The kind's own hint is for payloads.
    if what == "payload" { error } else { error.hint("") }
}
