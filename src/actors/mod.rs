//! The actor system of the runtime worker: everything that talks to NATS. Knows nothing of the database.
//!
//! One thread runs it all: an actix system on tokio's current-thread runtime.
//!
//! - `gateway.rs` accepts sessions of the control channel; `session.rs` serves one, `session/requests.rs` each of
//!   its requests, `calls.rs` what they ask of NATS;
//! - `load.rs` counts calls in flight, `pace.rs` has the thread rest while many publish;
//! - `supervisor.rs` keeps one connection for all sessions that present the same key;
//! - `connection.rs` is one NATS connection and its state machine, `connection/events.rs` what the NATS server says,
//!   `connection/statistics.rs` what it tells of itself,
//!   `status.rs` what others may know of it, `delivery.rs` what it hands to its client; `connect.rs` makes the client it
//!   is built on, `requester.rs` has it ask;
//! - `jetstream.rs`, `key_value.rs` and `object_store.rs` with `object_read.rs` are NATS's persistent halves on that
//!   connection, `stream_read.rs` is how they read what a stream holds, `rows.rs` bounds what they answer;
//! - `subscription_registry.rs` and `responder_registry.rs` keep the databases' handlers subscribed: both are a
//!   `registry.rs` of `handler.rs`s, each with a `pump.rs` that fills its `queue.rs`;
//! - a durable subscription has a `stream_pump.rs` in its place, which pulls from a `consumer.rs`; `in_hand.rs` is what it
//!   has got and not acknowledged, `acks.rs` acknowledges;
//! - `dispatcher.rs` brings their messages to executors: `pool.rs` keeps these, `task.rs` is what one gets at a time,
//!   `executor_session.rs` talks to one, `host.rs` is who starts them; `dispatcher/databases.rs` has databases looked at;
//! - `outbox.rs` has each database's outbox delivered, by `outbox_delivery.rs`;
//! - `statistics.rs` gathers what the views show: `times.rs` of functions, `tally.rs` and `traffic.rs` of
//!   connections, `transfers.rs` of objects;
//! - `backoff.rs` says how long to wait after failures;
//! - `examine.rs` finds out what is wrong with a connection, with `greeting.rs` and `certificate.rs`;
//! - `role.rs` is what they know of the server; `notifier.rs` tells NATS when it changes, `patroni_watcher.rs` follows Patroni;
//! - `system.rs` starts, watches and stops them.

#![forbid(unsafe_code)]

mod acks;
mod backoff;
mod calls;
mod certificate;
pub mod connect;
pub mod connection;
pub mod consumer;
mod delivery;
pub mod dispatcher;
pub mod examine;
mod executor_session;
pub mod gateway;
mod greeting;
pub mod handler;
pub mod host;
pub mod in_hand;
pub mod jetstream;
pub mod key_value;
mod lane;
mod load;
pub mod notifier;
mod object_read;
pub mod object_store;
pub mod outbox;
mod outbox_delivery;
mod pace;
pub mod patroni_watcher;
pub mod pool;
mod pump;
pub mod queue;
pub mod registry;
pub mod requester;
pub mod responder_registry;
pub mod role;
mod rows;
mod session;
pub mod statistics;
pub mod status;
pub mod steadiness;
mod stream_pump;
mod stream_read;
pub mod subscription_registry;
pub mod supervisor;
pub mod system;
mod tally;
mod task;
pub mod times;
mod traffic;
mod transfers;
