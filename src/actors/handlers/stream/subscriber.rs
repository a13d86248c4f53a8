//! Keeps one durable subscription supplied: finds its consumer, or creates it, and pulls from it, again whenever the
//! consumer or the connection is lost, until the subscription is removed. A task of the actor thread.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::acks;
use super::deliveries::Deliveries;
use super::pulling::Pulling;
use super::supply::{PullEnd, Supply};
use crate::actors::base::backoff::Backoff;
use crate::actors::client::SubscribeFailure;
use crate::actors::client::interface::InboxState;
use crate::actors::connection::delivery::{no_inbox, too_many_subscriptions};
use crate::actors::connections::interface::ConnectionHandle;
use crate::actors::handlers::core_subscriber::{has, next_client};
use crate::actors::handlers::handler::{HandlerState, MessageHandler};
use crate::actors::handlers::interface::Sink;
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::{self, Found, Seeker};
use crate::error::Kind;

/// Longest wait for each answer of JetStream's API.
const API_LIMIT: Duration = Duration::from_secs(5);
/// Bounds of the pause before the consumer is found again.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// Supplies the handler until `stop` is cancelled.
pub async fn run(
    handler: Arc<MessageHandler>,
    connection: ConnectionHandle,
    sink: impl Sink,
    stop: CancellationToken,
) {
    let mut status = connection.status.clone();
    let mut supply = Supply::new(handler.clone());
    let mut backoff = Backoff::new(PAUSE, PAUSE_LIMIT);
    while let Some((_, generation)) = next_client(&mut status, &stop).await {
        let mut replaced = status.clone();
        let end = tokio::select! {
            end = consume(&mut supply, &connection, &sink) => end,
            _ = replaced.wait_for(|now| !has(now, generation)) => PullEnd::Over,
            () = stop.cancelled() => break,
        };
        handler.set_state(HandlerState::Waiting);
        match end {
            PullEnd::Over | PullEnd::Lost => backoff.succeeded(),
            PullEnd::Failed(error) => supply.report(error),
        }
        // A client that has just ended fails at once, and its connection's actor, which runs in this thread too, has
        // yet to hear of that. Without a pause here the actor would never get its turn.
        tokio::select! {
            () = sleep(backoff.failed()) => {}
            _ = replaced.wait_for(|now| !has(now, generation)) => {}
            () = stop.cancelled() => break,
        }
    }
    acks::give_back(&handler);
}

/// Finds the consumer and pulls from it, until pulling ends.
async fn consume(supply: &mut Supply, connection: &ConnectionHandle, sink: &impl Sink) -> PullEnd {
    let definition = supply.handler.definition();
    let (stream, Some(consumer)) = (&definition.subject, &definition.consumer) else {
        return PullEnd::Over;
    };
    let Some(api) = Api::of(&connection.status, consumer.domain.clone(), API_LIMIT) else {
        return PullEnd::Over;
    };
    let progress = supply.handler.ack_pending.progress(&definition.progress);
    let former = supply.handler.ack_pending.stream().incarnation;
    let seeker = Seeker {
        stream,
        consumer,
        progress: &progress,
        database: supply.handler.database,
        database_name: definition
            .source
            .as_ref()
            .map_or("", |source| source.target.database_name.as_str()),
        function: &definition.function,
        former: Some(former.token.as_str()).filter(|token| !token.is_empty()),
        is_behind: supply.behind.is_some(),
    };
    let found = match consumer::find(&api, &seeker).await {
        Ok(found) => found,
        Err(error) if error.kind == Kind::ConnectionLost => return PullEnd::Over,
        Err(error) => return PullEnd::Failed(error),
    };
    attach(supply, &found);
    if let Some(gap) = supply.behind.take() {
        supply.notice_gap(stream, &consumer.durable, gap, found.keeps_messages);
    }
    let inbox = api.client.new_inbox();
    let messages = match api.client.subscribe_confirmed(&inbox, None).await {
        Ok(messages) => messages,
        Err(SubscribeFailure::Lost) => return PullEnd::Over,
        Err(SubscribeFailure::TooMany) => return PullEnd::Failed(too_many_subscriptions(&inbox)),
        Err(SubscribeFailure::Forbidden | SubscribeFailure::Invalid) => {
            return PullEnd::Failed(no_inbox(&api.client, InboxState::Forbidden));
        }
    };
    supply.handler.lock().undelivered = Some(found.pending);
    supply.show(found.paused.clone());
    let (infos, informed) = mpsc::channel(1);
    let pulling = Pulling {
        supply,
        api,
        stream,
        consumer,
        inbox,
        deliveries: Deliveries::from(&found),
        heard: Instant::now(),
        asked_at: Instant::now(),
        infos,
    };
    pulling.run(messages, informed, sink).await
}

/// The consumer was found. Where the stream is another one than before, messages of the former one are forgotten.
fn attach(supply: &mut Supply, found: &Found) {
    let handler = &supply.handler;
    let (former, incarnation) = (handler.ack_pending.stream().incarnation, &found.incarnation);
    if handler.ack_pending.set_stream(incarnation.clone(), found.base) {
        let mut changing = handler.lock();
        changing.queue.clear();
        changing.held_until = None;
        drop(changing);
    }
    let definition = handler.definition();
    let known = &definition.progress.positions;
    let last = (!former.token.is_empty()).then_some(&former.token);
    let last = last.or_else(|| known.first().map(|position| &position.token));
    if last.is_some_and(|last| *last != incarnation.token) {
        let (stream, function) = (&definition.subject, &definition.function);
        let what = match &incarnation.branch {
            Some(branch) => format!(
                "has gone back to message {}, and its later messages are new",
                branch.up_to
            ),
            None if known.iter().any(|position| position.token == incarnation.token) => {
                "is one that had the name before, and is continued where it was left".into()
            }
            None => "is another one than before, and all its messages are new".into(),
        };
        log::warn!("durable subscription of stream \"{stream}\" for {function}: the stream {what}");
    }
}
