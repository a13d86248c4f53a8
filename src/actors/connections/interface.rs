//! The messages that the supervisor takes, and the handle by which users hold a connection. In the actor thread.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;
use tokio::time::Instant;

use super::lease::{ConnectionUser, Lease};
use crate::actors::client::NatsClient;
use crate::actors::connection::Connection;
use crate::actors::connection::interface::ConnectNow;
use crate::actors::connection::status::{self, ConnectionStatus};
use crate::actors::jetstream::key_value::KeyValue;
use crate::actors::jetstream::object_store::ObjectStore;
use crate::actors::jetstream::publish::JetStream;
use crate::channel::target::{Key, Link, Target};
use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Asks for a handle of the connection for a key, which is made with these settings if there is none yet. Fails with
/// `TooManyConnections`.
#[derive(Message)]
#[rtype(result = "Result<ConnectionHandle>")]
pub struct OpenConnection {
    pub target: Target,
    pub settings: Settings,
    pub user: ConnectionUser,
}

/// The actors of a connection.
#[derive(Clone)]
pub struct ConnectionActors {
    pub connection: Addr<Connection>,
    pub connect_now: Recipient<ConnectNow>,
    pub jetstream: Addr<JetStream>,
    pub key_value: Addr<KeyValue>,
    pub object_store: Addr<ObjectStore>,
}

/// A user's handle of a connection. Its clones share a lease: the connection counts as used as long as there is a
/// clone.
#[derive(Clone)]
pub struct ConnectionHandle {
    actors: Arc<ConnectionActors>,
    pub status: watch::Receiver<ConnectionStatus>,
    _lease: Arc<Lease>,
}

impl ConnectionHandle {
    pub(super) fn new(
        actors: Arc<ConnectionActors>,
        status: watch::Receiver<ConnectionStatus>,
        lease: Lease,
    ) -> ConnectionHandle {
        ConnectionHandle {
            actors,
            status,
            _lease: Arc::new(lease),
        }
    }

    /// Waits until the connection is up: until the deadline if it has been up before, otherwise for one attempt to
    /// connect.
    pub async fn until_up(&self, deadline: Instant) -> Result<Link> {
        status::until_up(&mut self.status.clone(), &self.actors.connect_now, deadline).await
    }

    /// Waits for the client, until the connection is up and has taken what was held for it.
    pub async fn client(&self, deadline: Instant) -> Result<NatsClient> {
        status::client(&mut self.status.clone(), &self.actors.connect_now, deadline).await
    }
}

impl std::ops::Deref for ConnectionHandle {
    type Target = ConnectionActors;

    fn deref(&self) -> &ConnectionActors {
        &self.actors
    }
}

/// A database is gone, or allows no connections: its NATS connections end with their last user.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DatabaseDropped(pub u32);

/// Asks which user mappings (0: none) have a shared connection to a foreign server.
#[derive(Message)]
#[rtype(result = "Vec<u32>")]
pub struct MappingsInUse {
    pub database: u32,
    pub server: u32,
}

/// Gives the shared connections of a foreign server new settings. Fails with the error of a connection that could not
/// take them.
#[derive(Message)]
#[rtype(result = "Result<()>")]
pub struct ReloadServer {
    pub database: u32,
    pub server: u32,
    /// New settings by user mapping (0: none); `None` closes the connection.
    pub settings: Vec<(u32, Option<Settings>)>,
    /// Connect anew even if nothing has changed, for `litmus_pgnats_reload_conf_force()`.
    pub force: bool,
    pub limit: Duration,
}

/// Asks whether the connection for a key has these settings; `None` if there is no connection.
#[derive(Message)]
#[rtype(result = "Option<bool>")]
pub struct CompareSettings(pub Key, pub Settings);

/// Stops all connections. Each client first delivers what it has taken, for this time at most.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FinishConnections(pub Duration);

/// Makes the supervisor panic; for tests.
#[cfg(debug_assertions)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

/// The error for a caller that finds an actor stopped.
pub fn stopped() -> Error {
    Error::new(
        Kind::RuntimeLost,
        "the litmus_pgnats runtime worker is shutting down",
    )
}
