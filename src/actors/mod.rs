//! The actor system of the runtime worker: everything that talks to NATS. It has no connection to a database.
//!
//! All of it runs in one thread, the actor thread: an actix system on tokio's current-thread runtime. `system.rs`
//! starts the actors, watches them and stops them. A folder imports only from folders below it in this list, and
//! `docs/design.md` says what each owns:
//!
//! - `sessions`: the runtime's end of the control channel, a task for each backend;
//! - `dispatcher`: brings messages to executors, and has databases' handlers refreshed;
//! - `outbox`: delivers each database's outbox;
//! - `workers`: executors and outbox relays as the actors see them; `doctor`: what is wrong with a connection;
//! - `handlers`: subscriptions and responders with their messages; `ha`: Patroni, and who is told of the server's role;
//! - `connections`: one connection for all sessions that present the same key;
//! - `jetstream`: streams, consumers, key-value buckets and object stores on a connection;
//! - `connection`: one NATS connection, through all its clients;
//! - `client`: a client of NATS, connected to one server;
//! - `metrics`: what is counted; `base`: what all of them use.

#![forbid(unsafe_code)]

pub mod base;
pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod connections;
pub(crate) mod dispatcher;
pub(crate) mod doctor;
pub(crate) mod ha;
pub(crate) mod handlers;
pub(crate) mod jetstream;
pub mod metrics;
pub(crate) mod outbox;
pub(crate) mod sessions;
pub mod system;
pub mod workers;
