//! Subscriptions, durable subscriptions and responders: their definitions and their messages. In the actor thread.
//!
//! - `interface.rs`: the messages that the registries take, and the trait by which subscribers report messages;
//! - `registry.rs`: the actor that keeps the handlers of one kind; `subscription_registry.rs` and
//!   `responder_registry.rs`: its two instances;
//! - `handler.rs`: a handler, `queue.rs`: its messages that wait for an executor;
//! - `core_subscriber.rs`, `stream_subscriber.rs`: the tasks that keep a handler subscribed;
//! - `ack_pending.rs`: what a durable subscription has not acknowledged, `acks.rs`: acknowledges messages;
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
