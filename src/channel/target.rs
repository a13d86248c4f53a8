//! Which NATS connection is meant, and what a session knows of it. Pure.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// The NATS connection that a session means. All sessions that present the same key share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub key: Key,
    pub database_name: String,
    pub server_name: String,
}

/// Object ids of the database, the foreign server and the user mapping (0: none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    pub database: u32,
    pub server: u32,
    pub mapping: u32,
    /// Process id of a session whose transaction has changed the options and may still roll back, so that the
    /// connection is the session's alone; 0 for a connection that is shared.
    pub private_to: u32,
}

/// What a session must know of its NATS connection so that it can publish without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Whether publishes are taken without a `Barrier`.
    pub up: bool,
    /// The server's limit for headers and payload, in bytes.
    pub max_payload: u64,
    /// Whether the server understands headers.
    pub headers: bool,
}

/// The NATS connection of a handler, of a partition of the outbox or of a server's owner, with its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub target: Target,
    pub settings: Settings,
}
