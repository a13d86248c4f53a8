//! Keeps one handler subscribed to a subject of core NATS: subscribes again after every reconnect and reload, until the
//! handler is removed. A task of the actor thread.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::handler::{HandlerState, MessageHandler};
use super::interface::Sink;
use super::queue::{Incoming, Pushed};
use crate::actors::base::backoff::{Backoff, full_jitter};
use crate::actors::client::{NatsClient, SubscribeFailure, Subscriber};
use crate::actors::connection::delivery::too_many_subscriptions;
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::connections::interface::ConnectionHandle;
use crate::error::{Error, Kind};
use crate::flood::Flood;
use crate::nats::message::Message;

/// After this time without the NATS server's confirmation of a subscription, the handler shows that as its problem.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);

/// Bounds of the pause before a subscription that the NATS server has refused is tried again.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_LIMIT: Duration = Duration::from_secs(20);

/// Keeps the handler subscribed until `stop` is cancelled.
pub async fn run(
    handler: Arc<MessageHandler>,
    connection: ConnectionHandle,
    sink: impl Sink,
    stop: CancellationToken,
) {
    let mut status = connection.status.clone();
    let (mut backoff, mut complaints) = (Backoff::new(PAUSE, PAUSE_LIMIT), Flood::default());
    while let Some((client, generation)) = next_client(&mut status, &stop).await {
        let mut replaced = status.clone();
        let gone = async { drop(replaced.wait_for(|now| !has(now, generation)).await) };
        let mut gone = pin!(gone);
        let subscribed = tokio::select! {
            subscribed = subscribe(&handler, &client) => subscribed,
            () = &mut gone => Err(SubscribeFailure::Lost),
            () = stop.cancelled() => return,
        };
        match subscribed {
            Ok(messages) => {
                backoff.succeeded();
                handler.set_live(None);
                let end = serve(&handler, messages, &sink, gone, &stop).await;
                handler.set_state(HandlerState::Waiting);
                if end == ServeEnd::Ended && has(&status.borrow_and_update(), generation) {
                    // The server has taken the subscription back, or the client is about to be lost.
                    sleep(full_jitter(PAUSE)).await;
                    continue;
                }
            }
            Err(SubscribeFailure::Lost) => handler.set_state(HandlerState::Waiting),
            // What is refused now may be allowed later, and the server does not tell.
            Err(failure) => {
                refused(&handler, failure, &mut complaints);
                tokio::select! {
                    () = sleep(backoff.failed()) => continue,
                    () = gone => {}
                    () = stop.cancelled() => return,
                }
            }
        }
        // A subscription that has ended by itself waits for another client.
        tokio::select! {
            outcome = status.wait_for(|now| !has(now, generation)) => if outcome.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}

/// Subscribes, and returns when the NATS server has taken the subscription.
async fn subscribe(handler: &MessageHandler, client: &NatsClient) -> Result<Subscriber, SubscribeFailure> {
    let definition = handler.definition();
    let mut confirmed =
        pin!(client.subscribe_confirmed(&definition.subject, definition.queue_group.as_deref()));
    match timeout(CONFIRM_LIMIT, &mut confirmed).await {
        Ok(outcome) => outcome,
        Err(_) => {
            report_unconfirmed(handler);
            confirmed.await
        }
    }
}

/// Shows and logs that the NATS server refuses the subscription.
fn refused(handler: &MessageHandler, failure: SubscribeFailure, complaints: &mut Flood) {
    let definition = handler.definition();
    let problem = match failure {
        SubscribeFailure::TooMany => too_many_subscriptions(&definition.subject),
        SubscribeFailure::Invalid => Error::new(Kind::InvalidSubject, "invalid subject or queue group"),
        SubscribeFailure::Forbidden | SubscribeFailure::Lost => {
            let message = "the NATS server does not let this user subscribe to the subject";
            Error::new(Kind::PermissionDenied, message)
        }
    };
    if let Some(suppressed) = complaints.pass() {
        let what = definition.kind.describe(&definition.subject);
        log::warn!(
            "the {what} for {} gets no messages: {problem}{suppressed}",
            definition.function
        );
    }
    if failure == SubscribeFailure::TooMany {
        handler.stall(problem);
    } else {
        handler.refused(problem);
    }
}

/// Why messages are not taken any more.
#[derive(PartialEq, Eq)]
enum ServeEnd {
    /// The client is gone, or the handler is removed.
    Over,
    /// The subscription has ended by itself.
    Ended,
}

/// Takes messages until the client is gone, the handler is removed, or the subscription ends.
async fn serve(
    handler: &Arc<MessageHandler>,
    mut messages: Subscriber,
    sink: &impl Sink,
    mut gone: Pin<&mut impl Future<Output = ()>>,
    stop: &CancellationToken,
) -> ServeEnd {
    let mut stopped = pin!(stop.cancelled());
    let end = loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => take(handler, message, sink),
                None => break ServeEnd::Ended,
            },
            () = &mut gone => break ServeEnd::Over,
            () = &mut stopped => break ServeEnd::Over,
        }
    };
    messages.unsubscribe();
    while let Some(message) = messages.try_next() {
        take(handler, message, sink);
    }
    end
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
