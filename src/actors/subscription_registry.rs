//! The actor that keeps the subscriptions of every database. In the actor thread.

use std::sync::Arc;

use actix::Addr;

use super::dispatcher::{Dispatcher, Ready};
use super::handler::Handler;
use super::pump::Inlet;
use super::queue::Incoming;
use super::registry::Registry;

/// The actor.
pub type SubscriptionRegistry = Registry<Subscriptions>;

/// What becomes of a subscription's messages.
#[derive(Clone)]
pub struct Subscriptions(pub Addr<Dispatcher>);

impl Inlet for Subscriptions {
    fn ready(&self, handler: &Arc<Handler>) {
        self.0.do_send(Ready(handler.clone()));
    }

    /// Core NATS does not deliver again: what has no room is lost, as in every client of NATS.
    fn refused(&self, handler: &Arc<Handler>, _: Incoming) {
        handler.dropped(1, "the queue is full");
    }
}
