//! The promotion notifier: a worker that PostgreSQL starts at the end of a standby's recovery. It tells the runtime
//! worker of the promotion and ends, so nobody has to ask again and again whether the standby was promoted. Runs in a
//! process of its own, on the main thread; [`send`] runs in the runtime worker.

use std::time::{Duration, Instant};

use pgrx::{pg_guard, pg_sys};

use super::executor::join;
use super::logging;
use crate::channel::message::{Peer, Request};
use crate::pg::transaction::transaction;
use crate::pg::worker::{Process, WorkerStart};
use crate::pg::{databases, worker};

const NAME: &str = "litmus_pgnats promotion notifier";
const MAIN: &str = "litmus_pgnats_promotion_notifier_main";
/// Longest wait for the runtime worker to take the news.
const LIMIT: Duration = Duration::from_secs(5);

/// Has a promotion notifier started when recovery has ended; `None` if no slot for a background worker is free.
pub fn send() -> Option<Process> {
    Process::start(NAME, MAIN, 0, WorkerStart::AfterRecovery)
}

/// The worker's main function, called by the postmaster's child.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn litmus_pgnats_promotion_notifier_main(_arg: pg_sys::Datum) {
    worker::attach_as_session(None, c"litmus_pgnats promotion notifier");
    let told = transaction(databases::databases).map(|databases| {
        let timeline = worker::timeline();
        let mut client = join(Peer::Session)?;
        client.push(&Request::Promoted { timeline, databases }, b"")?;
        client.flush(Instant::now() + LIMIT)
    });
    let why = match told {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(caught) => Some(caught.message),
    };
    if let Some(why) = why {
        let text = format!("the runtime worker was not told that the server takes writes: {why}");
        logging::write(log::Level::Error, &text, "", "");
    }
    worker::exit(0)
}
