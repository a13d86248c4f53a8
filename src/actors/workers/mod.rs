//! The processes that work for a database, executors and outbox relays, as the actors see them. In the actor thread.
//!
//! - `messages.rs`: what the actor that has started a worker hears of it, and what it orders;
//! - `launcher.rs`: who starts their processes;
//! - `worker_session.rs`: a worker's connection to the control channel;
//! - `task.rs`: what an executor has to do, `pool.rs`: the executors of each database.

pub mod launcher;
pub(crate) mod messages;
pub(crate) mod pool;
pub(crate) mod task;
pub(crate) mod worker_session;
