//! Brings messages to executors. In the actor thread.
//!
//! - `interface.rs`: the messages that the actor takes;
//! - `actor.rs`: the actor around the pool of executors, `actor/databases.rs`: what concerns a database as a whole.

mod actor;
pub mod interface;

pub use actor::Dispatcher;
