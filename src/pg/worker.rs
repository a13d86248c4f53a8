//! Background workers: registration, and what one does on its main thread.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::time::Duration;

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime,
    DynamicBackgroundWorker, SignalWakeFlags,
};
use pgrx::pg_sys;

use super::state;
use super::wait::LatchWait;
use crate::channel::client::Interest;
use crate::server_role::{ServerIdentity, ServerRole};

unsafe extern "C-unwind" {
    // As plain functions, which pgrx's bindings of them are not.
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
}

/// The postmaster starts a worker that ended with an error again after this time.
const RESTART_TIME: Duration = Duration::from_secs(1);

fn builder(name: &str, function: &str) -> BackgroundWorkerBuilder {
    BackgroundWorkerBuilder::new(name)
        .set_library("litmus_pgnats")
        .set_function(function)
        .enable_spi_access()
}

/// Of the runtime worker, which runs on a standby too.
fn persistent(name: &str, function: &str) -> BackgroundWorkerBuilder {
    builder(name, function)
        // After `enable_spi_access`, which sets a start time of its own.
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(RESTART_TIME))
}

/// Whether the library is being loaded by `shared_preload_libraries`.
pub fn is_preloading() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the server runs for pg_upgrade.
pub fn is_binary_upgrade() -> bool {
    // SAFETY: reads a variable.
    unsafe { pg_sys::IsBinaryUpgrade }
}

/// Has the runtime worker started with the server.
pub fn register_static(name: &str, function: &str) {
    persistent(name, function).load();
}

/// Has the runtime worker started now; `false` when there is no free slot for one.
pub fn register_dynamic(name: &str, function: &str) -> bool {
    persistent(name, function).load_dynamic().is_ok()
}

/// When a worker starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerStart {
    Now,
    /// Once the server takes writes, which on a standby is after its promotion.
    AfterRecovery,
}

/// A worker that this process has started, and is signalled about.
pub struct Process(DynamicBackgroundWorker);

impl Process {
    /// Starts a worker; `None` when there is no free slot. It is not started again when it ends.
    pub fn start(name: &str, function: &str, argument: u64, when: WorkerStart) -> Option<Process> {
        builder(name, function)
            .set_start_time(match when {
                WorkerStart::Now => BgWorkerStartTime::ConsistentState,
                WorkerStart::AfterRecovery => BgWorkerStartTime::RecoveryFinished,
            })
            .set_restart_time(None)
            .set_argument(Some(pg_sys::Datum::from(argument)))
            // SAFETY: reads this process's id.
            .set_notify_pid(unsafe { pg_sys::MyProcPid })
            .load_dynamic()
            .ok()
            .map(Process)
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.0.pid(), Err(BackgroundWorkerStatus::Stopped))
    }

    /// Ends the process, or keeps it from being started.
    pub fn terminate(self) {
        self.0.terminate();
    }
}

/// First thing in the runtime worker: signals, and a seat in pg_stat_activity without a database.
pub fn attach() {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    BackgroundWorker::connect_worker_to_spi(None, None);
    introduce(c"litmus_pgnats runtime");
}

/// First thing in a worker that runs SQL, in a database or, without one, on the shared catalogues. A SIGTERM ends it in
/// the middle of whatever it runs, as it ends a session.
pub fn attach_as_session(database: Option<u32>, name: &CStr) {
    use pg_sys::{SIGHUP, SIGTERM};
    // SAFETY: PostgreSQL's own handlers, set before signals are let in.
    unsafe {
        for (signal, handler) in [
            (SIGTERM, die as unsafe extern "C-unwind" fn(i32)),
            (SIGHUP, SignalHandlerForConfigReload),
        ] {
            #[cfg(not(feature = "pg18"))]
            pg_sys::pqsignal(signal as i32, Some(handler));
            #[cfg(feature = "pg18")]
            pg_sys::pqsignal_be(signal as i32, Some(handler));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
    match database {
        Some(database) => BackgroundWorker::connect_worker_to_spi_by_oid(Some(database.into()), None),
        None => BackgroundWorker::connect_worker_to_spi(None, None),
    }
    introduce(name);
}

fn introduce(name: &CStr) {
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_appname(name.as_ptr()) };
    report_idle();
}

/// Sets a parameter for as long as the process lives, whatever its database and the configuration say.
pub fn set(name: &CStr, value: &CStr) {
    use pg_sys::{GucContext::PGC_SUSET, GucSource::PGC_S_OVERRIDE};
    // SAFETY: the strings live until the call returns; the process has begun as a superuser.
    unsafe { pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), PGC_SUSET, PGC_S_OVERRIDE) }
}

