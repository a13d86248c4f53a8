//! Brings messages to executors and their outcome back. In the actor thread.
//!
//! - `interface.rs`: the messages that the actor takes;
//! - `actor.rs`: the actor around the pool of executors;
//! - `databases.rs`: has a database's definitions read, hands them on, and leaves a database that somebody wants alone.

mod actor;
mod databases;
pub mod interface;

pub use actor::Dispatcher;
