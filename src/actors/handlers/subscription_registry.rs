//! The actor that keeps the subscriptions of every database. In the actor thread.

use std::sync::Arc;

use actix::Addr;

use super::handler::MessageHandler;
use super::interface::{Ready, Sink};
use super::queue::Incoming;
use super::registry::Registry;
use crate::actors::dispatcher::Dispatcher;

/// The actor.
pub type SubscriptionRegistry = Registry<Subscriptions>;

/// What becomes of a subscription's messages.
#[derive(Clone)]
pub struct Subscriptions(pub Addr<Dispatcher>);

impl Sink for Subscriptions {
    fn ready(&self, handler: &Arc<MessageHandler>) {
        self.0.do_send(Ready(handler.clone()));
    }

    /// Core NATS does not deliver again: what has no room is lost, as in every client of NATS.
    fn refused(&self, handler: &Arc<MessageHandler>, _: Incoming) {
        handler.dropped(1, "the queue is full");
    }
}
