//! JetStream on a connection. In the actor thread.
//!
//! - `interface.rs`: the messages that the actors take;
//! - `publish.rs`, `key_value.rs`, `object_store.rs`: the actors, with `bucket.rs`, `store.rs` and `object_read.rs`;
//! - `api.rs`: requests to JetStream's API, and acknowledged publishes; `error_codes.rs`: its errors in our terms;
//! - `consumer.rs`: durable consumers of subscriptions, `stream_read.rs`: what a stream holds, read once.

pub mod api;
pub mod consumer;
pub mod interface;
pub mod key_value;
mod object_read;
pub mod object_store;
pub mod publish;
pub mod stream_read;
