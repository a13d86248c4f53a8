//! Keeps one durable subscription supplied: pulls from its consumer as much as its executors have room for, finds or
//! makes the consumer again whenever it is lost, until the subscription is taken away. A task of the actor thread.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, interval_at, sleep, sleep_until};

use super::acks;
use super::core_subscriber::{client, incoming};
use super::handler::{HandlerState, MessageHandler};
use super::interface::Sink;
use super::queue::Pushed;
use crate::actors::base::backoff::backoff;
use crate::actors::connections::interface::ConnectionHandle;
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer;
use crate::actors::jetstream::consumer::{Found, HEARTBEAT, PendingPull};
use crate::channel::work::{Consumer, StreamPosition};
use crate::error::{Error, Kind};
use crate::flood::Flood;
use crate::nats::ack;
use crate::nats::ack::Delivery;

/// For each answer of JetStream's API.
const API_LIMIT: Duration = Duration::from_secs(5);
/// A pull that is silent for so long is lost: JetStream would have said that it is there.
const SILENCE: Duration = Duration::from_millis(HEARTBEAT * 2500);
/// Before the consumer is looked for again; doubled each time, up to the limit.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_LIMIT: Duration = Duration::from_secs(10);
/// Between two questions how many messages a stream still has, while no more of them are asked for.
const PENDING_INTERVAL: Duration = Duration::from_secs(2);
/// Fewest messages to pull ahead.
const LEAST_AHEAD: usize = 16;
/// JetStream is told no more often than this that messages are worked on.
const LEAST_PROGRESS: Duration = Duration::from_millis(300);

/// Why pulling has ended.
enum PullEnd {
    /// The connection has ended, or the subscription.
    Over,
    /// Something is wrong with the consumer, which was there.
    Lost,
    /// It could not be found or made.
    Failed(Error),
}

