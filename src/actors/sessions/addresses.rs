//! The actors that sessions talk to. A plain struct; in the actor thread.

use actix::Addr;

use crate::actors::connections::Supervisor;
use crate::actors::dispatcher::Dispatcher;
use crate::actors::ha::PatroniWatcher;
use crate::actors::handlers::responder_registry::ResponderRegistry;
use crate::actors::handlers::subscription_registry::SubscriptionRegistry;
use crate::actors::metrics::counters::Counters;
use crate::actors::outbox::Outbox;

/// The actors that sessions talk to, and the counters that they read.
#[derive(Clone)]
pub struct Addresses {
    pub supervisor: Addr<Supervisor>,
    pub dispatcher: Addr<Dispatcher>,
    pub subscriptions: Addr<SubscriptionRegistry>,
    pub responders: Addr<ResponderRegistry>,
    pub outbox: Addr<Outbox>,
    pub patroni: Addr<PatroniWatcher>,
    pub counters: Counters,
}
