//! What a durable subscription has got of its stream and not acknowledged yet: in its queue, or with an executor. In the
//! actor thread.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// By sequence in the stream.
type Messages = BTreeMap<u64, Message>;

struct Message {
    /// Where it is acknowledged.
    reply: String,
    /// When it came, or JetStream was last told that it is worked on.
    told: Instant,
}

/// The messages, and the stream that they are of.
#[derive(Default)]
pub struct InHand {
    messages: Mutex<Messages>,
    stream_created: Mutex<String>,
    /// There are fewer than before.
    pub fewer: Notify,
}

impl InHand {
    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// A message was delivered. `false` if it is here already: it will be acknowledged as the new delivery.
    pub fn add(&self, sequence: u64, reply: &str) -> bool {
        let message = Message {
            reply: reply.to_string(),
            told: Instant::now(),
        };
        self.lock().insert(sequence, message).is_none()
    }

    /// It is done with: where that is to be said.
    pub fn remove(&self, sequence: u64) -> Option<String> {
        let removed = self.lock().remove(&sequence).map(|message| message.reply);
        self.fewer.notify_one();
        removed
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

    /// When the stream was created that they are of: another one of the same name counts anew.
    pub fn stream_created(&self) -> String {
        let created = self.stream_created.lock().unwrap_or_else(PoisonError::into_inner);
        created.clone()
    }

    /// Whether there was another stream of that name before.
    pub fn is_of_other(&self, created: &str) -> bool {
        let old = self.stream_created();
        !old.is_empty() && old != created
    }

    pub fn set_stream_created(&self, created: &str) {
        let mut old = self.stream_created.lock().unwrap_or_else(PoisonError::into_inner);
        created.clone_into(&mut old);
    }
}
