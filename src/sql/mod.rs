//! The SQL surface. Runs in backends, and in executors where a handler's function calls an SQL function; on the main
//! thread.
//!
//! The functions, a file a topic:
//!
//! - `publish.rs`, `request.rs`, `jetstream.rs`, `key_value.rs`, `object_store.rs`, `server_info.rs`, `reload.rs`,
//!   `version.rs`: the functions of these names;
//! - `outbox.rs`: messages that are rows of the transaction, `dead_letters.rs`: what could not be delivered;
//! - `handlers.rs`: subscriptions and responders, `stream_handlers.rs`: durable subscriptions, `stream_alter.rs`:
//!   changes them, `stream_control.rs`: their verbs, `stream_options.rs`: their arguments;
//! - `statistics.rs`: what the views show, `doctor.rs`: what is wrong;
//! - `arguments.rs`: arguments that several take, `answers.rs`: the runtime worker's replies as results;
//! - `faults.rs`: faults on demand, for the tests.
//!
//! What they stand on:
//!
//! - `session.rs`: the session with the runtime worker, `call.rs`: what functions send to the runtime worker,
//!   `transaction_end.rs`: what is sent at the end of a statement or a transaction;
//! - `on_commit.rs`: publishes that wait for the commit, `changes.rs`: changes of handlers and of what they depend on;
//! - `server.rs`: which foreign server a call means, and whether the role may use it;
//! - `own_tables.rs`: the extension's own tables;
//! - `parameters.rs`: the configuration parameters;
//! - `fdw.rs`: the validator of the foreign-data wrapper;
//! - `exclusive_databases.rs`: drains a database before DROP DATABASE and similar statements.

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
pub mod session;
mod statistics;
mod stream_alter;
mod stream_control;
mod stream_handlers;
mod stream_options;
pub mod transaction_end;
mod version;