/// Runs until `stop` is true.
pub async fn run(
    handler: Arc<MessageHandler>,
    connection: ConnectionHandle,
    sink: impl Sink,
    mut stop: watch::Receiver<bool>,
) {
    let mut status = connection.status.clone();
    let mut supply = Supply::new(&handler);
    let mut failures = 0;
    while let Some((_, generation)) = client(&mut status, &mut stop).await {
        let mut replaced = status.clone();
        let mut stopped = stop.clone();
        let end = tokio::select! {
            end = supply.consume(&handler, &connection, &sink) => end,
            _ = replaced.wait_for(|s| s.client.is_none() || s.generation != generation) => PullEnd::Over,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        handler.set_state(HandlerState::Waiting);
        match end {
            PullEnd::Over | PullEnd::Lost => failures = 0,
            PullEnd::Failed(error) => {
                failures += 1;
                supply.complain(&handler, &error);
                handler.lock().trouble = Some(error);
            }
        }
        // A client that has just ended fails at once, and its connection, which runs in this thread too, has yet to hear
        // of it: without a pause it never would.
        tokio::select! {
            () = sleep(backoff(PAUSE, PAUSE_LIMIT, failures)) => {}
            _ = replaced.wait_for(|s| s.client.is_none() || s.generation != generation) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    acks::give_back(&handler);
}

/// What is remembered from one consumer to the next.
struct Supply {
    is_first: bool,
    /// Most messages that are in hand or asked for.
    ahead: usize,
    complaints: Flood,
}

impl Supply {
    fn new(handler: &MessageHandler) -> Supply {
        let definition = handler.definition();
        let batch = definition
            .consumer
            .as_ref()
            .map_or(1, |consumer| consumer.batch_size);
        Supply {
            is_first: true,
            ahead: (batch as usize * 2).max(LEAST_AHEAD),
            complaints: Flood::default(),
        }
    }

    /// Pulls until that ends.
    async fn consume(
        &mut self,
        handler: &Arc<MessageHandler>,
        connection: &ConnectionHandle,
        sink: &impl Sink,
    ) -> PullEnd {
        let definition = handler.definition();
        let (stream, Some(consumer)) = (&definition.subject, &definition.consumer) else {
            return PullEnd::Over;
        };
        let Some(api) = Api::of(&connection.status, consumer.domain.clone(), API_LIMIT) else {
            return PullEnd::Over;
        };
        // What the look has read may be long ago.
        let mut progress = definition.progress.clone();
        let known = handler.ack_pending.stream();
        if known.floor.is_some() {
            progress.floor = known.floor;
            progress.stream_created = Some(known.created.clone());
        }
        let found = match consumer::find(&api, stream, consumer, &progress, self.is_first).await {
            Ok(found) => found,
            Err(error) if error.kind == Kind::ConnectionLost => return PullEnd::Over,
            Err(error) => return PullEnd::Failed(error),
        };
        self.is_first = false;
        if !known.created.is_empty() && known.created != found.stream_created {
            let mut inner = handler.lock();
            inner.queue.clear();
            // It was for a message of the stream that is gone.
            inner.held_until = None;
            drop(inner);
            handler.ack_pending.clear();
        }
        handler.ack_pending.set_stream(&found.stream_created, found.base);
        let inbox = api.client.client().new_inbox();
        let Ok(mut messages) = api.client.client().subscribe(inbox.clone()).await else {
            return PullEnd::Over;
        };
        {
            let mut inner = handler.lock();
            inner.trouble = None;
            inner.undelivered = found.pending;
        }
        handler.set_state(HandlerState::Live);
        let mut count = Count::from(&found);
        let progress = (Duration::from_millis(consumer.ack_wait_ms) / 3).max(LEAST_PROGRESS);
        let mut clock = interval_at(Instant::now() + progress, progress);
        let mut behind = interval_at(Instant::now() + PENDING_INTERVAL, PENDING_INTERVAL);
        let mut heard = Instant::now();
        loop {
            let room = self
                .ahead
                .saturating_sub(handler.ack_pending.count() + count.asked.0);
            if room > 0 && room >= self.ahead / 4 {
                if consumer::pull(&api, stream, &consumer.durable, &inbox, room)
                    .await
                    .is_err()
                {
                    return PullEnd::Over;
                }
                if count.asked.0 == 0 {
                    heard = Instant::now();
                }
                count.asked.0 += room;
            }
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { return PullEnd::Over };
                    heard = Instant::now();
                    let taken = match message.status {
                        None => self.take(handler, consumer, message, &mut count, sink),
                        Some(status) => count.asked.told(status, &message),
                    };
                    if !taken {
                        return PullEnd::Lost;
                    }
                }
                () = handler.ack_pending.fewer.notified() => {}
                _ = clock.tick() => acks::tell_progress(handler, progress),
                _ = behind.tick(), if count.asked.0 == 0 || handler.ack_pending.has_postponed() => {
                    ask_pending(handler, api.clone(), stream, consumer);
                }
                () = sleep_until(heard + SILENCE), if count.asked.0 > 0 => return PullEnd::Lost,
            }
        }
    }

    /// `false` if the consumer has to begin anew.
    fn take(
        &mut self,
        handler: &Arc<MessageHandler>,
        consumer: &Consumer,
        message: async_nats::Message,
        count: &mut Count,
        sink: &impl Sink,
    ) -> bool {
        let mut message = incoming(message);
        let delivery = message.reply.as_deref().and_then(ack::parse);
        let (Some(reply), Some(delivery)) = (message.reply.clone(), delivery) else {
            return true;
        };
        let mut place = count.place(delivery);
        if let Some(after) = handler.ack_pending.again(place.sequence) {
            place.after = after;
        }
        message.place = Some(place);
        handler.lock().undelivered = delivery.pending;
        message.time_us = delivery.time_ns / 1000;
        if !handler
            .ack_pending
            .add(place.sequence, place.after, &reply, message.time_us)
        {
            return true;
        }
        match handler.push(message) {
            Pushed::First => sink.ready(handler),
            Pushed::Behind => {}
            // Large messages: fewer of them at a time.
            Pushed::Refused(_) => {
                self.ahead = (self.ahead / 2).max(1);
                acks::postpone(handler, place.sequence, PAUSE);
                return !consumer.stop_on_failure;
            }
        }
        true
    }

    fn complain(&mut self, handler: &MessageHandler, error: &Error) {
        if let Some(suppressed) = self.complaints.pass() {
            let definition = handler.definition();
            log::warn!(
                "durable subscription of stream \"{}\" for {} waits: {error}{suppressed}",
                definition.subject,
                definition.function
            );
        }
    }
}

/// What is delivered tells how many messages are still to come, but not those that come meanwhile, nor that what waits to
/// be tried again is no longer in the stream.
fn ask_pending(handler: &Arc<MessageHandler>, api: Api, stream: &str, consumer: &Consumer) {
    let (handler, stream, durable) = (handler.clone(), stream.to_string(), consumer.durable.clone());
    actix::spawn(async move {
        if let Ok(info) = consumer::info(&api, &stream, &durable).await {
            handler.lock().undelivered = info.pending;
            handler.ack_pending.forget_up_to(info.ack_floor);
        }
    });
}

/// Follows the consumer's deliveries.
struct Count {
    asked: PendingPull,
    /// Number of the last delivery.
    consumer_sequence: u64,
    /// Of the last message that was delivered for the first time.
    stream_sequence: u64,
}

impl Count {
    fn from(found: &Found) -> Count {
        Count {
            asked: PendingPull::default(),
            consumer_sequence: found.consumer_sequence,
            stream_sequence: found.stream_sequence,
        }
    }

    /// Where a message stands. Between it and the one before there is nothing for this consumer, unless a delivery is
    /// missing: then what is missing will come again, and is not to be taken for done.
    fn place(&mut self, delivery: Delivery) -> StreamPosition {
        self.asked.came();
        let follows = delivery.consumer_sequence == self.consumer_sequence + 1;
        self.consumer_sequence = self.consumer_sequence.max(delivery.consumer_sequence);
        let sequence = delivery.sequence;
        let mut after = sequence.saturating_sub(1);
        if delivery.deliveries == 1 {
            if follows {
                after = after.min(self.stream_sequence);
            }
            self.stream_sequence = self.stream_sequence.max(sequence);
        }
        StreamPosition {
            sequence,
            after,
            deliveries: delivery.deliveries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(sequence: u64, consumer_sequence: u64, deliveries: u32) -> Delivery {
        Delivery {
            sequence,
            consumer_sequence,
            deliveries,
            time_ns: 0,
            pending: 0,
        }
    }

    #[test]
    fn what_lies_between_two_deliveries_is_known_unless_one_is_missing() {
        let mut count = Count {
            asked: PendingPull(9),
            consumer_sequence: 4,
            stream_sequence: 10,
        };
        // Eleven to fourteen are of other subjects.
        assert_eq!(count.place(delivery(15, 5, 1)).after, 10);
        // Again, and then the next.
        assert_eq!(count.place(delivery(8, 6, 2)).after, 7);
        assert_eq!(count.place(delivery(20, 7, 1)).after, 15);
        // The delivery before is missing.
        assert_eq!(count.place(delivery(30, 9, 1)).after, 29);
        assert_eq!(count.place(delivery(33, 10, 1)).after, 30);
        assert_eq!(count.place(delivery(25, 11, 2)).after, 24);
        assert_eq!(count.asked.0, 3);
    }
}
