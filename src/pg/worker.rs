//! Background workers: registration, and what one does on its main thread.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags};
use pgrx::pg_sys;

use super::wait::LatchWait;

/// The postmaster starts a worker that ended with an error again after this time.
const RESTART_TIME: Duration = Duration::from_secs(1);

fn builder(name: &str, function: &str) -> BackgroundWorkerBuilder {
    BackgroundWorkerBuilder::new(name)
        .set_library("litmus_pgnats")
        .set_function(function)
        .enable_spi_access()
        // After `enable_spi_access`, which sets a start time of its own: on a standby too.
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

/// Has the worker started with the server.
pub fn register_static(name: &str, function: &str) {
    builder(name, function).load();
}

/// Has the worker started now; `false` when there is no free slot for one.
pub fn register_dynamic(name: &str, function: &str) -> bool {
    builder(name, function).load_dynamic().is_ok()
}

/// First thing in a worker: signals, and a seat in pg_stat_activity without a database.
pub fn attach() {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    BackgroundWorker::connect_worker_to_spi(None, None);
    // SAFETY: reports an idle worker; the text is copied.
    unsafe {
        pg_sys::pgstat_report_appname(c"litmus_pgnats runtime".as_ptr());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    pub terminate: bool,
}

/// Waits for a signal, the socket or, if given, the time; re-reads the configuration when asked to.
pub fn wait(set: &mut LatchWait, socket: RawFd, time: Option<Duration>) -> Woken {
    set.wait_idle(socket, time);
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
