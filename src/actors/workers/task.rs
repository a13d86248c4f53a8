//! A task: messages of one handler that an executor gets at once, and what becomes of them. A plain struct; in the
//! actor thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::messages::WorkerOrder;
use crate::actors::handlers::handler::{HandlerState, MessageHandler};
use crate::actors::handlers::queue::Incoming;
use crate::actors::handlers::reply::answer_busy;
use crate::actors::handlers::stream::ack_pending::KnownStream;
use crate::actors::metrics::in_flight::CallInFlight;
use crate::channel::progress::Incarnation;
use crate::channel::work::{Definition, Delivered, HandlerKind, StreamWork, ToWorker, Work};
use crate::channel::worker_id::WorkerId;

/// Most messages that go to an executor at once.
const WORK_MESSAGES: usize = 256;
/// Most bytes that go to an executor at once; a first message may be larger.
const WORK_BYTES: usize = 1 << 20;
/// An executor gets about so much work at once: little for a responder, whose requests several executors may share.
const SUBSCRIPTION_SHARE: Duration = Duration::from_millis(20);
const RESPONDER_SHARE: Duration = Duration::from_millis(2);
/// A message that so many executors have died with is a poison message, and given up.
const MAX_DEATHS: u32 = 2;

/// Messages of one handler that an executor has.
pub struct Task {
    /// The executor.
    worker: WorkerId,
    pub handler: Arc<MessageHandler>,
    pub messages: VecDeque<Incoming>,
    /// Number of messages, from the first on, whose transaction is about to commit.
    pub committing: u32,
    /// When the executor got the task, or last reported a transaction.
    pub since: Instant,
    /// For a durable subscription: the stream that the messages come from.
    pub incarnation: Arc<Incarnation>,
    /// Counts the task as a call in flight: somebody may wait for the outcome, so the thread must not pause for wake-up
    /// coalescing.
    _in_flight: CallInFlight,
}

impl Task {
    /// Takes messages of a handler for an executor; returns the task and the order to send. `None` if there are no
    /// messages.
    pub fn take(
        handler: &Arc<MessageHandler>,
        worker: WorkerId,
        in_flight: CallInFlight,
    ) -> Option<(Task, WorkerOrder)> {
        let timeout = handler.responder_timeout();
        if handler.is_responder() {
            // Nobody waits for expired requests any longer.
            let expired = handler.lock().queue.expired(timeout);
            answer_busy(handler, expired);
        }
        let mut changing = handler.lock();
        let definition = changing.definition.clone();
        let most = most_messages(&definition, changing.mean);
        let messages = changing.queue.take(most, WORK_BYTES);
        let oldest_us = messages.first()?.time_us;
        changing.at_work.insert(worker, oldest_us);
        drop(changing);
        let stream = handler.ack_pending.stream();
        let order = order(&definition, timeout, &stream, &messages)?;
        let task = Task {
            worker,
            handler: handler.clone(),
            messages: messages.into(),
            committing: 0,
            since: Instant::now(),
            incarnation: stream.incarnation,
            _in_flight: in_flight,
        };
        Some((task, order))
    }

    /// Takes the first `count` messages, which are done with.
    pub fn done(&mut self, count: usize) -> Vec<Incoming> {
        let done = self.messages.drain(..count.min(self.messages.len())).collect();
        if let Some(next) = self.messages.front() {
            self.handler.lock().at_work.insert(self.worker, next.time_us);
        }
        done
    }

    /// Whether the messages are of the stream that is there now, or the handler has none.
    pub fn is_present(&self) -> bool {
        self.handler.ack_pending.is_present(&self.incarnation.token)
    }

    /// Ends the task: messages that are left go back to the handler, which is returned. Those of a former stream are
    /// dropped: when that stream is back, they are delivered again.
    pub fn end(self) -> Arc<MessageHandler> {
        let is_present = self.is_present();
        let mut changing = self.handler.lock();
        changing.at_work.remove(&self.worker);
        if is_present && *self.handler.state.borrow() != HandlerState::Over {
            changing.queue.give_back(self.messages.into_iter());
        }
        drop(changing);
        self.handler
    }

