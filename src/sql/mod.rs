//! The SQL surface. Runs in backends, on their only thread, and in executors where a handler's function calls it.
//!
//! The functions, a file a topic:
//!
//! - `publish.rs`, `request.rs`, `jetstream.rs`, `key_value.rs`, `object_store.rs`, `server_info.rs`, `reload.rs`, `version.rs`;
//! - `outbox.rs`: messages that are rows of the transaction, `dead_letters.rs`: what could not be delivered;
//! - `handlers.rs`: registering subscriptions and responders, `stream_handlers.rs`: durable subscriptions;
//! - `statistics.rs`: what the views show, `doctor.rs`: what is wrong;
//! - `arguments.rs`: arguments that several take, `answers.rs`: the runtime's answers as results.
//!
//! What they stand on:
//!
//! - `call.rs`: the single way from a function to the control channel and back;
//! - `on_commit.rs`: publishes that wait for the commit, `changes.rs`: noticing that handlers change;
//! - `server.rs`: which foreign server a call means, and whether the role may use it;
//! - `own_tables.rs`: the extension's own tables;
//! - `parameters.rs`: the configuration parameters;
//! - `fdw.rs`: the validator of the foreign-data wrapper;
//! - `exclusive_databases.rs`: executors give way to DROP DATABASE and its kin.

mod answers;
mod arguments;
pub mod call;
pub mod changes;
mod dead_letters;
mod doctor;
pub mod exclusive_databases;
#[cfg(debug_assertions)]
mod faults;
mod fdw;
mod handlers;
mod jetstream;
mod key_value;
mod object_store;
pub mod on_commit;
pub mod outbox;
pub mod own_tables;
pub mod parameters;
mod publish;
pub mod reload;
mod request;
pub mod server;
mod server_info;
mod statistics;
mod stream_handlers;
mod version;
