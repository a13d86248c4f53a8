//! The messages that a connection takes. Pure.

use std::time::Duration;

use crate::error::Result;
use crate::nats::message::Outbound;
use crate::settings::Settings;
use actix::prelude::*;

/// Longest time to establish a connection, including name resolution and TLS.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Publishes messages in order. The answer is the messages that were not taken, because the buffer is full or the
/// connection has just broken; empty if all were taken.
#[derive(Message)]
#[rtype(result = "Vec<Outbound>")]
pub struct Publish(pub Vec<Outbound>);

/// Takes over new settings, with a new client if they need one or `force` is set. Fails if the new client cannot
/// connect within `limit`; the old client is kept then.
#[derive(Message)]
#[rtype(result = "Result<()>")]
pub struct ReloadConnection {
    pub settings: Settings,
    pub force: bool,
    pub limit: Duration,
}

/// Whether the connection has these settings.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct SettingsMatch(pub Settings);

/// Takes over settings without a reload, if the connection has never been up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReplaceSettings(pub Settings);

/// Somebody waits for the connection: an attempt is made at once, not after the pause, unless connections keep
/// breaking.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConnectNow;

/// Stops the actor. Its client first delivers what it has taken, for this time at most; held messages are given up.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FinishConnection(pub Duration);
