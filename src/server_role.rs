//! Primary or standby, and which server this is. Pure; used by the runtime worker.

/// Primary or standby. The truth is PostgreSQL's recovery state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRole {
    pub is_primary: bool,
    pub timeline: u32,
}

/// What does not change while the server runs.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    pub listen_addresses: Vec<String>,
    pub port: u16,
    pub system_identifier: u64,
    /// Tells one start of the server from another.
    pub start: i64,
}
