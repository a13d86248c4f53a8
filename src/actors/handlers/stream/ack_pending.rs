//! The ack pending messages of a durable subscription, which JetStream has delivered and which are not acknowledged
//! yet: those in its queue, and those with an executor. A plain struct; in the actor thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::channel::marks::Mark;
use crate::channel::progress::{Incarnation, StreamProgress};

/// A message that is not acknowledged yet.
struct PendingMessage {
    /// The consumer has no message whose sequence in the stream is between this one and the message's own.
    after: u64,
    /// Subject on which the message is acknowledged.
    reply: String,
    /// When the message came, or when JetStream was last told that the message is in progress.
    told: Instant,
    /// When the stream took the message, in microseconds since 1970.
    time_us: i64,
}

/// A message that JetStream will deliver again later, as it was asked to, or because the delivery was lost.
struct PostponedMessage {
    after: u64,
    time_us: i64,
}

/// The messages by their sequence in the stream, and what is known of the stream.
#[derive(Default)]
struct AckPendingMessages {
    messages: BTreeMap<u64, PendingMessage>,
    postponed: BTreeMap<u64, PostponedMessage>,
    stream: KnownStream,
    /// How far the database is: as a refresh has read, and executors have reported since. `None` until the consumer is
    /// looked for.
    progress: Option<StreamProgress>,
}

/// What is known of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownStream {
    /// The token is empty until the consumer was found.
    pub incarnation: Arc<Incarnation>,
    /// All messages up to this sequence were done with when the consumer was found.
    pub base: u64,
}

/// The ack pending messages of one durable subscription.
#[derive(Default)]
pub struct AckPending {
    pending: Mutex<AckPendingMessages>,
    /// Notified when there are fewer messages than before.
    pub fewer: Notify,
}

impl AckPending {
    /// Messages that are in the queue or with an executor.
    pub fn count(&self) -> usize {
        self.pending.lock().messages.len()
    }

    /// Messages that are not done with, including those that will be delivered again.
    pub fn undone(&self) -> usize {
        let pending = self.pending.lock();
        pending.messages.len() + pending.postponed.len()
    }

    /// Messages that have failed, or were lost on their way, and will be delivered again.
    pub fn retrying(&self) -> usize {
        self.pending.lock().postponed.len()
    }

    /// When the stream took the oldest message that is not done with, in microseconds since 1970; `None` without one.
    pub fn oldest_us(&self) -> Option<i64> {
        let pending = self.pending.lock();
        let here = pending.messages.values().next().map(|message| message.time_us);
        let to_come = pending.postponed.values().next().map(|message| message.time_us);
        here.into_iter().chain(to_come).min()
    }

    /// Adds a message that was delivered. `false` if an earlier delivery is here already, which is then acknowledged on
    /// the new delivery's subject.
    pub fn add(&self, sequence: u64, after: u64, reply: &str, time_us: i64) -> bool {
        let message = PendingMessage {
            after,
            reply: reply.to_string(),
            told: Instant::now(),
            time_us,
        };
        self.pending.lock().messages.insert(sequence, message).is_none()
    }

    /// Removes a message that is done with. Returns the subject to acknowledge it on; `None` if the message is not
    /// here.
    pub fn remove(&self, sequence: u64) -> Option<String> {
        let removed = self.pending.lock().messages.remove(&sequence);
        self.fewer.notify_one();
        removed.map(|message| message.reply)
    }

    /// Notes that a message is to be delivered again. Returns the subject to ask for that on; `None` if the message is
    /// not here.
    pub fn postpone(&self, sequence: u64) -> Option<String> {
        let mut pending = self.pending.lock();
        let removed = pending.messages.remove(&sequence)?;
        let postponed = PostponedMessage {
            after: removed.after,
            time_us: removed.time_us,
        };
        pending.postponed.insert(sequence, postponed);
        drop(pending);
        self.fewer.notify_one();
        Some(removed.reply)
    }

    /// Whether there are messages that will be delivered again.
    pub fn has_postponed(&self) -> bool {
        !self.pending.lock().postponed.is_empty()
    }

    /// Forgets messages up to the consumer's ack floor that were to be delivered again: they are gone from the stream,
    /// or somebody else has acknowledged them.
    pub fn forget_up_to(&self, ack_floor: u64) {
        self.pending
            .lock()
            .postponed
            .retain(|sequence, _| *sequence > ack_floor);
    }

    /// A message was delivered; returns the `after` of its earlier delivery, or `None` if there was none.
    pub fn again(&self, sequence: u64) -> Option<u64> {
        let mut pending = self.pending.lock();
        let known = pending.messages.get(&sequence).map(|message| message.after);
        known.or_else(|| pending.postponed.remove(&sequence).map(|message| message.after))
    }

    /// Takes all messages that are in the queue or with an executor; returns the subjects to acknowledge them on.
    pub fn take_all(&self) -> Vec<String> {
        let messages = std::mem::take(&mut self.pending.lock().messages);
        messages.into_values().map(|message| message.reply).collect()
    }

