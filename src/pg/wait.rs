//! Waits for a socket together with PostgreSQL's latch. Runs in every process that uses the control channel, and in the
//! runtime worker; on the main thread.

use std::cell::Cell;
use std::ffi::CStr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use crate::channel::client::{Interest, Wait};
use crate::error::{Error, Kind, Result};

/// What a process waits for: the wait event in pg_stat_activity, from PostgreSQL 17 on. Earlier versions show
/// `Extension`.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A session waits for the runtime worker.
    Reply,
    /// The runtime worker's main thread waits for something to do.
    RuntimeMain,
    /// Another background worker of the extension waits for something to do.
    WorkerMain,
}

thread_local! {
    /// The number that the server has given to each event's name; 0 as long as this process has not asked for it. Kept,
    /// because asking takes a lock.
    static NUMBERS: [Cell<u32>; 3] = const { [const { Cell::new(0) }; 3] };
}

impl Event {
    fn name(self) -> &'static CStr {
        match self {
            Event::Reply => c"LitmusPgnatsReply",
            Event::RuntimeMain => c"LitmusPgnatsRuntimeMain",
            Event::WorkerMain => c"LitmusPgnatsWorkerMain",
        }
    }

    fn number(self) -> u32 {
        NUMBERS.with(|numbers| {
            let Some(number) = numbers.get(self as usize) else {
                return pg_sys::PG_WAIT_EXTENSION;
            };
            if number.get() == 0 {
                number.set(register(self.name()));
            }
            number.get()
        })
    }
}

#[cfg(any(feature = "pg15", feature = "pg16"))]
fn register(_: &CStr) -> u32 {
    pg_sys::PG_WAIT_EXTENSION
}

#[cfg(not(any(feature = "pg15", feature = "pg16")))]
fn register(name: &CStr) -> u32 {
    // The server has room for 128 names; if other extensions have taken them all, waiting must still work.
    // SAFETY: the name is NUL-terminated and copied; the only error is thrown with no lock held.
    pgrx::PgTryBuilder::new(|| unsafe { pg_sys::WaitEventExtensionNew(name.as_ptr()) })
        .catch_others(|_| pg_sys::PG_WAIT_EXTENSION)
        .execute()
}

/// Waits with a wait event set that lives as long as the socket: setting one up costs five system calls.
pub struct LatchWait {
    event: Event,
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
        // SAFETY: the set lives until `drop` (in the top memory context, owned by no resource owner), and the latch is
        // this process's own. The socket is open during every wait: it belongs to the client that owns this set or, in
        // the runtime worker, outlives the set. Freeing the set does not use the socket.
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

    /// Waits for the socket, the latch or the time.
    fn wait(&mut self, event: Event, interest: Interest, timeout: Duration) {
        let number = event.number();
        // Rounded up: a wait that ends a fraction of a millisecond early would be repeated many times.
        let milliseconds = i64::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i64::MAX);
        // SAFETY: the set is valid until `drop`; one event is written at most.
        unsafe {
            if self.interest != interest {
                pg_sys::ModifyWaitEvent(self.set, SOCKET, events(interest), std::ptr::null_mut());
                self.interest = interest;
            }
            let mut event = pg_sys::WaitEvent::default();
            pg_sys::WaitEventSetWait(self.set, milliseconds, &raw mut event, 1, number);
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
    pub fn new(event: Event) -> Self {
        LatchWait { event, set: None }
    }

    /// For a background worker: waits until the socket is ready, the latch is set or the time is over; serves no
    /// interrupt. After the first call it takes no file descriptor, so it works when none is left.
    pub fn wait_idle(&mut self, socket: RawFd, interest: Interest, timeout: Duration) {
        let set = self.set.get_or_insert_with(|| WaitSet::new(socket, interest));
        set.wait(self.event, interest, timeout);
    }
}

impl Wait for LatchWait {
    fn wait(&mut self, socket: RawFd, interest: Interest, deadline: Instant) -> Result<()> {
        // A client has the same socket all its life, so the set is made once.
        let set = self.set.get_or_insert_with(|| WaitSet::new(socket, interest));
        set.wait(
            self.event,
            interest,
            deadline.saturating_duration_since(Instant::now()),
        );
        check_for_interrupts()
    }

    fn interrupted(&self) -> bool {
        // SAFETY: a flag that signal handlers set; read as PostgreSQL's own macro reads it.
        unsafe { (&raw const pg_sys::InterruptPending).read_volatile() != 0 }
    }
}

/// Serves interrupts. An interrupt that ends the statement is returned as an error, so that Rust's frames return in
/// order; `report::guarded` then has PostgreSQL raise it.
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

/// Sleeps for `time`, or until the latch is set; fails if an interrupt ends the statement.
pub fn sleep(time: Duration) -> Result<()> {
    let milliseconds = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: waits for this process's own latch.
    unsafe {
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            milliseconds,
            Event::Reply.number(),
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_for_interrupts()
}
