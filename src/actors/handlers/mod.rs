//! Subscriptions, durable subscriptions and responders: their definitions and their messages. In the actor thread.
//!
//! - `interface.rs`: the messages that the registries take, and the trait by which subscribers report messages;
//! - `registry.rs`: the actor that keeps the handlers of one kind; `subscription_registry.rs` and
//!   `responder_registry.rs`: its two instances;
//! - `handler.rs`: a handler, `queue.rs`: its messages that wait for an executor;
//! - `core_subscriber.rs`: the task that keeps a handler subscribed to a subject;
//! - `stream`: what only durable subscriptions have;
//! - `reply.rs`: answers requests.

mod core_subscriber;
pub mod handler;
pub mod interface;
pub mod queue;
pub mod registry;
pub mod reply;
pub mod responder_registry;
pub mod stream;
pub mod subscription_registry;
