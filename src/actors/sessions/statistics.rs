//! The rows of the views of schema `litmus_pgnats`, gathered from the actors and from what they count; NATS is not
//! asked. In the actor thread.

use super::addresses::Addresses;
use super::calls::{CallReply, done};
use crate::actors::connections::interface::stopped;
use crate::actors::dispatcher::interface::ExecutorRows;
use crate::actors::handlers::interface::{HandlerRows, ResetHandlers};
use crate::channel::message::Reply;
use crate::channel::statistics::{Statistics, StatisticsRows};
use crate::error::Result;

/// The rows of a view.
pub async fn rows(actors: Addresses, database: u32, of: Statistics) -> Result<CallReply> {
    let rows = match of {
        Statistics::Handlers => {
            let subscriptions = actors.subscriptions.send(HandlerRows(database));
            let responders = actors.responders.send(HandlerRows(database));
            let mut rows = subscriptions.await.map_err(|_| stopped())?;
            rows.extend(responders.await.map_err(|_| stopped())?);
            StatisticsRows::Handlers(rows)
        }
        Statistics::Executors => {
            let rows = actors.dispatcher.send(ExecutorRows).await;
            StatisticsRows::Executors(rows.map_err(|_| stopped())?)
        }
        Statistics::Connections => StatisticsRows::Connections(actors.counters.connections.rows()),
        Statistics::Transfers => StatisticsRows::Transfers(actors.counters.transfers.rows()),
        Statistics::Channel => StatisticsRows::Channel(actors.counters.channel_row()),
    };
    done(Reply::Statistics(rows))
}

/// Resets the counts of a database's handlers and connections, and those of the control channel.
pub async fn reset(actors: Addresses, database: u32) -> Result<CallReply> {
    actors.counters.reset(database);
    let subscriptions = actors.subscriptions.send(ResetHandlers(database));
    let responders = actors.responders.send(ResetHandlers(database));
    let (subscriptions, responders) = tokio::join!(subscriptions, responders);
    subscriptions.and(responders).map_err(|_| stopped())?;
    done(Reply::Done)
}
