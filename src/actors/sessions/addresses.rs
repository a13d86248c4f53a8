//! Whom sessions speak to. Pure.

use actix::Addr;

use crate::actors::connections::Supervisor;
use crate::actors::dispatcher::Dispatcher;
use crate::actors::ha::PatroniWatcher;
use crate::actors::handlers::responder_registry::ResponderRegistry;
use crate::actors::handlers::subscription_registry::SubscriptionRegistry;
use crate::actors::metrics::counters::Counters;
use crate::actors::outbox::Outbox;

/// Whom sessions speak to, and what counts them.
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
