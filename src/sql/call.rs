//! What SQL functions send to the runtime worker: publishes, and requests that wait for a reply. Runs in backends and
//! executors, on the main thread.

use std::path::Path;
use std::time::Duration;

use super::session::{self, GRACE, Outgoing, Slot, check_size, milliseconds, patience, with_session};
use super::{parameters, server};
use crate::channel::SOCKET_PATH;
use crate::channel::client::connect;
use crate::channel::frame::Frame;
use crate::channel::message::{JETSTREAM_ANSWERS, JetStreamCall, JetStreamOptions, Reply, Request};
use crate::channel::target::Key;
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;
use crate::pg::executor;

/// When so many bytes of publishes have collected, they are written without waiting for the end of the statement.
const FLUSH_SIZE: usize = 32 * 1024;

/// Publishes a message through a foreign server; it is written by the end of the statement.
pub fn publish(key: Key, message: Outgoing<'_>) -> Result<()> {
    with_session(|session| {
        let Slot { number, link, .. } = *session.slot(key)?;
        check_size(&message.headers, &message.payload, link)?;
        let wait_ms = if link.up { 0 } else { milliseconds(patience()) };
        session.push(message, number, wait_ms)?;
        session.needs_barrier |= !link.up;
        if session.client.unsent() >= FLUSH_SIZE || !executor::called_by_running_query() {
            session.flush()
        } else {
            session::set_busy(true);
            Ok(())
        }
    })
}

/// Checks that a message which is to be published later is not too large for its connection.
pub fn check_message(key: Key, message: &Outgoing<'_>) -> Result<()> {
    with_session(|session| check_size(&message.headers, &message.payload, session.slot(key)?.link))
}

/// Gives the runtime worker messages, which it holds until a `Release`; returns when it has all of them.
pub fn hand_over(messages: Vec<(Key, Outgoing<'static>)>) -> Result<()> {
    with_session(|session| {
        for (key, _) in &messages {
            session.slot(*key)?;
        }
        session.barrier()?;
        session.client.push(&Request::Hold, b"")?;
        for (key, message) in messages {
            // Opening a slot gives up the private slots of other keys, so an earlier slot may be gone.
            let slot = session.number(&key).ok_or_else(|| {
                Error::new(
                    Kind::Unsupported,
                    "cannot publish at the commit by several servers whose options the transaction has changed",
                )
            })?;
            // Without a wait, because the runtime worker takes released messages in any case: no error could be raised
            // any more.
            session.push(message, slot, 0)?;
            if session.client.unsent() >= FLUSH_SIZE {
                session.flush()?;
            }
        }
        session.call(&Request::Barrier, b"", parameters::connect_timeout())?;
        Ok(())
    })
}

/// Sends a request through the foreign server that the call means, and returns the reply. `request` is given the slot's
/// number and the longest wait for NATS to be reached, in milliseconds; `time` is what the runtime worker may take for
/// the whole, if that is longer.
pub fn ask(
    headers: &Headers,
    payload: &[u8],
    time: Duration,
    request: impl FnOnce(u16, u32) -> Request,
) -> Result<Frame<Reply>> {
    let key = server::choose()?;
    with_session(|session| {
        let Slot { number, link, .. } = *session.slot(key)?;
        check_size(headers, payload, link)?;
        session.barrier()?;
        let wait = parameters::connect_timeout();
        session.call(&request(number, milliseconds(wait)), payload, wait.max(time))
    })
}

/// Sends a call to JetStream and returns the reply. `body` is the payload or the value, which is checked against the
/// NATS server's limit. Objects, which are sent in parts, go through [`stream`].
pub fn jetstream(domain: Option<String>, call: JetStreamCall, body: &[u8]) -> Result<Frame<Reply>> {
    let headers = match &call {
        JetStreamCall::Publish { headers, .. } => headers.clone(),
        _ => Headers::new(),
    };
    let time = parameters::connect_timeout() + parameters::jetstream_timeout() * JETSTREAM_ANSWERS;
    ask(&headers, body, time, |slot, wait_ms| Request::JetStream {
        slot,
        api: api(domain, wait_ms),
        call,
    })
}

/// Puts the object `upload`, or gets an object and passes its parts to `download`.
pub fn stream(
    domain: Option<String>,
    call: JetStreamCall,
    upload: Option<&[u8]>,
    download: impl FnMut(Frame<Reply>) -> Result<()>,
) -> Result<Frame<Reply>> {
    let key = server::choose()?;
    with_session(|session| {
        let slot = session.slot(key)?.number;
        session.flush()?;
        let wait = parameters::connect_timeout();
        let idle = wait + parameters::jetstream_timeout() * JETSTREAM_ANSWERS + GRACE;
        let request = Request::JetStream {
            slot,
            api: api(domain, milliseconds(wait)),
            call,
        };
        session.client.stream(&request, upload, idle, download)
    })
}

fn api(domain: Option<String>, wait_ms: u32) -> JetStreamOptions {
    JetStreamOptions {
        domain,
        timeout_ms: milliseconds(parameters::jetstream_timeout()),
        wait_ms,
    }
}

/// Connects to the runtime worker, which is started if need be.
pub fn ensure_runtime() -> Result<()> {
    with_session(|_| Ok(()))
}

/// Connects to the runtime worker if one runs, and starts none. Whether the session is connected then.
pub fn join_runtime_if_running() -> bool {
    // An error is only `false` here. If it was an interrupt, PostgreSQL serves that when the statement goes on.
    (session::is_connected() || connect(Path::new(SOCKET_PATH)).is_ok()) && ensure_runtime().is_ok()
}

/// Sends a request that concerns no slot, and returns the reply. `time` is what the runtime worker may take.
pub fn tell(request: &Request, time: Duration) -> Result<Frame<Reply>> {
    with_session(|session| session.call(request, b"", time))
}
