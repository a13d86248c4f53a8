//! The outbox of each database. In the actor thread.
//!
//! - `interface.rs`: the messages that the actor takes;
//! - `actor.rs`: the actor: keeps an outbox relay while there is something to deliver, and sends what the relay reads;
//! - `database_outbox.rs`: what the outbox of one database needs next;
//! - `partition.rs`: which messages may be sent next, and what waits behind a refusal;
//! - `delivery.rs`: delivers a batch to JetStream, `fate.rs`: what becomes of each message.

mod actor;
mod database_outbox;
mod delivery;
mod fate;
pub mod interface;
mod partition;

pub use actor::Outbox;
