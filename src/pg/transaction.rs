//! Transactions of background workers, and the role and the settings that hold in a transaction. Runs in background
//! workers and, for role and settings, in backends; on the main thread.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use super::encoding::{c_string, utf8};

unsafe extern "C-unwind" {
    // Not in pgrx's bindings.
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
    fn get_timeout_indicator(id: c_int, reset_indicator: bool) -> bool;
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
    /// The error for a right that is missing.
    pub fn denied(message: String) -> Caught {
        Caught::of(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message)
    }

    /// The error for a value that is larger than it may be.
    pub fn too_large(message: String) -> Caught {
        Caught::of(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message)
    }

    /// The error of a poison message: executors have died with it.
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

/// Runs `work` in a transaction of its own and commits it. An error of `work` or of the commit rolls the transaction
/// back and is returned.
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

/// Runs `work` with a snapshot, which SPI needs. From then on, the transaction's isolation level can no longer be set.
pub fn with_snapshot<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: pushes and pops one snapshot; after an error, the end of the transaction pops it.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = work();
        pg_sys::PopActiveSnapshot();
        result
    }
}

/// Runs `work` in a subtransaction. An error rolls the subtransaction back and is returned; the transaction goes on.
pub fn subtransaction<T>(work: impl FnOnce() -> T) -> Result<T, Caught> {
    // SAFETY: PL/pgSQL runs a block with an exception handler in this way. The memory context and the resource owner
    // that were current before are current again afterwards.
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
    // SAFETY: reads a variable; the entry that it points to lives until the frame which has pushed it returns.
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
    // SAFETY: sets the variable to its former value.
    unsafe { pg_sys::error_context_stack = before };
    outcome
}

thread_local! {
    /// SQLSTATE and context of the last error, kept here because pgrx knows only PostgreSQL's own SQLSTATEs, and no
    /// context.
    static LAST: RefCell<Option<(i32, String)>> = const { RefCell::new(None) };
}

