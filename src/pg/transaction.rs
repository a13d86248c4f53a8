//! Transactions of a background worker, and whose rights and settings hold in them. Runs on the main thread.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, pg_sys};

use super::encoding::utf8;

unsafe extern "C-unwind" {
    // Not in pgrx's bindings.
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
}

/// STATEMENT_TIMEOUT in PostgreSQL's enum TimeoutId, of every major from 15 to 18.
const STATEMENT_TIMEOUT: c_int = 3;

/// An error of PostgreSQL that ended a transaction or a subtransaction.
#[derive(Clone, Debug)]
pub struct Caught {
    pub sqlstate: String,
    pub message: String,
    pub context: String,
}

impl Caught {
    /// A right that is missing.
    pub fn denied(message: String) -> Caught {
        Caught::of(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
    }

    /// A value that is larger than it may be.
    pub fn too_large(message: String) -> Caught {
        Caught::of(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message)
    }

    /// What executors have died with.
    pub fn poison() -> Caught {
        let message = "executors have died with this message";
        Caught::of(PgSqlErrorCode::ERRCODE_CRASH_SHUTDOWN, message.into())
    }

    fn of(code: PgSqlErrorCode, message: String) -> Caught {
        Caught {
            sqlstate: sqlstate(code as i32),
            message,
            context: String::new(),
        }
    }
}

/// Runs `work` in a transaction of its own and commits it. An error, of `work` or of the commit, rolls it back.
pub fn transaction<T>(work: impl FnOnce() -> T) -> Result<T, Caught> {
    let outcome = catch(|| {
        // SAFETY: the worker is between two transactions.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
        }
        let result = work();
        // SAFETY: commits what was started above; subtransactions of `work` have ended with it.
        unsafe { pg_sys::CommitTransactionCommand() };
        result
    });
    if outcome.is_err() {
        // SAFETY: the error has been taken from PostgreSQL's error stack.
        unsafe { pg_sys::AbortCurrentTransaction() };
    }
    outcome
}

/// Runs `work` with a snapshot, which SPI needs; the transaction's isolation level can no longer be set then.
pub fn with_snapshot<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: pushes and pops one snapshot; an error leaves that to the end of the transaction.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = work();
        pg_sys::PopActiveSnapshot();
        result
    }
}

/// Runs `work` in a subtransaction; an error rolls that back and leaves the transaction as it was.
pub fn subtransaction<T>(work: impl FnOnce() -> T) -> Result<T, Caught> {
    // SAFETY: as PL/pgSQL runs a block with an exception handler: what was current before is so again afterwards.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::CurrentMemoryContext = context;
        let outcome = catch(|| {
            let result = work();
            pg_sys::ReleaseCurrentSubTransaction();
            result
        });
        pg_sys::CurrentMemoryContext = context;
        if outcome.is_err() {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
        outcome
    }
}

fn catch<T>(work: impl FnOnce() -> T) -> Result<T, Caught> {
    LAST.take();
    // SAFETY: reads a variable; what it points to is there until its own frame returns.
    let before = unsafe { pg_sys::error_context_stack };
    let mut noted = pg_sys::ErrorContextCallback {
        callback: Some(note),
        previous: before,
        ..Default::default()
    };
    // SAFETY: the entry is taken off the stack before this frame returns.
    unsafe { pg_sys::error_context_stack = &raw mut noted };
    let outcome = pgrx::PgTryBuilder::new(AssertUnwindSafe(|| Ok(work())))
        .catch_others(|error| Err(caught(&error)))
        .catch_rust_panic(|error| Err(caught(&error)))
        .execute();
    // SAFETY: as it was before.
    unsafe { pg_sys::error_context_stack = before };
    outcome
}

thread_local! {
    /// SQLSTATE and context of the last error: pgrx knows only PostgreSQL's own SQLSTATEs, and keeps no context.
    static LAST: RefCell<Option<(i32, String)>> = const { RefCell::new(None) };
}

/// Called by PostgreSQL for each message, after what stands above it on the stack has said its part.
unsafe extern "C-unwind" fn note(_: *mut c_void) {
    // SAFETY: an error is being reported, so there is one to be copied, into a context that outlives it.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
        let error = pg_sys::CopyErrorData();
        if (*error).elevel >= pgrx::PgLogLevel::ERROR as i32 {
            let context = (*error).context;
            let context = if context.is_null() {
                c""
            } else {
                CStr::from_ptr(context)
            };
            LAST.set(Some(((*error).sqlerrcode, utf8(context))));
        }
        pg_sys::FreeErrorData(error);
        pg_sys::CurrentMemoryContext = context;
    }
}

fn caught(error: &CaughtError) -> Caught {
    let report = match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    };
    // The messages are in the database's encoding.
    let text = |text: &str| CString::new(text).map_or_else(|_| String::new(), |text| utf8(&text));
    let (code, context) = LAST
        .take()
        .unwrap_or_else(|| (report.sql_error_code() as i32, String::new()));
    Caught {
        sqlstate: sqlstate(code),
        message: text(report.message()),
        context,
    }
}

