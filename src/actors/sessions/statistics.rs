//! What the views of schema `litmus_pgnats` show of the runtime, gathered from the actors; none of them asks NATS. In the
//! actor thread.

use bytes::Bytes;

use super::addresses::Addresses;
use super::calls::CallReply;
use crate::actors::connections::interface::{ConnectionRows, ResetConnections, stopped};
use crate::actors::dispatcher::interface::ExecutorRows;
use crate::actors::handlers::interface::{HandlerRows, ResetHandlers};
use crate::channel::message::{Reply, Statistics};
use crate::error::Result;

/// The rows of a view.
pub async fn rows(actors: Addresses, database: u32, of: Statistics) -> Result<CallReply> {
    let rows = match of {
        Statistics::Handlers => {
            let subscriptions = actors.subscriptions.send(HandlerRows(database)).await;
            let responders = actors.responders.send(HandlerRows(database)).await;
            subscriptions.and_then(|rows| Ok([rows, responders?].concat()))
        }
        Statistics::Executors => actors.dispatcher.send(ExecutorRows).await,
        Statistics::Connections => actors.supervisor.send(ConnectionRows).await,
        Statistics::Transfers => Ok(actors.counters.transfers.rows()),
        Statistics::Channel => Ok(vec![actors.counters.row()]),
    };
    Ok((Reply::Rows(rows.map_err(|_| stopped())?), Bytes::new()))
}

/// Counts anew: the handlers and connections of a database, and the control channel.
pub async fn reset(actors: Addresses, database: u32) -> Result<CallReply> {
    actors.counters.reset();
    let subscriptions = actors.subscriptions.send(ResetHandlers(database));
    let responders = actors.responders.send(ResetHandlers(database));
    let connections = actors.supervisor.send(ResetConnections(database));
    let (subscriptions, responders, connections) = tokio::join!(subscriptions, responders, connections);
    let outcome = subscriptions.and(responders).and(connections);
    outcome.map_err(|_| stopped())?;
    Ok((Reply::Done, Bytes::new()))
}
