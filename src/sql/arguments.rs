//! Arguments that several functions take. Runs in backends and executors.

use std::borrow::Cow;

use crate::error::{Error, Kind, Result};
use crate::nats::{names, subject};
use crate::pg::fmgr::Call;

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

/// The argument `domain`: NULL for the server's default.
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

/// For a NULL where a value is needed.
pub fn null(what: &str) -> Error {
    let error = Error::new(Kind::NullArgument, format!("{what} must not be null"));
    // The kind's own hint is for payloads.
    if what == "payload" { error } else { error.hint("") }
}
