//! What callers may know of a connection, and how they wait for it. In the actor thread.

use std::collections::HashSet;

use actix::Addr;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Connection;
use super::interface::ConnectNow;
use super::requester::Requester;
use crate::channel::target::Link;
use crate::error::{Error, Kind, Result};

/// What callers may know of a connection.
#[derive(Clone, Debug, Default)]
pub struct ConnectionStatus {
    pub link: Link,
    /// Whether there ever was a connection with these settings.
    pub was_up: bool,
    /// Attempts that have failed.
    pub failures: u64,
    pub error: Option<Error>,
    /// Subjects that the NATS server does not let this user subscribe to.
    pub refused: HashSet<String>,
    /// While the connection is up and nothing is held that has to go first.
    pub client: Option<Requester>,
    /// The default JetStream domain.
    pub domain: Option<String>,
    /// Counts the clients; whatever was derived from an older client is stale.
    pub generation: u64,
}

/// Waits until the connection is up: until the deadline if it once was, otherwise for one attempt.
pub async fn until_up(
    status: &mut watch::Receiver<ConnectionStatus>,
    connection: &Addr<Connection>,
    deadline: Instant,
) -> Result<Link> {
    let before = {
        let now = status.borrow_and_update();
        if now.link.up {
            return Ok(now.link);
        }
        now.failures
    };
    connection.do_send(ConnectNow);
    let decided = status.wait_for(|s| s.link.up || (!s.was_up && s.failures > before));
    let last = match timeout_at(deadline, decided).await {
        Ok(Ok(now)) if now.link.up => return Ok(now.link),
        Ok(Ok(now)) => now.error.clone(),
        _ => None,
    };
    Err(last
        .or_else(|| status.borrow().error.clone())
        .unwrap_or_else(not_connected))
}

/// The client, once the connection is up and has taken what was held for it.
pub async fn client(
    status: &mut watch::Receiver<ConnectionStatus>,
    connection: &Addr<Connection>,
    deadline: Instant,
) -> Result<Requester> {
    loop {
        until_up(status, connection, deadline).await?;
        if let Some(client) = &status.borrow_and_update().client {
            return Ok(client.clone());
        }
        changed(status, deadline).await?;
    }
}

/// Waits for the next change of the status.
pub async fn changed(status: &mut watch::Receiver<ConnectionStatus>, deadline: Instant) -> Result<()> {
    match timeout_at(deadline, status.changed()).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(not_connected()),
    }
}

/// For want of a better explanation.
pub fn not_connected() -> Error {
    Error::new(
        Kind::Unreachable,
        "the connection to the NATS server is not established yet",
    )
}