/// Called by PostgreSQL for each message, after the callbacks above it on the stack have added their context.
unsafe extern "C-unwind" fn note(_: *mut c_void) {
    // SAFETY: a message is being reported, so there is error data to copy; the copy is made in a memory context that
    // outlives the message.
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

/// The five characters of an SQLSTATE, which PostgreSQL packs into six bits each.
pub fn sqlstate(code: i32) -> String {
    let character = |i: i32| char::from(u8::try_from((code >> (6 * i)) & 0x3f).unwrap_or(0) + b'0');
    (0..5).map(character).collect()
}

/// Sets `statement_timestamp()` to the present time.
pub fn begin_statement() {
    // SAFETY: sets a variable of this process.
    unsafe { pg_sys::SetCurrentStatementStartTimestamp() }
}

/// The role whose rights hold until this is dropped; then the former role's hold again.
pub struct UserContext {
    user: pg_sys::Oid,
    context: i32,
    /// The former session user, if the session user was changed too.
    session: Option<pg_sys::Oid>,
}

impl UserContext {
    /// Runs what follows as `role`, in a security-restricted operation: it can neither become another role nor leave
    /// anything behind in the session. PostgreSQL itself runs other users' functions in this way, in index expressions
    /// for example.
    ///
    /// The session user becomes `role` too, because SECURITY DEFINER functions and policies may depend on the session
    /// user. Only for background workers.
    pub fn restricted(role: u32) -> UserContext {
        // SAFETY: this process has connected as the bootstrap superuser, who may become any role; `drop` sets the
        // former session user again, also when an error unwinds.
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

    /// Like [`UserContext::restricted`], for a backend: the session user stays.
    pub fn confined(role: u32) -> UserContext {
        UserContext::of(role, pg_sys::SECURITY_RESTRICTED_OPERATION)
    }

    /// Runs what follows as `role`, which is trusted: the owner of the extension's tables, for example.
    pub fn borrowed(role: u32) -> UserContext {
        UserContext::of(role, pg_sys::SECURITY_LOCAL_USERID_CHANGE)
    }

    fn of(role: u32, flag: u32) -> UserContext {
        let mut before = UserContext {
            user: pg_sys::InvalidOid,
            context: 0,
            session: None,
        };
        // SAFETY: reads the user and the security context into the two fields and sets those of this process; `drop`
        // sets the former ones again.
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
        // SAFETY: sets what was read before. The former session user of a background worker is a superuser, as `true`
        // says.
        unsafe {
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
            if let Some(session) = self.session {
                pg_sys::SetSessionAuthorization(session, true);
            }
        }
    }
}

/// Settings that hold until this is dropped. Dropping also takes back what a function has set meanwhile.
pub struct Parameters {
    level: i32,
}

impl Parameters {
    /// Sets parameters, given by name and value. A value that is not valid is only a warning.
    pub fn of(settings: &[(String, String)]) -> Parameters {
        Parameters::new(settings, PgLogLevel::WARNING)
    }

    /// Like [`Parameters::of`], for settings whose warnings were given before.
    pub fn of_known(settings: &[(String, String)]) -> Parameters {
        Parameters::new(settings, PgLogLevel::DEBUG1)
    }

    /// Settings by which names mean and look the same in every session: only PostgreSQL's own names are found without a
    /// schema, and names have quotes only where they need them. `more` holds too.
    pub fn own_names(more: &[(&str, &str)]) -> Parameters {
        let own = [
            ("search_path", "pg_catalog, pg_temp"),
            ("quote_all_identifiers", "off"),
        ];
        let settings = own.iter().chain(more);
        let settings = settings.map(|(name, value)| (name.to_string(), value.to_string()));
        Parameters::of(&settings.collect::<Vec<_>>())
    }

    fn new(settings: &[(String, String)], warnings: PgLogLevel) -> Parameters {
        // SAFETY: opens a level that `drop` closes, or the end of the transaction.
        let level = unsafe { pg_sys::NewGUCNestLevel() };
        let parameters = Parameters { level };
        for (name, value) in settings {
            set(name, value, warnings);
        }
        parameters
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: closes the level that `of` has opened; `false` takes back all that was set in that level. After
            // an error, the abort of the transaction closes it.
            unsafe { pg_sys::AtEOXact_GUC(false, self.level) }
        }
    }
}

/// Sets a parameter in the innermost level of settings. A value that is not valid is only told of, at that level of
/// messages.
fn set(name: &str, value: &str, warnings: PgLogLevel) {
    use pg_sys::GucAction::{GUC_ACTION_LOCAL, GUC_ACTION_SAVE};
    use pg_sys::{GucContext::PGC_SUSET, GucSource::PGC_S_SESSION};
    // A parameter of the transaction itself, such as transaction_read_only, ends with the transaction and cannot be
    // saved.
    let action = if name.starts_with("transaction_") {
        GUC_ACTION_LOCAL
    } else {
        GUC_ACTION_SAVE
    };
    let (name, value) = (c_string(name), c_string(value));
    // SAFETY: the strings live until the call returns. A value that is no longer valid raises only a warning, as at
    // login.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            PGC_SUSET,
            PGC_S_SESSION,
            action,
            true,
            warnings as i32,
            false,
        );
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

/// Has `transaction_timeout` hold for each statement rather than for the transaction, until the result is dropped:
/// executors put the work of many messages into one transaction. `None` if it is off, or if PostgreSQL has none, as
/// before version 17.
pub fn transaction_timeout_for_statements() -> Option<Parameters> {
    // SAFETY: returns NULL for a parameter that does not exist, and otherwise NUL-terminated text.
    let milliseconds = unsafe {
        let value = pg_sys::GetConfigOption(c"transaction_timeout".as_ptr(), true, false);
        (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())?
    };
    let limit = milliseconds
        .parse()
        .ok()
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis)?;
    let shorter = statement_timeout().map_or(limit, |own| own.min(limit));
    Some(Parameters::of(&[
        ("transaction_timeout".into(), "0".into()),
        ("statement_timeout".into(), shorter.as_millis().to_string()),
    ]))
}

/// A time limit for what runs until this is dropped: after that time it ends with PostgreSQL's own error for a
/// statement timeout.
pub struct Timeout(());

impl Timeout {
    pub fn after(time: Duration) -> Timeout {
        let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1);
        // SAFETY: PostgreSQL has registered this timeout for every process with a database.
        unsafe { enable_timeout_after(STATEMENT_TIMEOUT, milliseconds) };
        Timeout(())
    }
}

#[cfg(debug_assertions)]
thread_local! {
    /// For tests: a cancel arrives just before the next timeout ends.
    static CANCEL_AT_END: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// For tests: has a cancel arrive, as `pg_cancel_backend` sends it, just before the next timeout ends.
#[cfg(debug_assertions)]
pub fn cancel_at_end() {
    CANCEL_AT_END.set(true);
}

impl Drop for Timeout {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        if CANCEL_AT_END.take() {
            // SAFETY: sends this process a signal, whose handler sets QueryCancelPending before the call returns.
            unsafe { libc::kill(libc::getpid(), libc::SIGINT) };
        }
        // The timeout requests a cancel as an administrator does, by a signal that sets QueryCancelPending. If the timeout
        // has fired and the cancel was not served, the cancel is for a function that has ended, and must not hit the next
        // message. The indicator tells whether the timeout has fired, so the cancel of an administrator is kept. It is
        // lost only if both cancels come between the function's last check for interrupts and this point.
        // SAFETY: disables what `after` has enabled, and writes a flag of this process.
        unsafe {
            disable_timeout(STATEMENT_TIMEOUT, true);
            if get_timeout_indicator(STATEMENT_TIMEOUT, true) {
                (&raw mut pg_sys::QueryCancelPending).write_volatile(0);
            }
        }
    }
}
