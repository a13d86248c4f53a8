//! Pulls messages from the consumer of a durable subscription, as many as its executors have room for, until the
//! consumer or the connection is lost. In the actor thread.

use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until};

use super::acks;
use super::deliveries::{Answered, Deliveries};
use super::supply::{PullEnd, Supply};
use crate::actors::base::tasks;
use crate::actors::client::Subscriber;
use crate::actors::handlers::core_subscriber::incoming;
use crate::actors::handlers::handler::HandlerState;
use crate::actors::handlers::interface::Sink;
use crate::actors::handlers::queue::Pushed;
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::{self, HEARTBEAT};
use crate::channel::work::Consumer;
use crate::nats::ack;
use crate::nats::message::{Message, status};

/// A pull without a message or heartbeat for this long is lost: two and a half heartbeats.
const SILENCE: Duration = Duration::from_millis(HEARTBEAT * 2500);
/// After this time JetStream delivers a message again for which the queue had no room.
const POSTPONED: Duration = Duration::from_millis(250);
/// Time between two queries of how many messages a stream still has, while none are pulled or some will be delivered
/// again.
const PENDING_INTERVAL: Duration = Duration::from_secs(2);
/// JetStream is asked for the consumer's state after this time at the latest: another server may have taken it.
const STATE_INTERVAL: Duration = Duration::from_secs(10);
/// JetStream is told of messages in progress no more often than this.
const LEAST_PROGRESS: Duration = Duration::from_millis(300);

/// Pulls from a consumer that was found.
pub struct Pulling<'a> {
    pub supply: &'a mut Supply,
    pub api: Api,
    pub stream: &'a str,
    pub consumer: &'a Consumer,
    pub inbox: String,
    pub deliveries: Deliveries,
    /// When the consumer was last heard of.
    pub heard: Instant,
    /// When JetStream was last asked for the consumer's state.
    pub asked_at: Instant,
    /// Takes the answers to [`Pulling::ask_info`].
    pub infos: mpsc::Sender<Answered>,
}

impl Pulling<'_> {
    /// Pulls until that ends, and says why.
    pub async fn run(
        mut self,
        mut messages: Subscriber,
        mut informed: mpsc::Receiver<Answered>,
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
                Some(answered) = informed.recv() => {
                    if let Some(end) = self.learn(&answered) {
                        return end;
                    }
                }
                () = handler.ack_pending.fewer.notified() => {}
                _ = progress_clock.tick() => acks::tell_progress(&handler, progress),
                _ = pending_clock.tick() => {
                    let is_quiet = asked == 0 || handler.ack_pending.has_postponed() || self.deliveries.gap.is_some();
                    if is_quiet || self.asked_at.elapsed() > STATE_INTERVAL {
                        self.ask_info();
                    }
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
    fn received(&mut self, message: Message, sink: &impl Sink) -> bool {
        self.heard = Instant::now();
        // A stored message may have a status in its headers, which is not the server's.
        let is_stored = message.reply.as_deref().and_then(ack::parse).is_some();
        match message.status.filter(|_| !is_stored) {
            None => self.take(message, sink),
            Some(code) => {
                if code == status::IDLE_HEARTBEAT {
                    // The consumer has nothing to deliver, or is paused.
                    self.ask_info();
                }
                self.deliveries.asked.told(code, &message)
            }
        }
    }

    /// Queues a message. `false` if the consumer has to be found anew.
    fn take(&mut self, message: Message, sink: &impl Sink) -> bool {
        let handler = &self.supply.handler;
        if *handler.state.borrow() == HandlerState::Stalled {
            handler.set_live(None);
        }
        let mut message = incoming(message);
        let delivery = message.reply.as_deref().and_then(ack::parse);
        let (Some(reply), Some(delivery)) = (message.reply.clone(), delivery) else {
            return true;
        };
        if self.deliveries.begins_anew(delivery) {
            return false;
        }
        let mut position = self.deliveries.position(delivery);
        if self.deliveries.gap.is_some() && self.consumer.stop_on_failure {
            // What is missing has to come first.
            return false;
        }
        if let Some(after) = handler.ack_pending.again(position.sequence) {
            position.after = after;
        }
        message.position = Some(position);
        message.time_us = delivery.time_ns / 1000;
        handler.lock().undelivered = Some(delivery.pending);
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
    fn ask_info(&mut self) {
        self.asked_at = Instant::now();
        let consumer_sequence = self.deliveries.consumer_sequence;
        let (api, infos) = (self.api.clone(), self.infos.clone());
        let (stream, durable) = (self.stream.to_string(), self.consumer.durable.clone());
        tasks::spawn("question for the state of a consumer", async move {
            // An error is ignored, because the next query follows soon; so is an answer that nobody waits for, or that
            // comes on top of another one.
            if let Ok(info) = consumer::info(&api, &stream, &durable).await {
                let _ = infos.try_send(Answered {
                    info,
                    consumer_sequence,
                });
            }
        });
    }

    /// Takes the consumer's state. Returns why pulling ends, if it does.
    fn learn(&mut self, answered: &Answered) -> Option<PullEnd> {
        let (handler, info) = (self.supply.handler.clone(), &answered.info);
        if let Some(problem) = consumer::taken(info, handler.database) {
            return Some(PullEnd::Failed(problem));
        }
        if info.delivered.consumer_sequence < answered.consumer_sequence {
            // Another consumer has its name.
            return Some(PullEnd::Lost);
        }
        handler.lock().undelivered = Some(info.num_pending);
        let acknowledged = info.ack_floor.stream_sequence;
        handler.ack_pending.forget_up_to(acknowledged);
        self.deliveries.compare(answered);
        let floor = handler.ack_pending.floor();
        self.deliveries.gap.take_if(|gap| floor + 1 >= gap.before);
        if let Some(gap) = self.deliveries.gap.filter(|gap| acknowledged + 1 >= gap.before) {
            self.supply.behind = Some(gap);
            return Some(PullEnd::Lost);
        }
        self.supply.show(consumer::paused(info));
        None
    }
}
