//! What the actors know of the server that they belong to: primary or standby, and who it is. In the actor thread.

use std::sync::atomic::AtomicBool;

use tokio::sync::watch;

/// Primary or standby. The truth is PostgreSQL's recovery state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    pub is_primary: bool,
    pub timeline: u32,
}

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct Identity {
    pub listen_addresses: Vec<String>,
    pub port: u16,
    pub system_identifier: u64,
    /// Tells one start of the server from another.
    pub start: i64,
}

/// Whether a primary that Patroni does not take for one pauses; may change at any time.
#[derive(Debug, Default)]
pub struct Fencing(pub AtomicBool);

/// Who hears of a promotion.
pub type Roles = watch::Receiver<Role>;
