//! Keeps one handler subscribed: again after every reconnect and reload, until it is taken away. A task of the actor
//! thread.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::Subscriber;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::handler::{HandlerState, MessageHandler};
use super::interface::Sink;
use super::queue::{Incoming, Pushed};
use crate::actors::connection::requester::Requester;
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::connections::interface::ConnectionHandle;

/// Longest time for the NATS server to confirm a subscription.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);

/// Runs until `stop` is true.
pub async fn run(
    handler: Arc<MessageHandler>,
    connection: ConnectionHandle,
    sink: impl Sink,
    mut stop: watch::Receiver<bool>,
) {
    let mut status = connection.status.clone();
    loop {
        let Some((client, generation)) = client(&mut status, &mut stop).await else {
            return;
        };
        let Ok(mut messages) = subscribe(&handler, &client).await else {
            // The client is lost; the status will say so.
            let _ = status.changed().await;
            continue;
        };
        let mut replaced = status.clone();
        {
            let mut gone =
                std::pin::pin!(replaced.wait_for(|s| s.client.is_none() || s.generation != generation));
            let mut stopped = std::pin::pin!(stop.wait_for(|stop| *stop));
            loop {
                tokio::select! {
                    message = messages.next() => match message {
                        Some(message) => take(&handler, message, &sink),
                        None => break,
                    },
                    _ = &mut gone => break,
                    _ = &mut stopped => break,
                }
            }
        }
        let _ = messages.unsubscribe().await;
        while let Some(Some(message)) = messages.next().now_or_never() {
            take(&handler, message, &sink);
        }
        if *stop.borrow() {
            return;
        }
        handler.set_state(HandlerState::Waiting);
        if !*stop.borrow()
            && status.borrow().client.as_ref().is_some()
            && status.borrow().generation == generation
        {
            // The subscription has ended by itself: wait for the client to be replaced.
            let _ = status.changed().await;
        }
    }
}

/// Subscribes, and waits until the server must know of it.
async fn subscribe(handler: &Arc<MessageHandler>, client: &Requester) -> Result<Subscriber, ()> {
    let definition = handler.definition();
    let subject = definition.subject.clone();
    let subscribed = match &definition.queue_group {
        Some(group) => client.client().queue_subscribe(subject, group.clone()).await,
        None => client.client().subscribe(subject).await,
    };
    let messages = subscribed.map_err(|error| log::warn!("could not subscribe: {error}"))?;
    let _ = timeout(CONFIRM_LIMIT, client.round_trip()).await;
    handler.set_state(HandlerState::Live);
    Ok(messages)
}

fn take(handler: &Arc<MessageHandler>, message: async_nats::Message, sink: &impl Sink) {
    match handler.push(incoming(message)) {
        Pushed::First => sink.ready(handler),
        Pushed::Behind => {}
        Pushed::Refused(message) => sink.refused(handler, message),
    }
}

/// A message of the client as it waits for an executor.
pub fn incoming(message: async_nats::Message) -> Incoming {
    let headers = message.headers.iter().flat_map(|headers| headers.iter());
    let headers = headers.flat_map(|(name, values)| {
        values
            .iter()
            .map(move |value| (name.to_string(), value.as_str().to_string()))
    });
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Incoming {
        subject: message.subject.to_string(),
        reply: message.reply.map(|reply| reply.to_string()),
        headers: headers.collect(),
        // Copied, because it is a slice of all that was read from the socket with it.
        payload: Bytes::copy_from_slice(&message.payload),
        arrived: Instant::now(),
        time_us: since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(0)),
        place: None,
        deaths: 0,
    }
}

/// Waits until the connection is up: its client, and which one it is. `None` if the handler is taken away.
pub async fn client(
    status: &mut watch::Receiver<ConnectionStatus>,
    stop: &mut watch::Receiver<bool>,
) -> Option<(Requester, u64)> {
    loop {
        tokio::select! {
            up = status.wait_for(|status| status.client.is_some()) => {
                let up = up.ok()?;
                if let Some(client) = up.client.clone() {
                    return Some((client, up.generation));
                }
            }
            _ = stop.wait_for(|stop| *stop) => return None,
        }
    }
}
