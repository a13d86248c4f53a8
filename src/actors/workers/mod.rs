//! The processes that work for a database, executors and outbox relays, as the actors see them. In the actor thread.
//!
//! - `messages.rs`: what the actor that has started a worker hears of it, and what it orders;
//! - `launcher.rs`: the trait that starts their processes;
//! - `worker_session.rs`: the runtime's end of a worker's control channel;
//! - `task.rs`: what an executor has to do;
//! - `pool.rs`: the executors of each database; `pool/assign.rs`: who does what, `pool/size.rs`: how many there are,
//!   `pool/tests.rs`: tests of all three.

pub mod launcher;
pub(crate) mod messages;
pub(crate) mod pool;
pub(crate) mod task;
pub(crate) mod worker_session;
