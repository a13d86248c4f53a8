//! Keeps one durable subscription supplied: pulls from its consumer as much as its executors have room for, and finds
//! or creates the consumer again whenever that is lost, until the subscription is removed. A task of the actor thread.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::Info;
use async_nats::{StatusCode, Subscriber};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::acks;
use super::core_subscriber::{has, incoming, next_client};
use super::handler::{HandlerState, MessageHandler};
use super::interface::Sink;
use super::queue::Pushed;
use crate::actors::base::backoff::Backoff;
use crate::actors::base::tasks;
use crate::actors::connections::interface::ConnectionHandle;
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::{self, Found, HEARTBEAT, PendingPull};
use crate::channel::work::{Consumer, StreamPosition, StreamProgress};
use crate::error::{Error, Kind};
use crate::flood::Flood;
use crate::nats::ack::{self, Delivery};

/// Longest wait for each answer of JetStream's API.
const API_LIMIT: Duration = Duration::from_secs(5);
/// A pull without a message or heartbeat for this long is lost: two and a half heartbeats.
const SILENCE: Duration = Duration::from_millis(HEARTBEAT * 2500);
/// Bounds of the pause before the consumer is found again.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_LIMIT: Duration = Duration::from_secs(10);
/// After this time JetStream delivers a message again for which the queue had no room.
const POSTPONED: Duration = PAUSE;
/// Time between two queries of how many messages a stream still has, while none are pulled or some will be delivered
/// again.
const PENDING_INTERVAL: Duration = Duration::from_secs(2);
/// Fewest messages to pull ahead.
const LEAST_AHEAD: usize = 16;
/// JetStream is told of messages in progress no more often than this.
const LEAST_PROGRESS: Duration = Duration::from_millis(300);

/// Why pulling has ended.
enum PullEnd {
    /// The connection or the subscription has ended.
    Over,
    /// The consumer was there, and can be used no longer.
    Lost,
    /// The consumer could not be found or made.
    Failed(Error),
}

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
            end = supply.consume(&connection, &sink) => end,
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

/// What outlasts a single consumer.
struct Supply {
    handler: Arc<MessageHandler>,
    /// Most messages that are ack pending or pulled.
    ahead: usize,
    /// The consumer has not been found before.
    is_first: bool,
    complaints: Flood,
}

impl Supply {
    fn new(handler: Arc<MessageHandler>) -> Supply {
        let definition = handler.definition();
        let consumer = definition.consumer.as_ref();
        let batch = consumer.map_or(1, |consumer| consumer.batch_size as usize);
        Supply {
            handler,
            ahead: (batch * 2).max(LEAST_AHEAD),
            is_first: true,
            complaints: Flood::default(),
        }
    }

    /// Finds the consumer and pulls from it, until pulling ends.
    async fn consume(&mut self, connection: &ConnectionHandle, sink: &impl Sink) -> PullEnd {
        let definition = self.handler.definition();
        let (stream, Some(consumer)) = (&definition.subject, &definition.consumer) else {
            return PullEnd::Over;
        };
        let Some(api) = Api::of(&connection.status, consumer.domain.clone(), API_LIMIT) else {
            return PullEnd::Over;
        };
        let progress = self.progress(&definition.progress);
        let found = match consumer::find(&api, stream, consumer, &progress, self.is_first).await {
            Ok(found) => found,
            Err(error) if error.kind == Kind::ConnectionLost => return PullEnd::Over,
            Err(error) => return PullEnd::Failed(error),
        };
        self.is_first = false;
        self.attach(&found);
        let inbox = api.client.client().new_inbox();
        let Ok(messages) = api.client.client().subscribe(inbox.clone()).await else {
            return PullEnd::Over;
        };
        self.handler.lock().undelivered = found.pending;
        self.show(found.paused.clone());
        let (infos, informed) = mpsc::channel(1);
        let pulling = Pulling {
            supply: self,
            api,
            stream,
            consumer,
            inbox,
            deliveries: Deliveries::from(&found),
            heard: Instant::now(),
            infos,
        };
        pulling.run(messages, informed, sink).await
    }

