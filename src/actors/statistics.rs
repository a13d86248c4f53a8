//! What the views of schema `litmus_pgnats` show of the runtime, gathered from the actors; none of them asks NATS. In the
//! actor thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::calls::Answer;
use super::gateway::Actors;
use super::load::Load;
use super::queue::Limits;
use super::supervisor::stopped;
use super::transfers::Transfers;
use super::{dispatcher, registry, supervisor};
use crate::channel::counts::Counts;
use crate::channel::message::{Reply, Row, Statistics};
use crate::error::Result;

/// What is counted where no actor does.
#[derive(Clone)]
pub struct Counters {
    pub transfers: Transfers,
    pub channel: Arc<Counts>,
    load: Load,
    limits: Arc<Limits>,
    started: SystemTime,
    reset: Arc<Mutex<SystemTime>>,
}

impl Counters {
    pub fn new(channel: Arc<Counts>, load: Load, limits: Arc<Limits>) -> Self {
        let now = SystemTime::now();
        Counters {
            transfers: Transfers::default(),
            channel,
            load,
            limits,
            started: now,
            reset: Arc::new(Mutex::new(now)),
        }
    }

    fn reset(&self) {
        self.channel.reset();
        *self.reset.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
    }

    /// The one row of `litmus_pgnats.control_channel`.
    fn row(&self) -> Row {
        let reset = *self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        let mut row = vec![
            Some(std::process::id().to_string()),
            Some(seconds(self.started)),
            Some(self.channel.open().to_string()),
            Some(self.load.now().to_string()),
            Some(self.limits.waiting().to_string()),
        ];
        row.extend(self.channel.totals().map(|total| Some(total.to_string())));
        row.push(Some(seconds(reset)));
        row
    }
}

/// The rows of a view.
pub async fn rows(actors: Actors, database: u32, of: Statistics) -> Result<Answer> {
    let rows = match of {
        Statistics::Handlers => {
            let subscriptions = actors.subscriptions.send(registry::Rows(database)).await;
            let responders = actors.responders.send(registry::Rows(database)).await;
            subscriptions.and_then(|rows| Ok([rows, responders?].concat()))
        }
        Statistics::Executors => actors.dispatcher.send(dispatcher::Rows).await,
        Statistics::Connections => actors.supervisor.send(supervisor::Rows).await,
        Statistics::Transfers => Ok(actors.counters.transfers.rows()),
        Statistics::Channel => Ok(vec![actors.counters.row()]),
    };
    Ok((Reply::Rows(rows.map_err(|_| stopped())?), Bytes::new()))
}

/// Counts anew: the handlers and connections of a database, and the control channel.
pub async fn reset(actors: Actors, database: u32) -> Result<Answer> {
    actors.counters.reset();
    let subscriptions = actors.subscriptions.send(registry::Reset(database));
    let responders = actors.responders.send(registry::Reset(database));
    let connections = actors.supervisor.send(supervisor::Reset(database));
    let (subscriptions, responders, connections) = tokio::join!(subscriptions, responders, connections);
    let outcome = subscriptions.and(responders).and(connections);
    outcome.map_err(|_| stopped())?;
    Ok((Reply::Done, Bytes::new()))
}

/// A time as `to_timestamp` takes it.
pub fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64()).to_string()
}

/// A time that something takes, in milliseconds.
pub fn milliseconds(time: Duration) -> String {
    (time.as_secs_f64() * 1000.0).to_string()
}
