//! The messages that `PatroniWatcher` and `RoleNotifier` take, and the message that tells of a fence. Pure.

use std::collections::BTreeSet;

use actix::prelude::*;

use crate::channel::target::Source;
use crate::patroni::Member;

/// The addresses of Patroni that the foreign servers of a database name, in place of those before.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Follow {
    pub database: u32,
    pub urls: BTreeSet<String>,
}

/// Asks Patroni at this address who this node is; the error says why Patroni cannot be asked.
#[derive(Message)]
#[rtype(result = "Result<Member, String>")]
pub struct WhoAmI(pub String);

/// Why this node is fenced: Patroni does not take it for the primary. `None` if it is not fenced.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Fence(pub Option<String>);

/// The foreign servers of a database, in place of those before. Those that name a subject are told of the server's
/// role.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Notify {
    pub database: u32,
    pub sources: Vec<Source>,
}
