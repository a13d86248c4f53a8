//! The messages that the outbox takes, besides those of its workers. Pure.

use actix::prelude::*;

/// There may be something in the outbox of this database.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake(pub u32);

/// Whether anything may be delivered: not by a standby, nor while fenced.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enable(pub bool);
