//! The messages that a connection takes. Pure.

use std::time::Duration;

use actix::prelude::*;
use async_nats::message::OutboundMessage;

use crate::error::Result;
use crate::row::Row;
use crate::settings::Settings;

/// Longest time to establish a connection, names resolved and TLS included.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Publishes in order; answers with what could not be taken because the buffer is full.
#[derive(Message)]
#[rtype(result = "Vec<OutboundMessage>")]
pub struct Publish(pub Vec<OutboundMessage>);

/// Takes over new settings; with `force` on a new connection in any case.
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

/// Takes over settings without a reload, if there never was a connection with the present ones.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReplaceSettings(pub Settings);

/// Somebody waits for the connection: try now instead of after the backoff.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ConnectNow;

/// Writes out what is held, as far as `0` allows, and stops.
#[derive(Message)]
#[rtype(result = "()")]
pub struct FinishConnection(pub Duration);

/// Its row in `litmus_pgnats.connections`.
#[derive(Message)]
#[rtype(result = "Row")]
pub struct DescribeConnection;

/// Counts anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResetConnection;
