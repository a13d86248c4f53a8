//! Background workers.
//!
//! - `runtime.rs`: the runtime worker, PostgreSQL's shell around the actor system;
//! - `workers.rs` starts the others for the actors;
//! - `executor.rs`: executors, which run users' functions in a database, with `work.rs`;
//!   `stream_work.rs` keeps what durable subscriptions have applied;
//! - `courier.rs`: couriers, which read a database's outbox, with `outbox_read.rs`;
//! - `dead_letter.rs`: what could not be delivered or executed;
//! - `herald.rs`: tells the runtime when the server takes writes;
//! - `hooks.rs`: executors give way to DROP DATABASE and its kin;
//! - `memory.rs`: the runtime gives memory back to the system;
//! - `threads.rs`: a thread that PostgreSQL's signals do not reach;
//! - `logging.rs`: what the workers write to the server log.

mod courier;
mod dead_letter;
mod executor;
mod herald;
pub mod hooks;
pub mod logging;
mod memory;
mod outbox_read;
pub mod runtime;
mod stream_work;
mod threads;

mod work;
mod workers;
