//! The registry of all databases' subscriptions, durable ones included, and what becomes of their messages. In the
//! actor thread.

use std::sync::Arc;

use actix::Recipient;

use super::handler::MessageHandler;
use super::interface::{Ready, Sink};
use super::queue::Incoming;
use super::registry::Registry;

/// The actor that keeps all databases' subscriptions, durable ones included.
pub type SubscriptionRegistry = Registry<Subscriptions>;

/// Tells the dispatcher of a subscription's messages, and counts those that the queue has no room for.
#[derive(Clone)]
pub struct Subscriptions(pub Recipient<Ready>);

impl Sink for Subscriptions {
    fn ready(&self, handler: &Arc<MessageHandler>) {
        self.0.do_send(Ready(handler.clone()));
    }

    /// Core NATS does not deliver a message again: a message without room is lost, as in every client of NATS.
    fn refused(&self, handler: &Arc<MessageHandler>, _: Incoming) {
        handler.dropped(1, "the queue is full");
    }
}
