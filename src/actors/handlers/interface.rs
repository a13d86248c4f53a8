//! The messages that the registries take, and the trait by which subscribers report messages. Pure.

use std::sync::Arc;

use actix::prelude::*;

use super::handler::MessageHandler;
use super::queue::Incoming;
use crate::channel::statistics::HandlerRow;
use crate::channel::work::Definition;

/// The handlers that a database defines now. Answered when they have taken effect, or after a few seconds.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Apply {
    pub database: u32,
    pub definitions: Vec<Definition>,
}

/// Asks for the views' rows of a database's handlers.
#[derive(Message)]
#[rtype(result = "Vec<HandlerRow>")]
pub struct HandlerRows(pub u32);

/// Resets the counts of a database's handlers.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResetHandlers(pub u32);

/// A handler's queue is no longer empty.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ready(pub Arc<MessageHandler>);

/// Takes what a subscriber reports about its handler's messages.
pub trait Sink: Clone + Unpin + 'static {
    /// The handler's queue is no longer empty.
    fn ready(&self, handler: &Arc<MessageHandler>);
    /// The queue has no room for a message.
    fn refused(&self, handler: &Arc<MessageHandler>, message: Incoming);
}
