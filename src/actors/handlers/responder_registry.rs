//! The actor that keeps the responders of every database, and how they answer. In the actor thread.

use std::sync::Arc;

use actix::Addr;

use super::handler::MessageHandler;
use super::interface::{Ready, Sink};
use super::queue::Incoming;
use super::registry::Registry;
use super::reply::answer_busy;
use crate::actors::dispatcher::Dispatcher;

/// The actor.
pub type ResponderRegistry = Registry<Requests>;

/// What becomes of a responder's requests.
#[derive(Clone)]
pub struct Requests(pub Addr<Dispatcher>);

impl Sink for Requests {
    fn ready(&self, handler: &Arc<MessageHandler>) {
        self.0.do_send(Ready(handler.clone()));
    }

    fn refused(&self, handler: &Arc<MessageHandler>, request: Incoming) {
        answer_busy(handler, vec![request]);
    }
}
