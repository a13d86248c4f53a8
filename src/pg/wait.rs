//! Waiting for the control channel's socket. Runs in every process that runs SQL, on the main thread.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::channel::client::{Interest, Wait};
use crate::error::{Error, Kind, Result};

/// Waits with a wait event set that lives as long as the socket: setting one up costs five system calls.
#[derive(Default)]
pub struct LatchWait {
    set: Option<WaitSet>,
}

struct WaitSet {
    set: *mut pg_sys::WaitEventSet,
    interest: Interest,
}

/// Position of the socket in the set: it is added first.
const SOCKET: i32 = 0;

fn events(interest: Interest) -> u32 {
    match interest {
        Interest::Readable => pg_sys::WL_SOCKET_READABLE,
        Interest::Both => pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE,
    }
}

impl WaitSet {
    fn new(socket: RawFd, interest: Interest) -> Self {
        // SAFETY: the set lives until `drop` (in the top memory context, owned by no resource owner); the latch is
        // this process's own; the socket belongs to the client that owns this set and is closed after it.
        let set = unsafe {
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            let set = pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, 3);
            #[cfg(not(any(feature = "pg15", feature = "pg16")))]
            let set = pg_sys::CreateWaitEventSet(std::ptr::null_mut(), 3);
            let (no_socket, no_latch, no_data) = (
                pg_sys::PGINVALID_SOCKET,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            );
            pg_sys::AddWaitEventToSet(set, events(interest), socket, no_latch, no_data);
            pg_sys::AddWaitEventToSet(set, pg_sys::WL_LATCH_SET, no_socket, pg_sys::MyLatch, no_data);
            pg_sys::AddWaitEventToSet(set, pg_sys::WL_EXIT_ON_PM_DEATH, no_socket, no_latch, no_data);
            set
        };
        WaitSet { set, interest }
    }

    /// Waits for the socket, the latch or, if given, the time.
    fn wait(&mut self, interest: Interest, timeout: Option<Duration>) {
        // Rounded up: a wait that ends a fraction early would be repeated many times.
        let milliseconds = timeout.map_or(-1, |timeout| {
            i64::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i64::MAX)
        });
        // SAFETY: the set is valid until `drop`; one event is written at most.
        unsafe {
            if self.interest != interest {
                pg_sys::ModifyWaitEvent(self.set, SOCKET, events(interest), std::ptr::null_mut());
                self.interest = interest;
            }
            let mut event = pg_sys::WaitEvent::default();
            pg_sys::WaitEventSetWait(
                self.set,
                milliseconds,
                &raw mut event,
                1,
                pg_sys::PG_WAIT_EXTENSION,
            );
            if event.events & pg_sys::WL_LATCH_SET != 0 {
                pg_sys::ResetLatch(pg_sys::MyLatch);
            }
        }
    }
}

impl Drop for WaitSet {
    fn drop(&mut self) {
        // SAFETY: the set was made by `new` and is freed once.
        unsafe { pg_sys::FreeWaitEventSet(self.set) }
    }
}

impl LatchWait {
    /// For a background worker: waits until the socket is ready, the latch is set or the time is over; serves no
    /// interrupt. Takes no
    /// file descriptor, so it works when there is none left.
    pub fn wait_idle(&mut self, socket: RawFd, interest: Interest, timeout: Option<Duration>) {
        let set = self.set.get_or_insert_with(|| WaitSet::new(socket, interest));
        set.wait(interest, timeout);
    }
}

impl Wait for LatchWait {
    fn wait(&mut self, socket: RawFd, interest: Interest, deadline: Instant) -> Result<()> {
        // A client has one socket for life, so the set need not be made again.
        let set = self.set.get_or_insert_with(|| WaitSet::new(socket, interest));
        set.wait(interest, Some(deadline.saturating_duration_since(Instant::now())));
        check_for_interrupts()
    }

    fn interrupted(&self) -> bool {
        // SAFETY: a flag that signal handlers set; read as PostgreSQL's own macro reads it.
        unsafe { (&raw const pg_sys::InterruptPending).read_volatile() != 0 }
    }
}

/// Serves interrupts. What ends the statement is an error here, so that Rust's frames return in order;
/// `report::guarded` then has PostgreSQL raise it.
fn check_for_interrupts() -> Result<()> {
    // SAFETY: flags that signal handlers set.
    let ends_statement = unsafe {
        (&raw const pg_sys::QueryCancelPending).read_volatile() != 0
            || (&raw const pg_sys::ProcDiePending).read_volatile() != 0
    };
    if ends_statement {
        return Err(Error::new(
            Kind::Interrupted,
            "canceling statement due to user request",
        ));
    }
    pgrx::check_for_interrupts!();
    Ok(())
}

/// Sleeps unless interrupted.
pub fn sleep(time: Duration) -> Result<()> {
    let milliseconds = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: waits for this process's own latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_for_interrupts()
}
