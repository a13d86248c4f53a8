//! The messages that the dispatcher takes, besides those of its workers. Pure.

use actix::prelude::*;

use crate::row::Row;

use crate::actors::connections::Supervisor;
use crate::actors::ha::Notifier;
use crate::actors::ha::PatroniWatcher;
use crate::actors::handlers::responder_registry::ResponderRegistry;
use crate::actors::handlers::subscription_registry::SubscriptionRegistry;
use crate::actors::outbox::Outbox;

/// The pool's sizes have changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Resized;

/// A row for each executor.
#[derive(Message)]
#[rtype(result = "Vec<Row>")]
pub struct ExecutorRows;

/// Where what a database defines goes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Registries {
    pub subscriptions: Addr<SubscriptionRegistry>,
    pub responders: Addr<ResponderRegistry>,
    pub notifier: Addr<Notifier>,
    pub patroni: Addr<PatroniWatcher>,
    pub outbox: Addr<Outbox>,
    pub supervisor: Addr<Supervisor>,
}

/// A database's handlers may have changed; answered when that has taken effect.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Refresh(pub u32);

/// A session of this database has called: it is looked at, if it never was.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SessionSeen(pub u32);

/// Looks at these databases, one after another.
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
