//! The outbox of each database. In the actor thread.
//!
//! - `interface.rs`: the messages that the actor takes;
//! - `actor.rs`: the actor: keeps an outbox relay while there is something to deliver, and sends what that reads;
//! - `partition.rs`: which messages may be sent next;
//! - `delivery.rs`: a batch on its way to JetStream.

mod actor;
mod delivery;
pub mod interface;
mod partition;

pub use actor::Outbox;
