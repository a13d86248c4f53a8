//! Keeps one durable subscription supplied: pulls from its consumer as much as its executors have room for, and finds
//! or creates the consumer again whenever that is lost, until the subscription is removed. A task of the actor thread.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::deliveries::{Answered, Deliveries, Gap};
use super::unreadable::{self, Losses};
use super::{acks, watcher};
use crate::actors::base::backoff::Backoff;
use crate::actors::base::tasks;
use crate::actors::connections::interface::ConnectionHandle;
use crate::actors::handlers::core_subscriber::{has, incoming, next_client};
use crate::actors::handlers::handler::{HandlerState, MessageHandler};
use crate::actors::handlers::interface::Sink;
use crate::actors::handlers::queue::{Incoming, Pushed};
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::{self, Found, HEARTBEAT, Seeker};
use crate::channel::work::Consumer;
use crate::error::{Error, Kind};
use crate::flood::Flood;
use crate::nats::ack;

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
/// JetStream is asked for the consumer's state after this time at the latest: another server may have taken it.
const STATE_INTERVAL: Duration = Duration::from_secs(10);
/// The view says so long what was wrong.
const NOTICE: Duration = Duration::from_secs(60);
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
        if matches!(end, PullEnd::Over) && *handler.state.borrow() == HandlerState::Live {
            supply.losses.note();
        }
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
    /// Messages that another client has acknowledged: they lie between these sequences.
    behind: Option<Gap>,
    /// When the connection has ended while messages were on their way.
    losses: Losses,
    /// What was wrong lately, and until when the view says so.
    notice: Option<(Error, Instant)>,
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
            behind: None,
            losses: Losses::default(),
            notice: None,
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
        let progress = self.handler.ack_pending.progress(&definition.progress);
        let former = self.handler.ack_pending.stream().incarnation;
        let seeker = Seeker {
            stream,
            consumer,
            progress: &progress,
            database: self.handler.database,
            database_name: definition
                .source
                .as_ref()
                .map_or("", |source| source.target.database_name.as_str()),
            function: &definition.function,
            former: Some(former.token.as_str()).filter(|token| !token.is_empty()),
            is_behind: self.behind.is_some(),
        };
        let found = match consumer::find(&api, &seeker).await {
            Ok(found) => found,
            Err(error) if error.kind == Kind::ConnectionLost => return PullEnd::Over,
            Err(error) => return PullEnd::Failed(error),
        };
        self.attach(&found);
        if let Some(gap) = self.behind.take() {
            self.notice_gap(stream, &consumer.durable, gap, found.keeps_messages);
        }
        if self
            .losses
            .are_suspicious(Duration::from_millis(consumer.ack_wait_ms))
        {
            match unreadable::find(&api, &self.handler, stream, consumer, &found).await {
                Ok(messages) if messages.is_empty() => self.losses.clear(),
                Ok(messages) => {
                    self.execute(messages, stream, sink).await;
                    return PullEnd::Lost;
                }
                Err(error) if error.kind == Kind::ConnectionLost => return PullEnd::Over,
                // Without the right to read messages one by one, there is no other way.
                Err(error) => self.report(error),
            }
        }
        let inbox = api.client.client().new_inbox();
        let Ok(messages) = api.client.client().subscribe(inbox.clone()).await else {
            return PullEnd::Over;
        };
        self.handler.lock().undelivered = Some(found.pending);
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
            asked_at: Instant::now(),
            infos,
        };
        pulling.run(messages, informed, sink).await
    }

    /// The consumer was found. Where the stream is another one than before, messages of the former one are forgotten.
    fn attach(&self, found: &Found) {
        let handler = &self.handler;
        let (former, incarnation) = (handler.ack_pending.stream().incarnation, &found.incarnation);
        if handler.ack_pending.set_stream(incarnation.clone(), found.base) {
            let mut changing = handler.lock();
            changing.queue.clear();
            changing.held_until = None;
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

    /// Shows that the handler gets messages, or that its consumer is paused.
    fn show(&mut self, paused: Option<Error>) {
        self.notice.take_if(|(_, until)| *until < Instant::now());
        match paused {
            Some(problem) => {
                self.handler.stall(problem);
                self.look();
            }
            None => self
                .handler
                .set_live(self.notice.as_ref().map(|(notice, _)| notice.clone())),
        }
    }

    /// Learns what waits for a consumer that delivers nothing.
    fn look(&self) {
        if let Some(connection) = self.handler.connection.clone() {
            let handler = self.handler.clone();
            tasks::spawn("question for the state of a paused consumer", async move {
                watcher::look(&handler, &connection).await;
            });
        }
    }

    /// Has messages executed that were found another way, and waits until they are done with.
    async fn execute(&mut self, messages: Vec<Incoming>, stream: &str, sink: &impl Sink) {
        let sequences: Vec<u64> = messages
            .iter()
            .filter_map(|message| message.position.map(|position| position.sequence))
            .collect();
        let unreadable = messages.iter().filter(|message| message.is_unreadable);
        let unreadable = unreadable.filter_map(|message| message.position);
        let names: Vec<String> = unreadable.map(|position| position.sequence.to_string()).collect();
        let text = format!(
            "message {} has headers or a subject that the client library cannot read",
            names.join(", ")
        );
        self.notice(
            stream,
            Error::new(Kind::InvalidHeaders, text).detail(
                "It ends the connection when it is delivered, and was got from the stream another way.",
            ),
        );
        for message in messages {
            let Some((position, reply)) = message.position.zip(message.reply.clone()) else {
                continue;
            };
            let (sequence, time_us) = (position.sequence, message.time_us);
            self.handler
                .ack_pending
                .add(sequence, position.after, &reply, time_us);
            match self.handler.push(message) {
                Pushed::First => sink.ready(&self.handler),
                Pushed::Behind => {}
                // There is no room; the message is found again when there is some.
                Pushed::Refused(_) => drop(self.handler.ack_pending.remove(sequence)),
            }
        }
        while sequences
            .iter()
            .any(|sequence| self.handler.ack_pending.has(*sequence))
        {
            self.handler.ack_pending.fewer.notified().await;
        }
    }

    /// Another client has acknowledged messages of the consumer.
    fn notice_gap(&mut self, stream: &str, durable: &str, gap: Gap, keeps_messages: bool) {
        let Gap { after, before } = gap;
        let fate = if keeps_messages {
            "They are fetched again."
        } else {
            "The stream has removed what was acknowledged."
        };
        let text = format!("another client has taken messages from consumer \"{durable}\"");
        let problem = Error::new(Kind::JetStreamRefused, text).detail(format!(
            "Their sequences lie between {after} and {before}. {fate}"
        ));
        self.notice(stream, problem);
    }

    /// Says in the log, and for a while in the view, what was wrong.
    fn notice(&mut self, stream: &str, problem: Error) {
        if let Some(suppressed) = self.complaints.pass() {
            log::warn!("durable subscription of stream \"{stream}\": {problem}{suppressed}");
        }
        self.notice = Some((problem, Instant::now() + NOTICE));
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
    /// When JetStream was last asked for the consumer's state.
    asked_at: Instant,
    /// Takes the answers to [`Pulling::ask_info`].
    infos: mpsc::Sender<Answered>,
}

impl Pulling<'_> {
    async fn run(
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