/// In pg_stat_activity, for as long as the worker waits.
pub fn report_idle() {
    // SAFETY: reports an idle worker.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()) };
}

/// What the worker runs, for pg_stat_activity.
pub fn report_running(what: &str) {
    let what = std::ffi::CString::new(super::encoding::to_server(what).into_owned()).unwrap_or_default();
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, what.as_ptr()) };
}

/// Between two transactions: reports statistics, and gives back session-level advisory locks that a function has left.
pub fn tidy_up() {
    // SAFETY: the worker is between two transactions.
    unsafe {
        pg_sys::pgstat_report_stat(true);
        pg_sys::LockReleaseSession(pg_sys::USER_LOCKMETHOD as pg_sys::LOCKMETHODID);
    }
}

/// Serves an interrupt that came while the worker waited: the end of the process is the end; a cancel finds nothing to
/// cancel. Re-reads the configuration when asked to.
pub fn serve_interrupts() {
    // SAFETY: flags that signal handlers set; the worker is between two transactions.
    unsafe {
        (&raw mut pg_sys::QueryCancelPending).write_volatile(0);
        pgrx::check_for_interrupts!();
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    pub terminate: bool,
}

/// Waits for a signal, the socket or the time; re-reads the configuration when asked to.
pub fn wait(set: &mut LatchWait, socket: RawFd, time: Duration) -> Woken {
    set.wait_idle(socket, Interest::Readable, time);
    pgrx::check_for_interrupts!();
    if BackgroundWorker::sighup_received() {
        // SAFETY: re-reads the configuration file between two waits, as PostgreSQL's own workers do.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
    Woken {
        terminate: BackgroundWorker::sigterm_received(),
    }
}

/// Ends the process. With 0 the postmaster forgets the worker, with 1 it starts it again.
pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process in PostgreSQL's way; does not return.
    unsafe {
        pg_sys::proc_exit(code);
    }
    // The binding of some majors does not say so.
    #[allow(unreachable_code)]
    std::process::exit(code)
}

/// Whether the server takes writes, and its timeline.
pub fn role() -> ServerRole {
    let is_primary = !state::is_in_recovery();
    ServerRole {
        is_primary,
        timeline: timeline(),
    }
}

/// The timeline that the server writes, or replays.
pub fn timeline() -> u32 {
    // SAFETY: read shared memory; the first one is for a server that is not in recovery.
    unsafe {
        if state::is_in_recovery() {
            let mut timeline = 0;
            pg_sys::GetXLogReplayRecPtr(&raw mut timeline);
            timeline
        } else {
            pg_sys::GetWALInsertionTimeLine()
        }
    }
}

/// Which server this is.
pub fn identity() -> ServerIdentity {
    // SAFETY: read what is set when the server starts; the setting is NUL-terminated or null.
    unsafe {
        let addresses = pg_sys::ListenAddresses;
        let addresses = if addresses.is_null() {
            c""
        } else {
            CStr::from_ptr(addresses)
        };
        let addresses = addresses.to_string_lossy();
        let listen_addresses = addresses
            .split(',')
            .map(str::trim)
            .filter(|address| !address.is_empty());
        ServerIdentity {
            listen_addresses: listen_addresses.map(String::from).collect(),
            port: u16::try_from(pg_sys::PostPortNumber).unwrap_or(0),
            system_identifier: pg_sys::GetSystemIdentifier(),
            start: pg_sys::PgStartTime,
        }
    }
}

/// What tells this cluster from others: `cluster_name`, or else the machine's name and the port.
pub fn cluster_label() -> String {
    // SAFETY: reads settings that are set at start; the name is NUL-terminated.
    let (name, port) = unsafe {
        let name = pg_sys::cluster_name;
        let name = if name.is_null() { c"" } else { CStr::from_ptr(name) };
        (name.to_string_lossy().into_owned(), pg_sys::PostPortNumber)
    };
    if !name.is_empty() {
        return name;
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{port}", host.trim())
}

/// Reserves a prefix of parameter names, so that a misspelt parameter is an error.
pub fn reserve_parameters(prefix: &'static CStr) {
    // SAFETY: the name is NUL-terminated and copied.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}
