//! Keeps one handler subscribed to a subject of core NATS: subscribes again after every reconnect and reload, until the
//! handler is removed. A task of the actor thread.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::handler::{HandlerState, MessageHandler};
use super::interface::Sink;
use super::queue::{Incoming, Pushed};
use crate::actors::client::{NatsClient, SendFailure, Subscriber};
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::connections::interface::ConnectionHandle;
use crate::error::{Error, Kind};
use crate::nats::message::Message;

/// After this time without the NATS server's confirmation of a subscription, the handler shows that as its problem.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);

/// Keeps the handler subscribed until `stop` is cancelled.
pub async fn run(
    handler: Arc<MessageHandler>,
    connection: ConnectionHandle,
    sink: impl Sink,
    stop: CancellationToken,
) {
    let mut status = connection.status.clone();
    while let Some((client, generation)) = next_client(&mut status, &stop).await {
        match subscribe(&handler, &client) {
            Ok(messages) => {
                let mut replaced = status.clone();
                let gone = async { drop(replaced.wait_for(|now| !has(now, generation)).await) };
                serve(&handler, &client, messages, &sink, gone, &stop).await;
            }
            // The client has lost its connection, or is about to end.
            Err(_) => log::warn!("could not subscribe: the connection has just ended"),
        }
        if stop.is_cancelled() {
            return;
        }
        handler.set_state(HandlerState::Waiting);
        // A subscription that has ended by itself waits for another client.
        tokio::select! {
            outcome = status.wait_for(|now| !has(now, generation)) => if outcome.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

fn subscribe(handler: &MessageHandler, client: &NatsClient) -> Result<Subscriber, SendFailure> {
    let definition = handler.definition();
    client.subscribe(&definition.subject, definition.queue_group.as_deref())
}

/// Takes messages until the client is gone or the handler is removed. The handler becomes live when the NATS server has
/// answered a round trip, and not before: by then the server has read the subscription.
async fn serve(
    handler: &Arc<MessageHandler>,
    client: &NatsClient,
    mut messages: Subscriber,
    sink: &impl Sink,
    gone: impl Future<Output = ()>,
    stop: &CancellationToken,
) {
    let (mut gone, mut stopped) = (pin!(gone), pin!(stop.cancelled()));
    let (mut confirmed, mut late) = (pin!(client.round_trip()), pin!(sleep(CONFIRM_LIMIT)));
    let (mut is_decided, mut is_late) = (false, false);
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => take(handler, message, sink),
                None => break,
            },
            outcome = &mut confirmed, if !is_decided => {
                is_decided = true;
                if outcome.is_ok() {
                    handler.set_live(None);
                }
            }
            () = &mut late, if !is_decided && !is_late => {
                is_late = true;
                report_unconfirmed(handler);
            }
            () = &mut gone => break,
            () = &mut stopped => break,
        }
    }
    messages.unsubscribe();
    while let Some(Some(message)) = messages.next().now_or_never() {
        take(handler, message, sink);
    }
}

fn report_unconfirmed(handler: &MessageHandler) {
    let definition = handler.definition();
    let what = definition.kind.describe(&definition.subject);
    log::warn!(
        "the NATS server has not confirmed the {what} for {}",
        definition.function
    );
    let problem = "the NATS server has not confirmed the subscription";
    handler.stall(Error::new(Kind::Timeout, problem));
}

fn take(handler: &Arc<MessageHandler>, message: Message, sink: &impl Sink) {
    match handler.push(incoming(message)) {
        Pushed::First => sink.ready(handler),
        Pushed::Behind => {}
        Pushed::Refused(message) => sink.refused(handler, message),
    }
}

/// Turns a message into one that can wait for an executor.
pub fn incoming(message: Message) -> Incoming {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Incoming {
        headers: message.headers(),
        subject: message.subject,
        reply: message.reply,
        // The payload is copied, because it is a slice of all that was read from the socket with it.
        payload: Bytes::copy_from_slice(&message.payload),
        arrived: Instant::now(),
        // A clock before 1970 has not been set, and counts as 1970.
        time_us: since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
        position: None,
        deaths: 0,
    }
}

/// Whether the connection is up with the client of this generation.
pub fn has(status: &ConnectionStatus, generation: u64) -> bool {
    status.client.is_some() && status.generation == generation
}

/// Waits until the connection is up; returns its client and the client's generation. `None` if the handler is removed
/// or the connection has ended.
pub async fn next_client(
    status: &mut watch::Receiver<ConnectionStatus>,
    stop: &CancellationToken,
) -> Option<(NatsClient, u64)> {
    tokio::select! {
        up = status.wait_for(|status| status.client.is_some()) => {
            let up = up.ok()?;
            up.client.clone().map(|client| (client, up.generation))
        }
        () = stop.cancelled() => None,
    }
}
