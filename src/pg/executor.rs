//! Hooks into the ends of statements, transactions and subtransactions. Runs in every process that loads the library,
//! on the main thread.
//!
//! Every query of the session runs through the hook on PostgreSQL's executor, so the hook is thin: an error passes
//! through it as PostgreSQL's own long jump, with all its fields, and the state that it leaves behind is corrected when
//! the transaction or the subtransaction aborts.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;

use pgrx::pg_sys;

use super::report::guarded;
use crate::error::Result;

/// Functions of the library that the hooks call. Those that do not return a `Result` must neither wait nor fail.
#[derive(Clone, Copy)]
pub struct Reactions {
    /// Whether `run_ended` has something to do.
    pub busy: fn() -> bool,
    /// Called when a run of PostgreSQL's executor has ended.
    pub run_ended: fn() -> Result<()>,
    /// Called when a subtransaction was rolled back, and when the session ends.
    pub run_failed: fn(),
    /// Called when a subtransaction begins; the result is the mark for its rollback.
    pub mark: fn() -> usize,
    /// Called with the mark of a subtransaction that was rolled back.
    pub roll_back_to: fn(usize),
    /// Called before the commit; an error prevents the commit.
    pub before_commit: fn() -> Result<()>,
    /// Called before PREPARE TRANSACTION; an error prevents the preparation.
    pub before_prepare: fn() -> Result<()>,
    /// Called after the commit, when other processes see the transaction: its invalidations are sent and its locks
    /// released.
    pub committed: fn(),
    /// Called when the transaction was rolled back.
    pub aborted: fn(),
}

thread_local! {
    static REACTIONS: Cell<Option<Reactions>> = const { Cell::new(None) };
    static PREVIOUS: Cell<pg_sys::ExecutorRun_hook_type> = const { Cell::new(None) };
    /// Memory context of the innermost running query; null if no query runs.
    static RUNNING: Cell<pg_sys::MemoryContext> = const { Cell::new(std::ptr::null_mut()) };
    /// For each open subtransaction, what `RUNNING` was when it started, and its mark.
    static AT_SUBTRANSACTION: RefCell<Vec<(pg_sys::MemoryContext, usize)>> = const { RefCell::new(Vec::new()) };
    /// Set between the commit and the release of the transaction's locks.
    static COMMITTING: Cell<bool> = const { Cell::new(false) };
    static EXIT_HOOKED: Cell<bool> = const { Cell::new(false) };
}

#[cfg(not(feature = "pg18"))]
type RunArguments = (*mut pg_sys::QueryDesc, pg_sys::ScanDirection::Type, u64, bool);
#[cfg(feature = "pg18")]
type RunArguments = (*mut pg_sys::QueryDesc, pg_sys::ScanDirection::Type, u64);

// pgrx's binding would turn an error into a panic, and the panic into an error with fewer fields.
unsafe extern "C-unwind" {
    #[cfg(not(feature = "pg18"))]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        once: bool,
    );
    #[cfg(feature = "pg18")]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
    );
}

