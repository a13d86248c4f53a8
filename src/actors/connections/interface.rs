//! The messages that the supervisor takes, and a connection as its users hold it. In the actor thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::watch;

use crate::actors::connection::Connection;
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::jetstream::key_value::KeyValue;
use crate::actors::jetstream::object_store::ObjectStore;
use crate::actors::jetstream::publish::JetStream;
use crate::channel::target::{Key, Target};
use crate::error::{Error, Kind, Result};
use crate::row::Row;
use crate::settings::Settings;

/// The connection for a key; made with these settings if there is none yet.
#[derive(Message)]
#[rtype(result = "Result<ConnectionHandle>")]
pub struct OpenConnection {
    pub target: Target,
    pub settings: Settings,
}

/// A connection as its users hold it.
#[derive(Clone)]
pub struct ConnectionHandle {
    pub connection: Addr<Connection>,
    pub jetstream: Addr<JetStream>,
    pub key_value: Addr<KeyValue>,
    pub object_store: Addr<ObjectStore>,
    pub status: watch::Receiver<ConnectionStatus>,
    /// Of the foreign server, when the connection was made.
    pub(super) server_name: Arc<str>,
    /// Counts the users; one is the supervisor itself.
    pub(super) users: Arc<()>,
    /// Counts the sessions among them.
    pub(super) sessions: Arc<AtomicUsize>,
}

/// A session's place at a connection, until it is dropped.
pub struct SessionGuard(Arc<AtomicUsize>);

impl ConnectionHandle {
    pub fn session(&self) -> SessionGuard {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        SessionGuard(self.sessions.clone())
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A session no longer uses the connection of this key.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConnectionLeft(pub Key);

/// A database is gone, or takes no more connections.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DatabaseDropped(pub u32);

/// Which user mappings have a connection to a server.
#[derive(Message)]
#[rtype(result = "Vec<u32>")]
pub struct MappingsInUse {
    pub database: u32,
    pub server: u32,
}

/// Gives the connections of a server new settings by user mapping; those without settings are closed.
#[derive(Message)]
#[rtype(result = "Result<()>")]
pub struct ReloadServer {
    pub database: u32,
    pub server: u32,
    pub settings: Vec<(u32, Option<Settings>)>,
    /// Connect anew even if nothing changed (the surface's `reload_conf_force`).
    pub force: bool,
    pub limit: Duration,
}

/// Whether the connection for a key has these settings; `None` if there is none.
#[derive(Message)]
#[rtype(result = "Option<bool>")]
pub struct CompareSettings(pub Key, pub Settings);

/// A row for each connection.
#[derive(Message)]
#[rtype(result = "Vec<Row>")]
pub struct ConnectionRows;

/// Has the connections of a database count anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResetConnections(pub u32);

/// Stops all connections, which first write what they hold.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FinishConnections(pub Duration);

/// Has the actor panic; for tests.
#[cfg(debug_assertions)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

/// For whoever finds an actor stopped.
pub fn stopped() -> Error {
    Error::new(
        Kind::RuntimeLost,
        "the litmus_pgnats runtime worker is shutting down",
    )
}
