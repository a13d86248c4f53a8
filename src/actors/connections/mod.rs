//! The connections of all databases. In the actor thread.
//!
//! - `interface.rs`: the messages that the supervisor takes, and the handle that users of a connection hold;
//! - `supervisor.rs`: the actor: keeps one connection for all sessions that present the same key.

pub mod interface;
mod supervisor;

pub use supervisor::Supervisor;