/// Installs the hooks; called once, when the library is loaded.
pub fn install(reactions: Reactions) {
    REACTIONS.set(Some(reactions));
    // SAFETY: the hooks are functions of this library, which is never unloaded; the earlier hook is kept and called.
    unsafe {
        PREVIOUS.set(pg_sys::ExecutorRun_hook);
        pg_sys::ExecutorRun_hook = Some(executor_run);
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterResourceReleaseCallback(Some(release), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
    }
}

/// Has `run_failed` called when this process ends.
pub fn hook_exit() {
    if !EXIT_HOOKED.replace(true) {
        // SAFETY: the callback is a function of this library.
        unsafe { pg_sys::before_shmem_exit(Some(process_exit), pg_sys::Datum::from(0)) };
    }
}

/// Whether the innermost running query itself calls the current function, so that `run_ended` is called before anything
/// else happens. Otherwise (in an expression of PL/pgSQL, in a fast-path call) no hook tells when the call is over.
pub fn called_by_running_query() -> bool {
    let running = RUNNING.get();
    if running.is_null() {
        return false;
    }
    // SAFETY: walks up from the current memory context; contexts are valid while they are current, and so are their
    // parents. `running` is compared and never dereferenced.
    unsafe {
        let mut context = pg_sys::CurrentMemoryContext;
        for _ in 0..4 {
            if context.is_null() {
                return false;
            }
            if context == running {
                return true;
            }
            context = (*context).parent;
        }
    }
    false
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: passes on the arguments that PostgreSQL gave.
    unsafe { run((query, direction, count, once)) }
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    // SAFETY: passes on the arguments that PostgreSQL gave.
    unsafe { run((query, direction, count)) }
}

/// # Safety
/// The arguments are those of PostgreSQL's call of the hook, and no frame up to it has anything to drop.
unsafe fn run(arguments: RunArguments) {
    // SAFETY: a started query has an execution state. Nothing in this frame needs dropping when an error jumps
    // over it.
    unsafe {
        let outer = RUNNING.replace((*(*arguments.0).estate).es_query_cxt);
        continue_run(arguments);
        RUNNING.set(outer);
        if let Some(reactions) = REACTIONS.get()
            && (reactions.busy)()
        {
            guarded(reactions.run_ended);
        }
    }
}

/// # Safety
/// As for [`run`].
#[cfg(not(feature = "pg18"))]
unsafe fn continue_run((query, direction, count, once): RunArguments) {
    // SAFETY: as the caller promises.
    unsafe {
        match PREVIOUS.get() {
            Some(previous) => previous(query, direction, count, once),
            None => standard_ExecutorRun(query, direction, count, once),
        }
    }
}

/// # Safety
/// As for [`run`].
#[cfg(feature = "pg18")]
unsafe fn continue_run((query, direction, count): RunArguments) {
    // SAFETY: as the caller promises.
    unsafe {
        match PREVIOUS.get() {
            Some(previous) => previous(query, direction, count),
            None => standard_ExecutorRun(query, direction, count),
        }
    }
}

unsafe extern "C-unwind" fn transaction_event(event: pg_sys::XactEvent::Type, _: *mut c_void) {
    use pg_sys::XactEvent::{
        XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PRE_COMMIT, XACT_EVENT_PRE_PREPARE,
        XACT_EVENT_PREPARE,
    };
    let Some(reactions) = REACTIONS.get() else { return };
    if matches!(event, XACT_EVENT_ABORT | XACT_EVENT_COMMIT | XACT_EVENT_PREPARE) {
        AT_SUBTRANSACTION.take();
    }
    // SAFETY: called by PostgreSQL; this frame has nothing to drop.
    unsafe {
        guarded(|| match event {
            XACT_EVENT_PRE_COMMIT => (reactions.before_commit)(),
            XACT_EVENT_PRE_PREPARE => (reactions.before_prepare)(),
            XACT_EVENT_COMMIT => {
                COMMITTING.set(true);
                Ok(())
            }
            XACT_EVENT_ABORT => {
                RUNNING.set(std::ptr::null_mut());
                (reactions.aborted)();
                Ok(())
            }
            _ => Ok(()),
        });
    }
}

/// PostgreSQL sends a transaction's invalidations and releases its locks only after the event of the commit. A process
/// that is told to read the changes must not be told before that.
unsafe extern "C-unwind" fn release(
    phase: pg_sys::ResourceReleasePhase::Type,
    _is_commit: bool,
    _is_top_level: bool,
    _: *mut c_void,
) {
    if phase == pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS
        && COMMITTING.replace(false)
        && let Some(reactions) = REACTIONS.get()
    {
        // SAFETY: called by PostgreSQL; this frame has nothing to drop.
        unsafe {
            guarded(|| {
                (reactions.committed)();
                Ok(())
            });
        }
    }
}

unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    _: pg_sys::SubTransactionId,
    _: pg_sys::SubTransactionId,
    _: *mut c_void,
) {
    use pg_sys::SubXactEvent::{SUBXACT_EVENT_ABORT_SUB, SUBXACT_EVENT_COMMIT_SUB, SUBXACT_EVENT_START_SUB};
    match event {
        SUBXACT_EVENT_START_SUB => {
            let mark = REACTIONS.get().map_or(0, |reactions| (reactions.mark)());
            AT_SUBTRANSACTION.with_borrow_mut(|open| open.push((RUNNING.get(), mark)));
        }
        SUBXACT_EVENT_COMMIT_SUB => AT_SUBTRANSACTION.with_borrow_mut(|open| {
            open.pop();
        }),
        SUBXACT_EVENT_ABORT_SUB => {
            let started = AT_SUBTRANSACTION.with_borrow_mut(Vec::pop);
            if let Some((running, _)) = started {
                RUNNING.set(running);
            }
            if let Some(reactions) = REACTIONS.get() {
                if let Some((_, mark)) = started {
                    (reactions.roll_back_to)(mark);
                }
                (reactions.run_failed)();
            }
        }
        _ => {}
    }
}

unsafe extern "C-unwind" fn process_exit(_: i32, _: pg_sys::Datum) {
    if let Some(reactions) = REACTIONS.get() {
        (reactions.run_failed)();
    }
}
