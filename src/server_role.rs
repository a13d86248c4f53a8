//! Primary or standby, and which server this is. Pure; used by the runtime worker.

#![forbid(unsafe_code)]

/// The server's role, which follows from PostgreSQL's recovery state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerRole {
    pub is_primary: bool,
    pub timeline: u32,
}

/// What identifies the server; nothing here changes while the server runs.
#[derive(Clone, Debug)]
pub struct ServerIdentity {
    pub listen_addresses: Vec<String>,
    pub port: u16,
    pub system_identifier: u64,
    /// When the server started, in microseconds since 2000; tells one start of the server from another.
    pub start: i64,
}