    /// The executor has died in the middle of the task. Counts that for the messages, and gives up those that must not
    /// be repeated and those that are poison messages.
    pub fn executor_died(&mut self) {
        if self.handler.definition().consumer.is_some() {
            // The subscription's own table tells what was committed, and the next executor gives poison messages up.
            for message in &mut self.messages {
                message.deaths += 1;
            }
            return;
        }
        // The transaction of these messages was about to commit, or has committed. At most once is promised, so they
        // are not repeated.
        let unsure = (self.committing as usize).min(self.messages.len());
        if unsure > 0 {
            self.messages.drain(..unsure);
            self.handler
                .dropped(unsure, "their executor ended while their transaction committed");
            return;
        }
        for message in &mut self.messages {
            message.deaths += 1;
        }
        let before = self.messages.len();
        self.messages.retain(|message| message.deaths < MAX_DEATHS);
        let given_up = before - self.messages.len();
        if given_up > 0 {
            self.handler.dropped(given_up, "executors have died with them");
        }
    }
}

/// How many messages go to an executor together. `mean` is the mean time of one.
fn most_messages(definition: &Definition, mean: Option<Duration>) -> usize {
    // A function that takes many messages in one call gets a whole batch.
    if let Some(batch_size) = definition.batch_size {
        return batch_size as usize;
    }
    let share = match definition.kind {
        HandlerKind::Responder => RESPONDER_SHARE,
        HandlerKind::Subscription | HandlerKind::Stream => SUBSCRIPTION_SHARE,
    };
    // A function that has not run yet gets one message, because its time is not known.
    let most = mean.map_or(1, |mean| share.as_nanos() / mean.as_nanos().max(1));
    usize::try_from(most)
        .unwrap_or(WORK_MESSAGES)
        .clamp(1, WORK_MESSAGES)
}

/// The order for the executor, and the payloads as the frame's body; `None` if there are no messages.
fn order(
    definition: &Definition,
    timeout: Duration,
    stream: &KnownStream,
    messages: &[Incoming],
) -> Option<WorkerOrder> {
    let first = messages.first()?.arrived;
    let mut body = BytesMut::with_capacity(messages.iter().map(|m| m.payload.len()).sum());
    for message in messages {
        body.extend_from_slice(&message.payload);
    }
    let is_responder = definition.kind == HandlerKind::Responder;
    let server = definition.source.as_ref().map(|source| source.target.key.server);
    let work = Work {
        kind: definition.kind,
        function: definition.function_oid,
        role: definition.role,
        // Only handlers whose server is known get messages, so this is never 0.
        server: server.unwrap_or(0),
        subject: definition.subject.clone(),
        timeout_ms: if is_responder { milliseconds(timeout) } else { 0 },
        is_batch: definition.batch_size.is_some(),
        stream: definition.consumer.as_ref().map(|consumer| StreamWork {
            id: consumer.id.clone(),
            resumed: consumer.resumed,
            incarnation: Incarnation::clone(&stream.incarnation),
            base: stream.base,
            max_deliveries: consumer.max_deliveries,
            stop_on_failure: consumer.stop_on_failure,
        }),
        messages: messages.iter().map(|message| delivered(message, first)).collect(),
    };
    Some((ToWorker::Work(Box::new(work)), body.freeze()))
}

fn delivered(message: &Incoming, first: Instant) -> Delivered {
    Delivered {
        subject: message.subject.clone(),
        reply: message.reply.clone().filter(|_| message.position.is_none()),
        headers: message.headers.clone(),
        size: u32::try_from(message.payload.len()).unwrap_or(u32::MAX),
        after_ms: milliseconds(message.arrived.duration_since(first)),
        time_us: message.time_us,
        position: message.position,
        is_poison: message.deaths >= MAX_DEATHS,
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
