//! What an executor gets to do at once: messages of one handler, and what becomes of them. In the actor thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::messages::WorkerOrder;
use crate::actors::handlers::handler::{HandlerState, MessageHandler};
use crate::actors::handlers::queue::Incoming;
use crate::actors::handlers::reply::answer_busy;
use crate::actors::metrics::in_flight::CallInFlight;
use crate::channel::work::{Delivered, HandlerKind, StreamWork, ToWorker, Work};
use crate::channel::worker_id::WorkerId;

/// Most messages, and bytes but for a first message that is larger, that go to an executor at once.
const WORK_MESSAGES: usize = 256;
const WORK_BYTES: usize = 1 << 20;
/// An executor gets about so much work at once: little where several may work side by side.
const SUBSCRIPTION_SHARE: Duration = Duration::from_millis(20);
const RESPONDER_SHARE: Duration = Duration::from_millis(2);
/// A message that so many executors have died with is given up.
const MAX_DEATHS: u32 = 2;
/// Messages that an executor has.
pub struct Task {
    /// Of the executor.
    worker: WorkerId,
    pub handler: Arc<MessageHandler>,
    pub messages: VecDeque<Incoming>,
    /// So many of them are about to commit.
    pub committing: u32,
    pub since: Instant,
    /// Which stream a durable subscription's are of.
    pub stream_created: String,
    /// Somebody may wait for it: the actor thread does not nap.
    _in_flight: CallInFlight,
}

impl Task {
    /// Takes messages of a handler for an executor; `None` if there are none.
    pub fn take(
        handler: &Arc<MessageHandler>,
        worker: WorkerId,
        in_flight: CallInFlight,
    ) -> Option<(Task, WorkerOrder)> {
        let timeout = handler.responder_timeout();
        let mut inner = handler.lock();
        let is_responder = inner.definition.kind == HandlerKind::Responder;
        if is_responder {
            // Nobody waits for them any longer.
            let expired = inner.queue.expired(timeout);
            if !expired.is_empty() {
                drop(inner);
                answer_busy(handler, expired);
                inner = handler.lock();
            }
        }
        let batch_size = inner.definition.batch_size;
        let share = if is_responder {
            RESPONDER_SHARE
        } else {
            SUBSCRIPTION_SHARE
        };
        // Nothing is known of a function that has not run yet.
        let most = inner
            .mean
            .map_or(1, |mean| share.as_nanos() / mean.as_nanos().max(1));
        let most = usize::try_from(most)
            .unwrap_or(WORK_MESSAGES)
            .clamp(1, WORK_MESSAGES);
        // What is called once with many gets all that there is.
        let most = batch_size.map_or(most, |size| size as usize);
        let messages = inner.queue.take(most, WORK_BYTES);
        let (first, oldest_us) = messages
            .first()
            .map(|message| (message.arrived, message.time_us))?;
        let mut body = BytesMut::with_capacity(messages.iter().map(|m| m.payload.len()).sum());
        let delivered = messages.iter().map(|message| {
            body.extend_from_slice(&message.payload);
            Delivered {
                subject: message.subject.clone(),
                reply: message.reply.clone().filter(|_| message.place.is_none()),
                headers: message.headers.clone(),
                size: u32::try_from(message.payload.len()).unwrap_or(u32::MAX),
                after_ms: u32::try_from(message.arrived.duration_since(first).as_millis())
                    .unwrap_or(u32::MAX),
                time_us: message.time_us,
                place: message.place,
                is_poison: message.deaths >= MAX_DEATHS,
            }
        });
        let stream = handler.ack_pending.stream();
        let work = Work {
            kind: inner.definition.kind,
            function: inner.definition.function_oid,
            role: inner.definition.role,
            server: inner
                .definition
                .source
                .as_ref()
                .map_or(0, |source| source.target.key.server),
            subject: inner.definition.subject.clone(),
            timeout_ms: if is_responder {
                u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX)
            } else {
                0
            },
            is_batch: batch_size.is_some(),
            stream: inner.definition.consumer.as_ref().map(|consumer| StreamWork {
                id: consumer.id.clone(),
                stream_created: stream.created.clone(),
                base: stream.base,
                max_deliveries: consumer.max_deliveries,
                stop_on_failure: consumer.stop_on_failure,
            }),
            messages: delivered.collect(),
        };
        inner.at_work.insert(worker, oldest_us);
        drop(inner);
        let task = Task {
            worker,
            handler: handler.clone(),
            messages: messages.into(),
            committing: 0,
            since: Instant::now(),
            stream_created: stream.created,
            _in_flight: in_flight,
        };
        Some((task, (ToWorker::Work(Box::new(work)), body.freeze())))
    }

    /// Takes the first messages, which are done with.
    pub fn done(&mut self, count: usize) -> Vec<Incoming> {
        let done = self.messages.drain(..count.min(self.messages.len())).collect();
        if let Some(next) = self.messages.front() {
            self.handler.lock().at_work.insert(self.worker, next.time_us);
        }
        done
    }

    /// It is over: gives what is left of it back to its handler.
    pub fn end(self) -> Arc<MessageHandler> {
        let mut inner = self.handler.lock();
        inner.at_work.remove(&self.worker);
        if *self.handler.state.borrow() != HandlerState::Over {
            inner.queue.give_back(self.messages.into_iter());
        }
        drop(inner);
        self.handler
    }

    /// The executor has ended in the middle of it: counts that, and gives up what must not or should not be repeated.
    pub fn executor_died(&mut self) {
        if self.handler.definition().consumer.is_some() {
            // The subscription's own table tells what was committed; what kills executors is given up by the next.
            for message in &mut self.messages {
                message.deaths += 1;
            }
            return;
        }
        // Their transaction was about to commit, or has; once is promised, so they are not repeated.
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
