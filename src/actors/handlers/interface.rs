//! The messages that the registries take, and whom they tell of messages. Pure.

use std::sync::Arc;

use actix::prelude::*;

use crate::row::Row;

use super::handler::MessageHandler;
use super::queue::Incoming;
use crate::channel::work::Definition;

/// What a database defines now; answered when it has taken effect.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Apply {
    pub database: u32,
    pub definitions: Vec<Definition>,
}

/// A row for each handler of a database: what the views show.
#[derive(Message)]
#[rtype(result = "Vec<Row>")]
pub struct HandlerRows(pub u32);

/// Has the handlers of a database count anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResetHandlers(pub u32);

/// A handler's queue is no longer empty.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ready(pub Arc<MessageHandler>);

/// Tells who subscribed about its messages.
pub trait Sink: Clone + Unpin + 'static {
    /// The handler's queue is no longer empty.
    fn ready(&self, handler: &Arc<MessageHandler>);
    /// The queue has no room for a message.
    fn refused(&self, handler: &Arc<MessageHandler>, message: Incoming);
}
