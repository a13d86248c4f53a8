//! Errors and log messages in PostgreSQL's own way, and the boundary between Rust's unwinding and PostgreSQL's long
//! jumps. Runs wherever PostgreSQL's code runs, on the main thread.

use std::ffi::{CString, c_char, c_int};

use pgrx::pg_sys::errcodes::PgSqlErrorCode;
use pgrx::{PgLogLevel, PgTryBuilder, pg_sys};

use super::encoding::{escaped, to_server};
use super::sqlstates::describe;
use crate::error::{Error, Kind, Result};

// pgrx keeps most of these functions to itself, and wraps those that it exports so that an error becomes a panic. Here
// an error must stay PostgreSQL's long jump.
unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(sqlstate: c_int) -> c_int;
    fn errmsg_internal(format: *const c_char, ...) -> c_int;
    fn errdetail_internal(format: *const c_char, ...) -> c_int;
    fn errhint(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
    fn ProcessInterrupts();
}

/// Levels of messages that do not end the statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Warning,
    Notice,
    Log,
    Debug,
}

/// Runs Rust code that PostgreSQL has called, and raises its error as one of PostgreSQL's.
///
/// # Safety
/// The caller is called by PostgreSQL on the main thread and has nothing to drop.
pub unsafe fn guarded<R: Copy>(work: impl FnOnce() -> Result<R>) -> R {
    // SAFETY: the closure leaves only plain pointers behind, so the jump out of `throw` skips no destructor.
    unsafe {
        let outcome = pg_sys::panic::pgrx_extern_c_guard(|| work().map_err(Raw::of));
        match outcome {
            Ok(value) => value,
            Err(raw) => throw(raw),
        }
    }
}

/// An error as C strings in PostgreSQL's memory, which outlive a long jump.
#[derive(Clone, Copy)]
struct Raw {
    interrupted: bool,
    sqlstate: PgSqlErrorCode,
    message: *const c_char,
    detail: *const c_char,
    hint: *const c_char,
}

impl Raw {
    fn of(error: Error) -> Raw {
        let (sqlstate, hint) = describe(error.kind);
        let hint = error.hint.as_deref().unwrap_or(hint);
        Raw {
            interrupted: error.kind == Kind::Interrupted,
            sqlstate,
            message: copy(&error.message),
            detail: error.detail.as_deref().map_or(std::ptr::null(), copy),
            hint: if hint.is_empty() {
                std::ptr::null()
            } else {
                copy(hint)
            },
        }
    }
}

fn copy(text: &str) -> *const c_char {
    let text = printable(text);
    // SAFETY: copies a NUL-terminated string into the current memory context.
    unsafe { pg_sys::pstrdup(text.as_ptr()) }
}

/// Text for a message, in the database's encoding; escaped if that encoding lacks one of its characters.
fn printable(text: &str) -> CString {
    let text = text.replace('\0', "\\0");
    let bytes = PgTryBuilder::new(|| to_server(&text).into_owned())
        .catch_others(|_| escaped(&text).into_bytes())
        .execute();
    // NULs were replaced above, and no server encoding has a NUL inside a character.
    CString::new(bytes).unwrap_or_default()
}

/// # Safety
/// No frame between this one and PostgreSQL has anything to drop.
unsafe fn throw(raw: Raw) -> ! {
    // SAFETY: as the caller promises; the strings are NUL-terminated or null.
    unsafe {
        if raw.interrupted {
            // Raises the error that the interrupt stands for: a cancel, a timeout, the end of the session.
            ProcessInterrupts();
        }
        emit(PgLogLevel::ERROR as c_int, raw);
    }
    // errfinish does not return from an ERROR.
    std::process::abort()
}

/// # Safety
/// The strings are NUL-terminated or null. For an error: as for [`throw`].
unsafe fn emit(level: c_int, raw: Raw) {
    // SAFETY: the calls follow the order of PostgreSQL's ereport.
    unsafe {
        if !errstart(level, std::ptr::null()) {
            return;
        }
        errcode(raw.sqlstate as c_int);
        errmsg_internal(c"%s".as_ptr(), raw.message);
        if !raw.detail.is_null() {
            errdetail_internal(c"%s".as_ptr(), raw.detail);
        }
        if !raw.hint.is_null() {
            errhint(c"%s".as_ptr(), raw.hint);
        }
        errfinish(c"litmus_pgnats".as_ptr(), 0, std::ptr::null());
    }
}

/// Writes a message that does not end the statement, to the client or the server log as its level and the settings say.
/// An empty `detail` or `hint` is left out.
pub fn message(level: Level, text: &str, detail: &str, hint: &str) {
    let (elevel, sqlstate) = match level {
        Level::Warning => (PgLogLevel::WARNING, PgSqlErrorCode::ERRCODE_WARNING),
        Level::Notice => (PgLogLevel::NOTICE, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION),
        Level::Log => (PgLogLevel::LOG, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION),
        Level::Debug => (PgLogLevel::DEBUG1, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION),
    };
    let (text, detail, hint) = (printable(text), printable(detail), printable(hint));
    let optional = |text: &CString| {
        if text.is_empty() {
            std::ptr::null()
        } else {
            text.as_ptr()
        }
    };
    let raw = Raw {
        interrupted: false,
        sqlstate,
        message: text.as_ptr(),
        detail: optional(&detail),
        hint: optional(&hint),
    };
    // SAFETY: a message below ERROR raises nothing itself, but PostgreSQL serves a pending cancel at its end, by a jump
    // over the callers' frames. Holding interrupts leaves the cancel to the next check for interrupts. The strings live
    // until the end of this function.
    unsafe {
        pg_sys::InterruptHoldoffCount += 1;
        emit(elevel as c_int, raw);
        pg_sys::InterruptHoldoffCount -= 1;
    }
}
