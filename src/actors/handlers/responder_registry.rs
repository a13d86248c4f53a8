//! The registry of all databases' responders, and what becomes of their requests. In the actor thread.

use std::sync::Arc;

use actix::Recipient;

use super::handler::MessageHandler;
use super::interface::{Ready, Sink};
use super::queue::Incoming;
use super::registry::Registry;
use super::reply::answer_busy;

/// The actor that keeps all databases' responders.
pub type ResponderRegistry = Registry<Requests>;

/// Tells the dispatcher of a responder's requests, and answers those that the queue has no room for.
#[derive(Clone)]
pub struct Requests(pub Recipient<Ready>);

impl Sink for Requests {
    fn ready(&self, handler: &Arc<MessageHandler>) {
        self.0.do_send(Ready(handler.clone()));
    }

    fn refused(&self, handler: &Arc<MessageHandler>, request: Incoming) {
        answer_busy(handler, vec![request]);
    }
}
