//! JetStream on a connection. In the actor thread.
//!
//! - `interface.rs`: the messages that the actors take;
//! - `publish.rs`: the actor for acknowledged publishes;
//! - `key_value.rs`: the actor for buckets, `bucket.rs`: one bucket for the time of a call;
//! - `object_store.rs`: the actor for object stores, `object_store/put.rs` and `read.rs`: an object's way in and out;
//! - `api.rs`: requests to JetStream's API, `answers.rs` and `refusals.rs`: its answers and errors;
//! - `consumer.rs`: the consumer of a durable subscription, `consumer/plan.rs`: what that consumer needs,
//!   `consumer/incarnation.rs` and `recognise.rs`: which stream is there;
//! - `stream_read.rs`: reads once what a stream holds under a subject.

mod answers;
pub mod api;
mod bucket;
pub mod consumer;
pub mod interface;
pub mod key_value;
pub mod object_store;
pub mod publish;
mod refusals;
mod stream_read;
