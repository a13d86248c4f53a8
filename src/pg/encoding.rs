//! Text between UTF-8, which everything outside PostgreSQL speaks, and the database's encoding. Runs where SQL runs, on the
//! main thread.

use std::borrow::Cow;
use std::ffi::{CStr, c_char};

use pgrx::{PgTryBuilder, pg_sys};

use crate::error::{Error, Kind, Result};

/// Text in the database's encoding as UTF-8.
pub fn from_server(bytes: &[u8]) -> Result<Cow<'_, str>> {
    let utf8 = match std::str::from_utf8(bytes) {
        Ok(text) if server_is_utf8() => return Ok(Cow::Borrowed(text)),
        // An ASCII-only text is the same in every server encoding.
        Ok(text) if text.is_ascii() => return Ok(Cow::Borrowed(text)),
        _ => convert(bytes, Direction::ToUtf8),
    };
    match String::from_utf8(utf8.into_owned()) {
        Ok(text) => Ok(Cow::Owned(text)),
        Err(_) => Err(Error::new(Kind::InvalidEncoding, "text is not valid UTF-8")
            .detail("Text leaves the database as UTF-8. Publish bytea to send other bytes.")),
    }
}

/// UTF-8 text in the database's encoding; raises PostgreSQL's own error if that lacks a character.
pub fn to_server(text: &str) -> Cow<'_, [u8]> {
    if server_is_utf8() || text.is_ascii() {
        Cow::Borrowed(text.as_bytes())
    } else {
        convert(text.as_bytes(), Direction::ToServer)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToUtf8,
    ToServer,
}

fn server_is_utf8() -> bool {
    // SAFETY: reads the database's encoding, which does not change.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

fn convert(bytes: &[u8], direction: Direction) -> Cow<'_, [u8]> {
    let length = i32::try_from(bytes.len()).unwrap_or(i32::MAX);
    let utf8 = pg_sys::pg_enc::PG_UTF8 as i32;
    // SAFETY: both functions read `length` bytes and return either their argument or a palloc'd, NUL-terminated
    // string; they raise an error for bytes that cannot be converted.
    unsafe {
        let source = bytes.as_ptr().cast::<c_char>();
        let converted = match direction {
            Direction::ToUtf8 => pg_sys::pg_server_to_any(source, length, utf8),
            Direction::ToServer => pg_sys::pg_any_to_server(source, length, utf8),
        };
        if converted.cast_const() == source {
            Cow::Borrowed(bytes)
        } else {
            Cow::Owned(CStr::from_ptr(converted).to_bytes().to_vec())
        }
    }
}

/// Bytes in UTF-8, as they came, in the database's encoding; raises PostgreSQL's own error if they are not, or that lacks a
/// character.
pub fn utf8_to_server(bytes: &[u8]) -> Cow<'_, [u8]> {
    convert(bytes, Direction::ToServer)
}

/// Text in the database's encoding in UTF-8; raises PostgreSQL's own error if that is not possible.
pub fn server_to_utf8(bytes: &[u8]) -> Cow<'_, [u8]> {
    convert(bytes, Direction::ToUtf8)
}

/// Whether text can be stored in this database; raises PostgreSQL's own error if it cannot.
pub fn check_text(text: &str) {
    let _ = to_server(text);
}

/// A name or an option in the database's encoding as UTF-8.
pub fn utf8(text: &CStr) -> String {
    match from_server(text.to_bytes()) {
        Ok(text) => text.into_owned(),
        // The name of a database may be in another encoding.
        Err(_) => text.to_string_lossy().into_owned(),
    }
}

/// Text that can be a value in this database, whose encoding may lack a character: then all such are escaped.
pub fn displayable(text: String) -> String {
    let has_all = PgTryBuilder::new(|| {
        to_server(&text);
        true
    })
    .catch_others(|_| false)
    .execute();
    if has_all { text } else { escaped(&text) }
}

/// The text with every character beyond ASCII written as its escape.
pub fn escaped(text: &str) -> String {
    let escape = |c: char| {
        if c.is_ascii() {
            c.to_string()
        } else {
            c.escape_default().to_string()
        }
    };
    text.chars().map(escape).collect()
}

/// A copy of a text of the server, which is empty where there is none.
///
/// # Safety
/// `text` is null or NUL-terminated.
pub unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    utf8(unsafe { CStr::from_ptr(text) })
}
