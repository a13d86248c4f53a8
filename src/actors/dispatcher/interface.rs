//! The messages that the dispatcher takes, besides those of its workers. Pure.

use actix::prelude::*;

use crate::actors::connections::Supervisor;
use crate::actors::ha::{PatroniWatcher, RoleNotifier};
use crate::actors::handlers::responder_registry::ResponderRegistry;
use crate::actors::handlers::subscription_registry::SubscriptionRegistry;
use crate::actors::outbox::Outbox;
use crate::channel::statistics::ExecutorRow;

/// The pool's sizes have changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Resized;

/// Asks for a row for each executor.
#[derive(Message)]
#[rtype(result = "Vec<ExecutorRow>")]
pub struct ExecutorRows;

/// The actors that are told what databases define. Sent once, at the start.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Registries {
    pub subscriptions: Addr<SubscriptionRegistry>,
    pub responders: Addr<ResponderRegistry>,
    pub notifier: Addr<RoleNotifier>,
    pub patroni: Addr<PatroniWatcher>,
    pub outbox: Addr<Outbox>,
    pub supervisor: Addr<Supervisor>,
}

/// Refreshes a database, whose handlers may have changed. Answered when the refresh has taken effect, with `false` if
/// that cannot be.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Refresh(pub u32);

/// A session of this database uses a connection: the database is refreshed, if it never was.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionSeen(pub u32);

/// Like [`Refresh`], but answered as soon as the handlers were read.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReadDatabase(pub u32);

/// Refreshes these databases, one after another.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Scan(pub Vec<u32>);

/// The server was promoted, to this timeline, and has these databases.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Promoted {
    pub timeline: u32,
    pub databases: Vec<u32>,
}
