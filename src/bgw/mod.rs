//! Background workers.
//!
//! - `runtime.rs`: the runtime worker, PostgreSQL's shell around the actor system; `limits.rs`: what the actors may hold;
//! - `workers.rs` starts the others for the actors;
//! - `executor.rs`: executors and outbox relays, which are told what to do;
//! - `definitions.rs`: reads what handlers a database has, `durable_definition.rs`: durable subscriptions among them;
//! - `work.rs`: executes messages, `stream_work.rs`: what durable subscriptions have applied;
//! - `outbox_relay.rs`: reads a database's outbox, with `outbox_read.rs`;
//! - `dead_letter.rs`: what could not be delivered or executed;
//! - `promotion_notifier.rs`: tells the runtime when the server takes writes;
//! - `memory.rs`: the runtime gives memory back to the system;
//! - `threads.rs`: a thread that PostgreSQL's signals do not reach;
//! - `logging.rs`: what the workers write to the server log.

mod dead_letter;
mod definitions;
mod durable_definition;
mod executor;
mod limits;
mod logging;
mod memory;
mod outbox_read;
mod outbox_relay;
mod promotion_notifier;
mod runtime;
mod stream_work;
mod threads;
mod work;
mod workers;
