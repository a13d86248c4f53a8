//! Subscriptions, durable subscriptions and responders: what each has been defined as, and its messages. In the actor thread.
//!
//! - `interface.rs`: the messages that the registries take, and whom they tell of messages;
//! - `registry.rs`: the actor that keeps the handlers of a kind, of which `subscription_registry.rs` and
//!   `responder_registry.rs` are two;
//! - `handler.rs`: a handler, `queue.rs`: its messages that wait for an executor;
//! - `core_subscriber.rs`, `stream_subscriber.rs`: keep a handler subscribed;
//! - `ack_pending.rs`: what a durable subscription has not acknowledged, `acks.rs`: acknowledges;
//! - `reply.rs`: answers requests.

pub mod ack_pending;
pub mod acks;
mod core_subscriber;
pub mod handler;
pub mod interface;
pub mod queue;
pub mod registry;
pub mod reply;
pub mod responder_registry;
mod stream_subscriber;
pub mod subscription_registry;
