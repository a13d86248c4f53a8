//! Starts a thread with every signal blocked: PostgreSQL's handlers may run on the main thread alone. Threads that
//! it starts itself (tokio's, for names and files) inherit the mask.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts `main` in a thread of that name.
pub fn spawn<T: Send + 'static>(
    name: &str,
    main: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let before = set_mask(None)?;
    let thread = Builder::new().name(name.into()).spawn(|| {
        wake_without_preempting();
        main()
    });
    set_mask(Some(before))?;
    thread
}

/// Has this thread, when it is woken, wait for the one that is running rather than take its processor. A backend that
/// publishes then ends its statement first, and the thread finds more to do at once; an idle processor takes it as
/// before. Measured on two cores: a third more publishes a second from 8 clients.
fn wake_without_preempting() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: concerns this thread alone; the parameters are valid. A refusal changes nothing.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) };
}

/// Sets this thread's signal mask, by default to all signals; returns the one before.
fn set_mask(mask: Option<libc::sigset_t>) -> io::Result<libc::sigset_t> {
    // SAFETY: both sets are valid for the call, and sigfillset initializes its argument whole.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        let mut before = std::mem::zeroed();
        match libc::pthread_sigmask(
            libc::SIG_SETMASK,
            &raw const *mask.as_ref().unwrap_or(&all),
            &raw mut before,
        ) {
            0 => Ok(before),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}
