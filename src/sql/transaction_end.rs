//! What a session sends to the runtime worker at the end of a statement or a transaction. Except for [`flush`], nothing
//! here may wait or raise an error. Runs in backends and executors, on the main thread.

use std::path::Path;

use super::session::{self, hello, if_connected};
use crate::channel::SOCKET_PATH;
use crate::channel::client::{Client, connect};
use crate::channel::message::Request;
use crate::error::Result;
use crate::pg::wait;

/// Sends a request without waiting for anything. `false` if the request cannot have arrived.
pub fn post(request: &Request) -> bool {
    let mut posted = false;
    if_connected(|session| {
        posted = session.client.push(request, b"").is_ok() && session.client.try_flush().is_ok();
    });
    posted
}

/// Like [`post`], and also reaches a runtime worker that this session is not connected to yet: one that was started or
/// restarted in the middle of the transaction, and may have read the database before the commit.
pub fn announce(request: &Request) {
    if post(request) {
        return;
    }
    // The runtime worker reads what it was sent even if nobody stays for the answers.
    if let Ok(socket) = connect(Path::new(SOCKET_PATH))
        && let Ok(mut client) = Client::new(socket, wait::LatchWait::new(wait::Event::Reply))
    {
        let sent = client
            .push(&hello(), b"")
            .and_then(|()| client.push(request, b""));
        // A runtime worker that ends now is followed by one that reads the database when it starts.
        let _ = sent.and_then(|()| client.try_flush());
    }
}

/// Called at the end of a run of PostgreSQL's executor: writes what was published.
pub fn flush() -> Result<()> {
    session::set_busy(false);
    let mut outcome = Ok(());
    if_connected(|session| outcome = session.flush());
    outcome
}

/// Called after a failure: writes what was published before the failure, as far as that needs no waiting.
pub fn flush_now() {
    if_connected(|session| {
        // If the runtime worker has ended, the next call finds that out.
        let _ = session.client.try_flush();
    });
}

/// Called after a rollback: no later statement waits for what was published before the rollback, or gets its error.
pub fn give_up() {
    session::set_busy(false);
    if_connected(|session| {
        // If the runtime worker has ended, the next call finds that out.
        if std::mem::take(&mut session.needs_barrier) {
            // A `Barrier` without an id: the runtime worker forgets what it refused, and its answer is ignored.
            let _ = session.client.push(&Request::Barrier, b"");
        }
        let _ = session.client.try_flush();
    });
}

/// Called when the transaction has ended: gives up the slots whose options only that transaction could see.
pub fn leave_private() {
    if_connected(|session| {
        if session.leave(|key, _| key.private_to != 0) {
            // If the runtime worker has ended, the next call finds that out.
            let _ = session.client.try_flush();
        }
    });
}
