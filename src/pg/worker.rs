//! Background workers: how they are started, and what a worker does itself. Runs in the processes that start workers
//! (the postmaster, backends, the runtime worker) and in the workers, on the main thread.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::time::Duration;

use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BackgroundWorkerStatus, BgWorkerStartTime,
    DynamicBackgroundWorker, SignalWakeFlags,
};
use pgrx::pg_sys;

use super::encoding::c_string;
use super::state;
use super::wait::LatchWait;
use crate::channel::client::Interest;
use crate::server_role::{ServerIdentity, ServerRole};

unsafe extern "C-unwind" {
    // Declared as the plain C functions that they are; pgrx's bindings wrap them.
    fn die(signal: i32);
    fn SignalHandlerForConfigReload(signal: i32);
}

/// The postmaster restarts a worker that ended with an error after this time.
const RESTART_TIME: Duration = Duration::from_secs(1);

fn builder(name: &str, function: &str) -> BackgroundWorkerBuilder {
    BackgroundWorkerBuilder::new(name)
        .set_library("litmus_pgnats")
        .set_function(function)
        .enable_spi_access()
}

/// The builder for the runtime worker, which runs on a standby too and is restarted.
fn persistent(name: &str, function: &str) -> BackgroundWorkerBuilder {
    builder(name, function)
        // Called after `enable_spi_access`, which sets another start time.
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

/// Has the runtime worker started now; `false` if no slot for a background worker is free.
pub fn register_dynamic(name: &str, function: &str) -> bool {
    persistent(name, function).load_dynamic().is_ok()
}

/// When a worker starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerStart {
    Now,
    /// When recovery has ended: on a standby, after its promotion.
    AfterRecovery,
}

/// A worker that this process has started. PostgreSQL signals this process when the worker starts or ends.
pub struct Process(DynamicBackgroundWorker);

impl Process {
    /// Has a worker started, which is not restarted when it ends; `None` if no slot for a background worker is free.
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

    /// Ends the worker, or keeps it from being started.
    pub fn terminate(self) {
        self.0.terminate();
    }
}

/// Called first in the runtime worker: sets signal handlers, and connects without a database so that pg_stat_activity
/// shows the worker.
pub fn attach() {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    BackgroundWorker::connect_worker_to_spi(None, None);
    introduce(c"litmus_pgnats runtime");
}

/// Called first in a worker that runs SQL: sets signal handlers, and connects to a database or, with `None`, to the
/// shared catalogues alone. A SIGTERM then ends the worker in the middle of whatever it runs, like a session.
pub fn attach_as_session(database: Option<u32>, name: &CStr) {
    use pg_sys::{SIGHUP, SIGTERM};
    // SAFETY: the handlers are PostgreSQL's own, and are set before signals are unblocked.
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

/// Sets a parameter for as long as the process lives, whatever its database and the configuration files say.
pub fn set(name: &CStr, value: &CStr) {
    use pg_sys::{GucContext::PGC_SUSET, GucSource::PGC_S_OVERRIDE};
    // SAFETY: the strings live until the call returns; the process has connected as a superuser.
    unsafe { pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), PGC_SUSET, PGC_S_OVERRIDE) }
}

/// Shows the worker in pg_stat_activity as idle.
pub fn report_idle() {
    // SAFETY: reports an idle worker.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null()) };
}

/// Shows in pg_stat_activity what the worker runs.
pub fn report_running(what: &str) {
    let what = c_string(what);
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, what.as_ptr()) };
}

/// Called between two transactions: reports statistics, and releases session-level advisory locks that a function has
/// left behind.
pub fn tidy_up() {
    // SAFETY: the worker is between two transactions.
    unsafe {
        pg_sys::pgstat_report_stat(true);
        pg_sys::LockReleaseSession(pg_sys::USER_LOCKMETHOD as pg_sys::LOCKMETHODID);
    }
}

/// Serves interrupts that came while the worker waited: a SIGTERM ends the process, and a cancel is dropped, since
/// nothing runs that it could cancel. Reads the configuration files again when asked to.
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
    /// A SIGTERM has come.
    pub terminate: bool,
}

/// Waits for a signal, for the socket or until `time` is over; reads the configuration files again when asked to.
pub fn wait(set: &mut LatchWait, socket: RawFd, time: Duration) -> Woken {
    set.wait_idle(socket, Interest::Readable, time);
    pgrx::check_for_interrupts!();
    if BackgroundWorker::sighup_received() {
        // SAFETY: reads the configuration files again between two waits, as PostgreSQL's own workers do.
        unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    }
    Woken {
        terminate: BackgroundWorker::sigterm_received(),
    }
}

/// Ends the process. After exit code 0 the postmaster forgets the worker; after 1 it restarts a worker that has a
/// restart time.
pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process in PostgreSQL's way; does not return.
    unsafe {
        pg_sys::proc_exit(code);
    }
    // For some majors, the binding does not declare that proc_exit never returns.
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
    // SAFETY: both functions read shared memory; GetWALInsertionTimeLine is only called on a server that is not in
    // recovery.
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
    // SAFETY: reads variables that are set when the server starts; the setting is NUL-terminated or null.
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

/// A name for this cluster: `cluster_name`, or else the host's name and the port.
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
    // On a system that does not tell the host's name, the port alone has to do.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}:{port}", host.trim())
}

/// Reserves a prefix of parameter names, so that a misspelt parameter is an error.
pub fn reserve_parameters(prefix: &'static CStr) {
    // SAFETY: the name is NUL-terminated and copied.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) };
}