    /// How far the subscription is: as an executor has reported last, or else as the refresh read it from the database.
    fn progress(&self, read: &StreamProgress) -> StreamProgress {
        let known = self.handler.ack_pending.stream();
        if known.ack_floor.is_none() {
            return read.clone();
        }
        StreamProgress {
            ack_floor: known.ack_floor,
            stream_created: Some(known.created),
        }
    }

    /// The consumer was found. If another stream has taken the name, messages of the former stream are forgotten.
    fn attach(&self, found: &Found) {
        let handler = &self.handler;
        let known = handler.ack_pending.stream();
        if !known.created.is_empty() && known.created != found.stream_created {
            let mut changing = handler.lock();
            changing.queue.clear();
            changing.held_until = None;
            drop(changing);
            handler.ack_pending.clear();
        }
        handler.ack_pending.set_stream(&found.stream_created, found.base);
    }

    /// Shows that the handler gets messages, or that its consumer is paused.
    fn show(&self, paused: Option<Error>) {
        match paused {
            Some(problem) => self.handler.stall(problem),
            None => self.handler.set_live(),
        }
    }

    fn report(&mut self, error: Error) {
        if let Some(suppressed) = self.complaints.pass() {
            let definition = self.handler.definition();
            log::warn!(
                "durable subscription of stream \"{}\" for {} waits: {error}{suppressed}",
                definition.subject,
                definition.function
            );
        }
        self.handler.stall(error);
    }
}

/// Pulls from a consumer that was found.
struct Pulling<'a> {
    supply: &'a mut Supply,
    api: Api,
    stream: &'a str,
    consumer: &'a Consumer,
    inbox: String,
    deliveries: Deliveries,
    /// When the consumer was last heard of.
    heard: Instant,
    /// Takes the answers to [`Pulling::ask_info`].
    infos: mpsc::Sender<Info>,
}

