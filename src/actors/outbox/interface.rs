//! The messages that the outbox actor takes, besides those about its workers. Pure.

use actix::prelude::*;

/// There may be something in the outbox of this database.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake(pub u32);

/// Whether anything may be delivered: not on a standby, nor while the server is fenced.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enable(pub bool);
