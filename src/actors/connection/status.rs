//! What callers may know of a connection, and how they wait for it. In the actor thread.

use std::collections::HashMap;
use std::time::Duration;

use actix::Recipient;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::interface::ConnectNow;
use crate::actors::client::NatsClient;
use crate::channel::target::Link;
use crate::error::{Error, Kind, Result};

/// What callers may know of a connection.
#[derive(Clone, Debug, Default)]
pub struct ConnectionStatus {
    /// What sessions are told of the connection.
    pub link: Link,
    /// Whether the connection has ever been up.
    pub was_up: bool,
    /// Attempts to connect that have failed since the connection was last up.
    pub failures: u64,
    /// Why the connection is not up, as far as is known; `None` while it is up.
    pub error: Option<Error>,
    /// Since when the connection is down; `None` while it is up, and before it was up first.
    pub down_since: Option<Instant>,
    /// Streams and consumers of which the NATS server does not let this user pull or acknowledge messages, with the
    /// subjects that this user may not publish to.
    pub refused_consumers: HashMap<(String, String), &'static str>,
    /// The client, while the connection is up and no held message has to go first; otherwise `None`.
    pub client: Option<NatsClient>,
    /// The default JetStream domain, if the settings name one.
    pub domain: Option<String>,
    /// Generation of the client that was installed last; what was derived from an older client is stale.
    pub generation: u64,
}

/// NATS that has been away for so long is not expected back in a moment.
const KNOWN_AWAY: Duration = Duration::from_secs(2);
/// Once it is known that NATS is away, callers wait for one more attempt to connect, but no longer than this.
const LAST_CHANCE: Duration = Duration::from_millis(250);

/// Waits until the connection is up: for one attempt to connect if the connection has never been up, or has been down
/// for long; otherwise until the deadline. Fails with the connection's last error.
pub async fn until_up(
    status: &mut watch::Receiver<ConnectionStatus>,
    connection: &Recipient<ConnectNow>,
    deadline: Instant,
) -> Result<Link> {
    let (before, was_up, is_known) = {
        let now = status.borrow_and_update();
        if now.link.up {
            return Ok(now.link);
        }
        let is_known = now.failures > 0 && now.down_since.is_some_and(|since| since.elapsed() > KNOWN_AWAY);
        (now.failures, now.was_up, is_known)
    };
    connection.do_send(ConnectNow);
    let decided = status.wait_for(|s| s.link.up || ((is_known || !s.was_up) && s.failures > before));
    let deadline = match (is_known, was_up) {
        (true, _) => deadline.min(Instant::now() + LAST_CHANCE),
        (false, true) => deadline,
        // The first attempt may take as long as a caller waits, and then says why it has failed.
        (false, false) => deadline + LAST_CHANCE,
    };
    let last = match timeout_at(deadline, decided).await {
        Ok(Ok(now)) if now.link.up => return Ok(now.link),
        Ok(Ok(now)) => now.error.clone(),
        _ => None,
    };
    Err(last
        .or_else(|| status.borrow().error.clone())
        .unwrap_or_else(not_connected))
}

/// Waits for the client, until the connection is up and has taken what was held for it. Fails as [`until_up`] does.
pub async fn client(
    status: &mut watch::Receiver<ConnectionStatus>,
    connection: &Recipient<ConnectNow>,
    deadline: Instant,
) -> Result<NatsClient> {
    loop {
        until_up(status, connection, deadline).await?;
        if let Some(client) = &status.borrow_and_update().client {
            return Ok(client.clone());
        }
        changed(status, deadline).await?;
    }
}

/// Waits for the next change of the status. Fails at the deadline, or when the connection's actor has ended.
pub async fn changed(status: &mut watch::Receiver<ConnectionStatus>, deadline: Instant) -> Result<()> {
    match timeout_at(deadline, status.changed()).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(not_connected()),
    }
}

/// The error where no better explanation is known.
pub fn not_connected() -> Error {
    Error::new(
        Kind::Unreachable,
        "the connection to the NATS server is not established yet",
    )
}
