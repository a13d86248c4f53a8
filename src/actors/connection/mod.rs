//! One NATS connection. In the actor thread.
//!
//! - `interface.rs`: the messages that the actor takes;
//! - `actor.rs`: the actor; `actor/events.rs`: what its client reports, `actor/reload.rs`: new settings,
//!   `actor/round_trip.rs`: the round-trip time;
//! - `lifecycle.rs`: the actor's states, without I/O; `held_messages.rs`: what waits while NATS is away;
//! - `delivery.rs`: hands messages and requests to a client;
//! - `status.rs`: what callers may know of a connection, and how they wait for it;
//! - `reconnect_policy.rs`: when to connect again.

mod actor;
pub mod delivery;
mod held_messages;
pub mod interface;
mod lifecycle;
mod reconnect_policy;
pub mod status;

pub use actor::Connection;
