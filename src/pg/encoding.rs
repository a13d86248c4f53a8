//! Converts text between UTF-8, which everything outside PostgreSQL uses, and the database's encoding. Runs wherever
//! PostgreSQL's code runs, on the main thread.

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char};

use pgrx::{PgTryBuilder, pg_sys};

use crate::error::{Error, Kind, Result};

/// Converts text in the database's encoding to UTF-8; fails if the result is not valid UTF-8.
pub fn from_server(bytes: &[u8]) -> Result<Cow<'_, str>> {
    let utf8 = match std::str::from_utf8(bytes) {
        Ok(text) if server_is_utf8() => return Ok(Cow::Borrowed(text)),
        // ASCII text is the same in every server encoding.
        Ok(text) if text.is_ascii() => return Ok(Cow::Borrowed(text)),
        _ => convert(bytes, Direction::ToUtf8),
    };
    match String::from_utf8(utf8.into_owned()) {
        Ok(text) => Ok(Cow::Owned(text)),
        Err(_) => Err(Error::new(Kind::InvalidEncoding, "text is not valid UTF-8")
            .detail("Text leaves the database as UTF-8. Publish bytea to send other bytes.")),
    }
}

/// Converts UTF-8 text to the database's encoding; raises PostgreSQL's own error if that encoding lacks a character.
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

/// Converts bytes that should be UTF-8 to the database's encoding; raises PostgreSQL's own error if they are not UTF-8,
/// or if the encoding lacks a character.
pub fn utf8_to_server(bytes: &[u8]) -> Cow<'_, [u8]> {
    convert(bytes, Direction::ToServer)
}

/// Converts text in the database's encoding to UTF-8; raises PostgreSQL's own error if that is not possible.
pub fn server_to_utf8(bytes: &[u8]) -> Cow<'_, [u8]> {
    convert(bytes, Direction::ToUtf8)
}

/// Raises PostgreSQL's own error unless text can be stored in this database.
pub fn check_text(text: &str) {
    drop(to_server(text));
}

/// Converts a name or an option from the database's encoding to UTF-8; bytes that are not valid are replaced.
pub fn utf8(text: &CStr) -> String {
    match from_server(text.to_bytes()) {
        Ok(text) => text.into_owned(),
        // The name of a database may be in another database's encoding.
        Err(_) => text.to_string_lossy().into_owned(),
    }
}

/// The text as it is if this database's encoding has all its characters, and otherwise with every character beyond
/// ASCII escaped.
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

/// A copy of a server's string, as UTF-8; empty for a null pointer.
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

/// Converts text to a NUL-terminated string in the database's encoding. NUL characters are left out, because
/// PostgreSQL's text cannot have them.
pub fn c_string(text: &str) -> CString {
    let mut bytes = to_server(text).into_owned();
    bytes.retain(|byte| *byte != 0);
    // No NUL is left in the bytes.
    CString::new(bytes).unwrap_or_default()
}
