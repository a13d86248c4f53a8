//! The allocator of the library: the system's, and what happens in the runtime worker when memory runs out. In the
//! runtime worker, in whatever thread that happens; in other processes nothing but the system's allocator.
//!
//! Where an allocation fails, Rust ends the process by an abort, and the postmaster then restarts the whole cluster. So in
//! the runtime worker the thread whose allocation fails never goes on: it gives back a reserve, wakes the main thread,
//! and sleeps, and the main thread ends the worker alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};

use crate::pg::worker;

/// Bytes that are kept for the end of the worker.
const RESERVE_SIZE: usize = 2 * 1024 * 1024;

/// The main thread of the runtime worker; 0 in other processes.
static MAIN_THREAD: AtomicI32 = AtomicI32::new(0);
static IS_EXHAUSTED: AtomicBool = AtomicBool::new(false);
static RESERVE: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());

#[global_allocator]
static ALLOCATOR: Guarded = Guarded;

/// The system's allocator; a failure is [`exhausted`].
struct Guarded;

// SAFETY: every call is the system allocator's, with its arguments and its result; `exhausted` returns nothing and
// unwinds never.
unsafe impl GlobalAlloc for Guarded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the contract of GlobalAlloc.
        checked(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps to the contract of GlobalAlloc.
        checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps to the contract of GlobalAlloc.
        checked(unsafe { System.realloc(block, layout, size) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of GlobalAlloc.
        unsafe { System.dealloc(block, layout) }
    }
}

fn checked(block: *mut u8) -> *mut u8 {
    if block.is_null() {
        exhausted();
    }
    block
}

/// An allocation has failed. Returns in other processes than the runtime worker only.
#[cold]
fn exhausted() {
    let main = MAIN_THREAD.load(Ordering::Relaxed);
    if main == 0 {
        return;
    }
    IS_EXHAUSTED.store(true, Ordering::Release);
    let reserve = RESERVE.swap(std::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: the block is malloc's, and was taken out just now, so nobody else frees it; free takes null.
    unsafe { libc::free(reserve) };
    if this_thread() == main {
        worker::exit(1);
    }
    // SAFETY: sends a signal to this process, whose main thread alone takes it, and waits for ever. Neither allocates.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGTERM);
        loop {
            libc::pause();
        }
    }
}

fn this_thread() -> i32 {
    // SAFETY: asks for a number.
    unsafe { libc::gettid() }
}

/// Has failed allocations end this process, the runtime worker. Called on its main thread.
pub fn guard() {
    // SAFETY: a block that stays until memory runs out; without one, null, the end has less room.
    let reserve = unsafe { libc::malloc(RESERVE_SIZE) };
    RESERVE.store(reserve, Ordering::Release);
    MAIN_THREAD.store(this_thread(), Ordering::Relaxed);
}

/// Whether an allocation has failed: the worker has to end at once, and must not wait for any lock, because the thread
/// that holds it may sleep for ever.
pub fn is_exhausted() -> bool {
    IS_EXHAUSTED.load(Ordering::Acquire)
}

/// Limits the memory of this process, in bytes; `None`: no limit. Memory that processes share does not count.
pub fn set_limit(bytes: Option<u64>) {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the structure is valid for both calls, which concern this process alone.
    let outcome = unsafe {
        libc::getrlimit(libc::RLIMIT_DATA, &raw mut limit);
        limit.rlim_cur = bytes.map_or(limit.rlim_max, |bytes| bytes.min(limit.rlim_max));
        libc::setrlimit(libc::RLIMIT_DATA, &raw const limit)
    };
    if outcome != 0 {
        let error = std::io::Error::last_os_error();
        log::warn!("could not limit the memory of the runtime worker: {error}");
    }
}
