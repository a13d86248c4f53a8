//! Background workers.
//!
//! - `runtime.rs`: the runtime worker, PostgreSQL's shell around the actor system;
//! - `threads.rs`: a thread that PostgreSQL's signals do not reach;
//! - `logging.rs`: log records of that thread on their way to the server log.

mod logging;
pub mod runtime;
mod threads;
