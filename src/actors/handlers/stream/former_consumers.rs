//! Removes consumers that no durable subscription uses any more: on a work queue such a consumer blocks the next one, and
//! on a stream with interest retention it holds every message. A task of the actor thread.

use std::time::Duration;

use actix::Addr;
use futures::future::join_all;
use tokio::time::sleep;

use crate::actors::base::backoff::Backoff;
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::{ConnectionHandle, OpenConnection, stopped};
use crate::actors::connections::lease::ConnectionUser;
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::{self, ownership};
use crate::channel::work::FormerConsumer;
use crate::error::{Error, Kind, Result};
use crate::flood::Flood;

/// Longest wait for JetStream's answer.
const API_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the connection before the pause grows.
const UP_LIMIT: Duration = Duration::from_secs(10);
/// Bounds of the pause between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_LIMIT: Duration = Duration::from_secs(30);

/// Tries until at least one of the consumers is removed. Returns the keys of those that are.
pub async fn remove(supervisor: Addr<Supervisor>, former: Vec<FormerConsumer>) -> Vec<i64> {
    let mut backoff = Backoff::new(PAUSE, PAUSE_LIMIT);
    let mut complaints = Flood::default();
    loop {
        let mut removed = Vec::new();
        // Together, because one may wait for a server that is away.
        let outcomes = join_all(former.iter().map(|consumer| remove_one(&supervisor, consumer)));
        for (consumer, outcome) in former.iter().zip(outcomes.await) {
            match outcome {
                Ok(()) => removed.push(consumer.key),
                Err(error) => complain(consumer, &error, &mut complaints),
            }
        }
        if !removed.is_empty() {
            return removed;
        }
        sleep(backoff.failed()).await;
    }
}

async fn remove_one(supervisor: &Addr<Supervisor>, former: &FormerConsumer) -> Result<()> {
    let open = OpenConnection {
        target: former.source.target.clone(),
        settings: former.source.settings.clone(),
        user: ConnectionUser::Worker,
    };
    let connection = supervisor.send(open).await.unwrap_or_else(|_| Err(stopped()))?;
    let api = up(&connection, former).await?;
    let (stream, durable) = (&former.stream, &former.durable);
    let info = match consumer::existing(&api, stream, durable).await {
        // The consumer has ended with its stream.
        Err(error) if error.kind == Kind::NoStream => return Ok(()),
        info => info?,
    };
    let database = former.source.target.key.database;
    if info.is_some_and(|info| ownership::is_in_use(&info, &former.subscription, database)) {
        log::warn!("consumer \"{durable}\" of stream \"{stream}\" stays, because somebody else uses it");
        return Ok(());
    }
    match consumer::delete(&api, stream, durable).await {
        // The consumer has ended with its stream.
        Err(error) if error.kind == Kind::NoStream => Ok(()),
        deleted => deleted,
    }
}

/// JetStream, once the connection is up.
async fn up(connection: &ConnectionHandle, former: &FormerConsumer) -> Result<Api> {
    let mut status = connection.status.clone();
    let is_up = status.wait_for(|status| status.client.is_some());
    // The outcome shows in whether there is a client.
    drop(tokio::time::timeout(UP_LIMIT, is_up).await);
    Api::of(&connection.status, former.domain.clone(), API_LIMIT)
        .ok_or_else(|| Error::new(Kind::Unreachable, "the connection to the NATS server is not up"))
}

fn complain(former: &FormerConsumer, error: &Error, complaints: &mut Flood) {
    if let Some(suppressed) = complaints.pass() {
        log::warn!(
            "consumer \"{}\" of stream \"{}\", which no durable subscription uses any more, is not removed yet: \
             {error}{suppressed}",
            former.durable,
            former.stream
        );
    }
}
