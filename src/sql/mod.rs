//! The SQL surface. Runs in backends, on their only thread.
//!
//! - `publish.rs`, `request.rs`, `jetstream.rs`, `key_value.rs`, `object_store.rs`, `server_info.rs`, `reload.rs`, `version.rs`: the functions, a file a topic;
//! - `handlers.rs`: registering subscriptions and responders, `look.rs`: reading them, `changes.rs`: noticing that they change;
//! - `stream_handlers.rs`: registering durable subscriptions, `durable.rs`: reading them;
//! - `on_commit.rs` and `outbox.rs`: publishes that wait for the commit, `dead_letters.rs`: what could not be delivered;
//! - `statistics.rs`: what the views show, `doctor.rs`: what is wrong;
//! - `call.rs`: the single way from a function to the control channel and back;
//! - `server.rs`: which foreign server a call means, and whether the role may use it;
//! - `fdw.rs`: the validator of the foreign-data wrapper;
//! - `settings.rs`: the configuration parameters;
//! - `errors.rs`: SQLSTATE and hint of each kind of error.

pub mod call;
pub mod changes;
mod dead_letters;
mod doctor;
mod durable;
pub mod errors;
#[cfg(debug_assertions)]
mod faults;
mod fdw;
pub mod handlers;
mod jetstream;
mod key_value;
pub mod look;
mod object_store;
pub mod on_commit;
pub mod outbox;
mod publish;
pub mod reload;
mod request;
pub mod server;
mod server_info;
pub mod settings;
mod statistics;
mod stream_handlers;
mod version;
