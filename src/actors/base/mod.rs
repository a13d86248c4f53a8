//! What all actors use. In the actor thread.
//!
//! - `tasks.rs`: the registry of all tasks, by name; the panic of a vital one ends the runtime worker;
//! - `backoff.rs`: pauses after failures;
//! - `server_role.rs`: what the actors know of the server's role;
//! - `queue_limits.rs`: how much may wait for executors;
//! - `result_limit.rs`: bounds the rows of an answer to a session.

pub(crate) mod backoff;
pub mod queue_limits;
pub(crate) mod result_limit;
pub(crate) mod server_role;
pub(crate) mod tasks;
