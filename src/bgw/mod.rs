//! Background workers: each is a process of its own and runs on its main thread; the runtime worker also has the actor
//! thread.
//!
//! - `runtime.rs`: the runtime worker, PostgreSQL's shell around the actor system;
//! - `limits.rs`: the limits of the actors, from the configuration parameters;
//! - `workers.rs`: starts and ends executors and outbox relays for the actors;
//! - `executor.rs`: executors and outbox relays, which carry out the runtime worker's orders;
//! - `definitions.rs`: reads the handlers of a database, `durable_definition.rs`: what only durable subscriptions have;
//! - `former_consumers.rs`: consumers that no durable subscription uses any more;
//! - `sources.rs`: the connections that roles use;
//! - `work.rs`: executes messages, `message_groups.rs`: which messages share a transaction;
//! - `stream_work.rs`: what durable subscriptions have applied, `applied_ranges.rs`: as ranges of sequences;
//! - `stream_positions.rs`: how far durable subscriptions are in other incarnations of their streams;
//! - `outbox_relay.rs`: delivers a database's outbox to the runtime worker, `outbox_read.rs`: the statements for that;
//! - `known_commits.rs`: which commits of an outbox wait;
//! - `dead_letter.rs`: messages that could not be delivered or executed;
//! - `promotion_notifier.rs`: tells the runtime worker when recovery has ended;
//! - `allocator.rs`: ends the runtime worker, and nothing else, when memory runs out; `memory.rs`: gives the runtime worker's freed memory back to the system;
//! - `threads.rs`: threads that PostgreSQL's signals do not reach;
//! - `logging.rs`: what the workers write to the server log.
//!
//! What needs no PostgreSQL (`applied_ranges.rs`, `durable_definition.rs`, `known_commits.rs`, `message_groups.rs`) is
//! tested without it.

mod applied_ranges;
mod durable_definition;
mod known_commits;
mod message_groups;

#[cfg(feature = "pg")]
mod allocator;
#[cfg(feature = "pg")]
mod dead_letter;
#[cfg(feature = "pg")]
mod definitions;
#[cfg(feature = "pg")]
mod executor;
#[cfg(feature = "pg")]
mod former_consumers;
#[cfg(feature = "pg")]
mod limits;
#[cfg(feature = "pg")]
mod logging;
#[cfg(feature = "pg")]
mod memory;
#[cfg(feature = "pg")]
mod outbox_read;
#[cfg(feature = "pg")]
mod outbox_relay;
#[cfg(feature = "pg")]
mod promotion_notifier;
#[cfg(feature = "pg")]
mod runtime;
#[cfg(feature = "pg")]
mod sources;
#[cfg(feature = "pg")]
mod stream_positions;
#[cfg(feature = "pg")]
mod stream_work;
#[cfg(feature = "pg")]
mod threads;
#[cfg(feature = "pg")]
mod work;
#[cfg(feature = "pg")]
mod workers;
