//! What a durable subscription has got of its stream and not acknowledged yet: in its queue, or with an executor. In the
//! actor thread.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// By sequence in the stream.
type PendingMessages = BTreeMap<u64, PendingMessage>;

struct PendingMessage {
    /// There is nothing between this sequence and its own.
    after: u64,
    /// Where it is acknowledged.
    reply: String,
    /// When it came, or JetStream was last told that it is worked on.
    told: Instant,
    /// When the stream took it: microseconds since 1970.
    time_us: i64,
}

/// The messages, and the stream that they are of.
#[derive(Default)]
pub struct AckPending {
    messages: Mutex<PendingMessages>,
    /// Those that will be delivered again, with what `after` was and when the stream took them.
    postponed: Mutex<BTreeMap<u64, (u64, i64)>>,
    stream: Mutex<StreamState>,
    /// There are fewer than before.
    pub fewer: Notify,
}

/// What is known of the stream.
#[derive(Clone, Default)]
pub struct StreamState {
    pub created: String,
    pub base: u64,
    /// All up to this sequence is done with, as executors have said last.
    pub floor: Option<u64>,
}

impl AckPending {
    fn lock(&self) -> MutexGuard<'_, PendingMessages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Messages that are not done with, those that will come again included.
    pub fn undone(&self) -> usize {
        self.count() + self.postponed().len()
    }

    /// When the stream took the first of them, in microseconds since 1970.
    pub fn oldest_us(&self) -> Option<i64> {
        let here = self.lock().values().next().map(|message| message.time_us);
        let to_come = self.postponed().values().next().map(|(_, time_us)| *time_us);
        here.into_iter().chain(to_come).min()
    }

    /// A message was delivered. `false` if it is here already: it will be acknowledged as the new delivery.
    pub fn add(&self, sequence: u64, after: u64, reply: &str, time_us: i64) -> bool {
        let message = PendingMessage {
            after,
            reply: reply.to_string(),
            told: Instant::now(),
            time_us,
        };
        self.lock().insert(sequence, message).is_none()
    }

    /// It is done with: where that is to be said.
    pub fn remove(&self, sequence: u64) -> Option<String> {
        let removed = self.lock().remove(&sequence).map(|message| message.reply);
        self.fewer.notify_one();
        removed
    }

    /// It will be delivered again: where that is to be said.
    pub fn postpone(&self, sequence: u64) -> Option<String> {
        let removed = self.lock().remove(&sequence)?;
        self.postponed()
            .insert(sequence, (removed.after, removed.time_us));
        self.fewer.notify_one();
        Some(removed.reply)
    }

    /// Whether there are messages that will be delivered again.
    pub fn has_postponed(&self) -> bool {
        !self.postponed().is_empty()
    }

    /// Up to this sequence the consumer has nothing more to deliver: what was to come again is gone from the stream, or
    /// somebody else has acknowledged it.
    pub fn forget_up_to(&self, ack_floor: u64) {
        self.postponed().retain(|sequence, _| *sequence > ack_floor);
    }

    /// A message comes again: what `after` was the first time.
    pub fn again(&self, sequence: u64) -> Option<u64> {
        let known = self.lock().get(&sequence).map(|message| message.after);
        known.or_else(|| self.postponed().remove(&sequence).map(|(after, _)| after))
    }

    fn postponed(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, i64)>> {
        self.postponed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// They are of a stream that is gone.
    pub fn clear(&self) {
        self.lock().clear();
        self.postponed().clear();
    }

    /// All of them, which are then no longer here.
    pub fn take_all(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock())
            .into_values()
            .map(|message| message.reply)
            .collect()
    }

    /// Those that JetStream has not heard of for so long, and now does.
    pub fn overdue(&self, time: Duration) -> Vec<String> {
        let mut messages = self.lock();
        let overdue = messages.values_mut().filter(|m| m.told.elapsed() >= time);
        overdue
            .map(|message| {
                message.told = Instant::now();
                message.reply.clone()
            })
            .collect()
    }

    /// The stream that they are of: another one of the same name counts anew.
    pub fn stream(&self) -> StreamState {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The consumer of this stream was found.
    pub fn set_stream(&self, created: &str, base: u64) {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = stream.floor.filter(|_| stream.created == created);
        *stream = StreamState {
            created: created.to_string(),
            base,
            floor,
        };
    }

    /// An executor has committed messages of the stream that was created then.
    pub fn set_floor(&self, created: &str, floor: u64) {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if stream.created == created {
            stream.floor = Some(floor);
        }
    }
}
