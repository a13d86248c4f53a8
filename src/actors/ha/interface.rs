//! The messages that the watcher of Patroni and the notifier take, and the one that is told of a fence. Pure.

use std::collections::BTreeSet;

use actix::prelude::*;

use crate::patroni::Member;

use crate::channel::target::Source;

/// The addresses of Patroni that the servers of a database name.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Follow {
    pub database: u32,
    pub urls: BTreeSet<String>,
}

/// Who this node is, in Patroni's words, or why it cannot be asked.
#[derive(Message)]
#[rtype(result = "Result<Member, String>")]
pub struct WhoAmI(pub String);

/// Patroni does not take this node for the primary, for this reason; or it does.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Fence(pub Option<String>);

/// The servers of a database that name a subject.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Notify {
    pub database: u32,
    pub sources: Vec<Source>,
}
