//! What only durable subscriptions have. In the actor thread.
//!
//! - `subscriber.rs`: the task that keeps a durable subscription supplied, `pulling.rs`: pulls from its consumer,
//!   `supply.rs`: what outlasts the consumer, `deliveries.rs`: follows the consumer's deliveries;
//! - `watcher.rs`: the task that looks after one that takes no messages;
//! - `ack_pending.rs`: what is not acknowledged, and how far the database is; `acks.rs`: acknowledges messages;
//! - `former_consumers.rs`: removes consumers that are not used any more.

pub mod ack_pending;
pub mod acks;
mod deliveries;
pub mod former_consumers;
mod pulling;
pub mod subscriber;
mod supply;
pub mod watcher;
