//! The connections of all databases. In the actor thread.
//!
//! - `interface.rs`: the messages that the supervisor takes, and the handle that users of a connection hold;
//! - `lease.rs`: a user's lease of a connection, whose end tells the supervisor;
//! - `supervisor.rs`: the actor: keeps one connection for all users that present the same key;
//! - `usage.rs`: who uses a connection, and when it is to be closed.

pub mod interface;
pub mod lease;
mod supervisor;
mod usage;

pub use supervisor::Supervisor;