/// Five characters of six bits each.
pub fn sqlstate(code: i32) -> String {
    let character = |i: i32| char::from(u8::try_from((code >> (6 * i)) & 0x3f).unwrap_or(0) + b'0');
    (0..5).map(character).collect()
}

/// The time of `statement_timestamp()` is now.
pub fn begin_statement() {
    // SAFETY: sets a variable of this process.
    unsafe { pg_sys::SetCurrentStatementStartTimestamp() }
}

/// Whose rights hold; the former ones again when it is dropped.
pub struct UserContext {
    user: pg_sys::Oid,
    context: i32,
    /// The former session user, where that was changed as well.
    session: Option<pg_sys::Oid>,
}

impl UserContext {
    /// Runs what follows as `role`, and not able to become anybody else or to leave anything behind in the session:
    /// as PostgreSQL itself runs functions of other users, in index expressions say.
    ///
    /// The session user is `role` too, which SECURITY DEFINER functions and policies go by.
    pub fn restricted(role: u32) -> UserContext {
        // SAFETY: this process has begun as the bootstrap superuser, who may be anybody; the former session user is set
        // again by `drop`, also when an error unwinds.
        let session = unsafe {
            let session = pg_sys::GetSessionUserId();
            pg_sys::SetSessionAuthorization(role.into(), pg_sys::superuser_arg(role.into()));
            session
        };
        let mut identity = UserContext::of(role, pg_sys::SECURITY_RESTRICTED_OPERATION);
        identity.user = session;
        identity.session = Some(session);
        identity
    }

    /// The same in a backend, whose session user stays.
    pub fn confined(role: u32) -> UserContext {
        UserContext::of(role, pg_sys::SECURITY_RESTRICTED_OPERATION)
    }

    /// Runs what follows as `role`, say the owner of the extension's tables.
    pub fn borrowed(role: u32) -> UserContext {
        UserContext::of(role, pg_sys::SECURITY_LOCAL_USERID_CHANGE)
    }

    fn of(role: u32, flag: u32) -> UserContext {
        let mut before = UserContext {
            user: pg_sys::InvalidOid,
            context: 0,
            session: None,
        };
        // SAFETY: writes the two variables, and sets this process's user; `drop` sets the former one.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&raw mut before.user, &raw mut before.context);
            let flag = i32::try_from(flag).unwrap_or(0);
            pg_sys::SetUserIdAndSecContext(role.into(), before.context | flag);
        }
        before
    }
}

impl Drop for UserContext {
    fn drop(&mut self) {
        // SAFETY: sets what was read before. The session user of a worker is a superuser.
        unsafe {
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
            if let Some(session) = self.session {
                pg_sys::SetSessionAuthorization(session, true);
            }
        }
    }
}

/// Settings that hold until this is dropped, and what a function sets meanwhile; the former ones again afterwards.
pub struct Parameters {
    level: i32,
}

impl Parameters {
    pub fn of(settings: &[(String, String)]) -> Parameters {
        // SAFETY: opens a level that `drop` closes, or the end of the transaction.
        let level = unsafe { pg_sys::NewGUCNestLevel() };
        let parameters = Parameters { level };
        for (name, value) in settings {
            parameters.set(name, value);
        }
        parameters
    }

    fn set(&self, name: &str, value: &str) {
        use pg_sys::GucAction::{GUC_ACTION_LOCAL, GUC_ACTION_SAVE};
        use pg_sys::{GucContext::PGC_SUSET, GucSource::PGC_S_SESSION};
        // What is the transaction's own ends with it, and cannot be saved.
        let action = if name.starts_with("transaction_") {
            GUC_ACTION_LOCAL
        } else {
            GUC_ACTION_SAVE
        };
        let (Ok(name), Ok(value)) = (CString::new(name), CString::new(value)) else {
            return;
        };
        // SAFETY: the strings live until the call returns. A value that is no longer valid is a warning, as at login.
        unsafe {
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                PGC_SUSET,
                PGC_S_SESSION,
                action,
                true,
                pgrx::PgLogLevel::WARNING as i32,
                false,
            );
        }
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: closes the level that `of` has opened; false takes back all that was set in it. After an error
            // the abort of the transaction does that.
            unsafe { pg_sys::AtEOXact_GUC(false, self.level) }
        }
    }
}

/// `statement_timeout` as it is set now; `None` if it is off.
pub fn statement_timeout() -> Option<Duration> {
    // SAFETY: reads a setting.
    let milliseconds = unsafe { pg_sys::StatementTimeout };
    u64::try_from(milliseconds)
        .ok()
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis)
}

/// Ends what runs after a time, with PostgreSQL's own error for a statement timeout, until this is dropped.
pub struct Timeout(());

impl Timeout {
    pub fn after(time: Duration) -> Timeout {
        let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: PostgreSQL has registered this timeout for every process with a database.
        unsafe { enable_timeout_after(STATEMENT_TIMEOUT, milliseconds) };
        Timeout(())
    }
}

impl Drop for Timeout {
    fn drop(&mut self) {
        // SAFETY: disables what `after` has enabled. A cancel that comes too late must not hit the next message.
        unsafe {
            disable_timeout(STATEMENT_TIMEOUT, false);
            (&raw mut pg_sys::QueryCancelPending).write_volatile(0);
        }
    }
}