impl Pulling<'_> {
    async fn run(
        mut self,
        mut messages: Subscriber,
        mut informed: mpsc::Receiver<Info>,
        sink: &impl Sink,
    ) -> PullEnd {
        let handler = self.supply.handler.clone();
        let progress = (Duration::from_millis(self.consumer.ack_wait_ms) / 3).max(LEAST_PROGRESS);
        let mut progress_clock = interval_at(Instant::now() + progress, progress);
        let mut pending_clock = interval_at(Instant::now() + PENDING_INTERVAL, PENDING_INTERVAL);
        loop {
            if !self.pull().await {
                return PullEnd::Over;
            }
            let asked = self.deliveries.asked.0;
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { return PullEnd::Over };
                    if !self.received(message, sink) {
                        return PullEnd::Lost;
                    }
                }
                Some(info) = informed.recv() => self.learn(&info),
                () = handler.ack_pending.fewer.notified() => {}
                _ = progress_clock.tick() => acks::tell_progress(&handler, progress),
                _ = pending_clock.tick(), if asked == 0 || handler.ack_pending.has_postponed() => {
                    self.ask_info();
                }
                () = sleep_until(self.heard + SILENCE), if asked > 0 => return PullEnd::Lost,
            }
        }
    }

    /// Pulls as many messages as there is room for. `false` if the connection has ended.
    async fn pull(&mut self) -> bool {
        let ahead = self.supply.ahead;
        let taken = self.supply.handler.ack_pending.count() + self.deliveries.asked.0;
        let room = ahead.saturating_sub(taken);
        if room == 0 || room < ahead / 4 {
            return true;
        }
        let pulled = consumer::pull(&self.api, self.stream, &self.consumer.durable, &self.inbox, room);
        if pulled.await.is_err() {
            return false;
        }
        if self.deliveries.asked.0 == 0 {
            self.heard = Instant::now();
        }
        self.deliveries.asked.0 += room;
        true
    }

    /// Takes a message, or a status of the consumer. `false` if the consumer has to be found anew.
    fn received(&mut self, message: async_nats::Message, sink: &impl Sink) -> bool {
        self.heard = Instant::now();
        match message.status {
            None => self.take(message, sink),
            Some(status) => {
                if status == StatusCode::IDLE_HEARTBEAT {
                    // The consumer has nothing to deliver, or is paused.
                    self.ask_info();
                }
                self.deliveries.asked.told(status, &message)
            }
        }
    }

    /// Queues a message. `false` if the consumer has to be found anew.
    fn take(&mut self, message: async_nats::Message, sink: &impl Sink) -> bool {
        let handler = &self.supply.handler;
        if *handler.state.borrow() == HandlerState::Stalled {
            handler.set_live();
        }
        let mut message = incoming(message);
        let delivery = message.reply.as_deref().and_then(ack::parse);
        let (Some(reply), Some(delivery)) = (message.reply.clone(), delivery) else {
            return true;
        };
        let mut position = self.deliveries.position(delivery);
        if let Some(after) = handler.ack_pending.again(position.sequence) {
            position.after = after;
        }
        message.position = Some(position);
        message.time_us = delivery.time_ns / 1000;
        handler.lock().undelivered = delivery.pending;
        let (sequence, after) = (position.sequence, position.after);
        if !handler.ack_pending.add(sequence, after, &reply, message.time_us) {
            return true;
        }
        match handler.push(message) {
            Pushed::First => sink.ready(handler),
            Pushed::Behind => {}
            // The messages are large, so fewer of them are pulled at a time.
            Pushed::Refused(_) => {
                acks::postpone(handler, sequence, POSTPONED);
                self.supply.ahead = (self.supply.ahead / 2).max(1);
                return !self.consumer.stop_on_failure;
            }
        }
        true
    }

    /// Asks JetStream for the state of the consumer: the number of messages that are still to come, the ack floor, and
    /// whether the consumer is paused. Deliveries tell that number too, but not what has been published since, nor that
    /// a message which was to be delivered again is gone from the stream.
    fn ask_info(&self) {
        let (api, infos) = (self.api.clone(), self.infos.clone());
        let (stream, durable) = (self.stream.to_string(), self.consumer.durable.clone());
        tasks::spawn("question for the state of a consumer", async move {
            // An error is ignored, because the next query follows soon; so is an answer that nobody waits for, or that
            // comes on top of another one.
            if let Ok(info) = consumer::info(&api, &stream, &durable).await {
                let _ = infos.try_send(info);
            }
        });
    }

    fn learn(&self, info: &Info) {
        let handler = &self.supply.handler;
        handler.lock().undelivered = info.num_pending;
        handler.ack_pending.forget_up_to(info.ack_floor.stream_sequence);
        self.supply.show(consumer::paused(info));
    }
}

/// Follows the consumer's deliveries.
struct Deliveries {
    asked: PendingPull,
    /// Number of the last delivery.
    consumer_sequence: u64,
    /// Sequence in the stream of the last message that was delivered for the first time.
    stream_sequence: u64,
}

impl Deliveries {
    fn from(found: &Found) -> Deliveries {
        Deliveries {
            asked: PendingPull::default(),
            consumer_sequence: found.consumer_sequence,
            stream_sequence: found.stream_sequence,
        }
    }

    /// The stream position of a delivered message. The stream has no message for this consumer between this one and the
    /// one before, unless a delivery is missing: the missing message will come again, and must not be taken for done.
    fn position(&mut self, delivery: Delivery) -> StreamPosition {
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
        let mut following = Deliveries {
            asked: PendingPull(9),
            consumer_sequence: 4,
            stream_sequence: 10,
        };
        // Messages 11 to 14 have other subjects.
        assert_eq!(following.position(delivery(15, 5, 1)).after, 10);
        // Message 8 is delivered again, and then the next one.
        assert_eq!(following.position(delivery(8, 6, 2)).after, 7);
        assert_eq!(following.position(delivery(20, 7, 1)).after, 15);
        // Delivery 8 is missing.
        assert_eq!(following.position(delivery(30, 9, 1)).after, 29);
        assert_eq!(following.position(delivery(33, 10, 1)).after, 30);
        assert_eq!(following.position(delivery(25, 11, 2)).after, 24);
        assert_eq!(following.asked.0, 3);
    }
}