    /// The subjects on which to tell JetStream that messages are in progress: those that it has not heard of for
    /// `time`. The messages count as reported now.
    pub fn overdue(&self, time: Duration) -> Vec<String> {
        let mut pending = self.pending.lock();
        let overdue = pending.messages.values_mut().filter(|m| m.told.elapsed() >= time);
        overdue
            .map(|message| {
                message.told = Instant::now();
                message.reply.clone()
            })
            .collect()
    }

    /// What is known of the stream.
    pub fn stream(&self) -> KnownStream {
        self.pending.lock().stream.clone()
    }

    /// Whether messages of an incarnation are those of the stream that is there now.
    pub fn is_present(&self, token: &str) -> bool {
        self.pending.lock().stream.incarnation.token == token
    }

    /// How far the database is. `read` is what a refresh has read, and serves when this is asked first.
    pub fn progress(&self, read: &StreamProgress) -> StreamProgress {
        let mut pending = self.pending.lock();
        pending.progress.get_or_insert_with(|| read.clone()).clone()
    }

    /// All messages up to this sequence of the stream are done with.
    pub fn floor(&self) -> u64 {
        let pending = self.pending.lock();
        let progress = pending.progress.as_ref();
        let floor = progress.and_then(|progress| progress.ack_floor(&pending.stream.incarnation));
        floor.unwrap_or(0).max(pending.stream.base)
    }

    /// The consumer was found. Messages of another incarnation are forgotten; whether there was another one.
    pub fn set_stream(&self, incarnation: Incarnation, base: u64) -> bool {
        let mut pending = self.pending.lock();
        let former = &pending.stream.incarnation.token;
        let is_other = !former.is_empty() && *former != incarnation.token;
        if is_other {
            pending.messages.clear();
            pending.postponed.clear();
        }
        if let Some(progress) = &mut pending.progress {
            progress.change(&incarnation, |position| {
                position.created.clone_from(&incarnation.created);
            });
            progress.use_now(&incarnation.token);
        }
        pending.stream = KnownStream {
            incarnation: Arc::new(incarnation),
            base,
        };
        is_other
    }

    /// An executor has committed messages of an incarnation, up to this ack floor.
    pub fn committed(
        &self,
        incarnation: &Incarnation,
        ack_floor: Option<u64>,
        marks: impl Iterator<Item = Mark>,
    ) {
        if let Some(progress) = &mut self.pending.lock().progress {
            progress.change(incarnation, |position| {
                position.ack_floor = ack_floor;
                position.marks.add(marks);
                position.branch = None;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_comes_again_keeps_what_lies_before_it() {
        let pending = AckPending::default();
        assert!(pending.add(15, 10, "ack.15", 5));
        assert!(!pending.add(15, 14, "ack.15.again", 5), "it is here already");
        assert_eq!(pending.postpone(15).as_deref(), Some("ack.15.again"));
        assert_eq!(
            (pending.count(), pending.undone(), pending.oldest_us()),
            (0, 1, Some(5))
        );
        assert_eq!(pending.again(15), Some(14));
        assert!(!pending.has_postponed());
        assert_eq!(pending.postpone(15), None, "nobody has it");
    }

    #[test]
    fn what_the_consumer_no_longer_has_is_not_waited_for() {
        let pending = AckPending::default();
        for sequence in [3, 4] {
            pending.add(sequence, 0, "ack", 0);
            pending.postpone(sequence);
        }
        pending.forget_up_to(3);
        assert_eq!(pending.undone(), 1);
    }

    #[test]
    fn jetstream_hears_of_each_message_once_in_a_while() {
        let pending = AckPending::default();
        pending.add(1, 0, "ack.1", 0);
        assert_eq!(pending.overdue(Duration::ZERO), ["ack.1"]);
        assert!(pending.overdue(Duration::from_secs(60)).is_empty());
        assert_eq!(pending.take_all(), ["ack.1"]);
        assert_eq!(pending.count(), 0);
    }

    #[test]
    fn another_incarnation_begins_with_nothing() {
        let incarnation = |token: &str| Incarnation {
            token: token.into(),
            created: "now".into(),
            branch: None,
        };
        let mark = |sequence| Mark { sequence, time_us: 1 };
        let pending = AckPending::default();
        let floor = |token: &str| {
            let progress = pending.progress(&StreamProgress::default());
            progress.ack_floor(&incarnation(token))
        };
        assert_eq!(floor("a"), None);
        assert!(!pending.set_stream(incarnation("a"), 3));
        pending.add(8, 3, "ack.8", 5);
        pending.committed(&incarnation("a"), Some(7), std::iter::once(mark(7)));
        assert!(!pending.set_stream(incarnation("a"), 5));
        assert_eq!((floor("a"), pending.count()), (Some(7), 1));
        assert!(pending.set_stream(incarnation("b"), 0));
        assert_eq!((floor("b"), floor("a"), pending.count()), (Some(0), Some(7), 0));
        assert!(pending.is_present("b") && !pending.is_present("a"));
        // An executor was still at work.
        pending.committed(&incarnation("a"), Some(8), std::iter::once(mark(8)));
        assert_eq!((floor("a"), floor("b")), (Some(8), Some(0)));
    }
}
