//! One NATS connection. In the actor thread.
//!
//! - `interface.rs`: the messages that the actor takes;
//! - `actor.rs`: the actor: its client, and the messages held while NATS is away;
//! - `events.rs`: what the client reports, `statistics.rs`: what the connection tells of itself;
//! - `connect.rs`: makes a client from settings;
//! - `requester.rs`: a client that can ask, `delivery.rs`: messages on their way to it, `headers.rs`: their headers;
//! - `status.rs`: what callers may know of a connection, and how they wait for it;
//! - `reconnect_policy.rs`: when to connect again.

mod actor;
pub mod connect;
pub mod delivery;
mod events;
pub mod headers;
pub mod interface;
pub mod reconnect_policy;
pub mod requester;
mod statistics;
pub mod status;

pub use actor::Connection;
