//! The messages of a handler that wait for an executor: in the order of their arrival, bounded in number and bytes, for
//! each handler and for all together. A plain struct; in the actor thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::actors::base::queue_limits::Limits;
use crate::channel::work::StreamPosition;
use crate::nats::headers::Headers;

/// Bytes that a waiting message takes beyond its subject, headers and payload, roughly.
const OVERHEAD: usize = 200;

/// A message for a handler.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub subject: String,
    pub reply: Option<String>,
    pub headers: Headers,
    pub payload: Bytes,
    pub arrived: Instant,
    /// When the message arrived or, for a durable subscription, when the stream took it: microseconds since 1970.
    pub time_us: i64,
    /// Stream position of a durable subscription's message, whose `reply` is the subject to acknowledge it on;
    /// otherwise `None`.
    pub position: Option<StreamPosition>,
    /// Executors that have died while they had the message.
    pub deaths: u32,
}

impl Incoming {
    fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        let subjects = self.subject.len() + self.reply.as_ref().map_or(0, String::len);
        OVERHEAD + subjects + headers + self.payload.len()
    }
}

/// What became of a message that was put into a queue.
#[derive(Debug)]
pub enum Pushed {
    /// The message waits, and the queue was empty before.
    First,
    /// The message waits behind others.
    Behind,
    /// There was no room for the message.
    Refused(Incoming),
}

/// The messages of one handler.
#[derive(Debug)]
pub struct Queue {
    limits: Arc<Limits>,
    waiting: VecDeque<Incoming>,
    bytes: usize,
}

impl Queue {
    pub fn new(limits: Arc<Limits>) -> Queue {
        limits.opened();
        Queue {
            limits,
            waiting: VecDeque::new(),
            bytes: 0,
        }
    }

    fn grew(&mut self, size: usize) {
        self.bytes += size;
        self.limits.grew(size);
    }

    fn shrank(&mut self, size: usize) {
        self.bytes -= size;
        self.limits.shrank(size);
    }

    pub fn push(&mut self, message: Incoming) -> Pushed {
        let size = message.size();
        if !self.limits.allows(self.waiting.len(), self.bytes, size) {
            return Pushed::Refused(message);
        }
        self.grew(size);
        self.waiting.push_back(message);
        if self.waiting.len() == 1 {
            Pushed::First
        } else {
            Pushed::Behind
        }
    }

    /// Takes the messages that go to an executor together: at most so many messages and bytes, but a first message may
    /// be larger. A message that an executor has died with goes alone.
    pub fn take(&mut self, messages: usize, bytes: usize) -> Vec<Incoming> {
        let (mut taken, mut size) = (Vec::new(), 0);
        while let Some(next) = self.waiting.front() {
            let more = size + next.size();
            let alone = next.deaths > 0 || taken.first().is_some_and(|m: &Incoming| m.deaths > 0);
            if !taken.is_empty() && (alone || taken.len() >= messages || more > bytes) {
                break;
            }
            size = more;
            taken.extend(self.waiting.pop_front());
        }
        self.shrank(size);
        taken
    }

    /// Puts messages that were not executed back at the front.
    pub fn give_back(&mut self, messages: impl DoubleEndedIterator<Item = Incoming>) {
        for message in messages.rev() {
            self.grew(message.size());
            self.waiting.push_front(message);
        }
    }

    /// Takes the messages at the front that have waited for longer than `limit`.
    pub fn expired(&mut self, limit: Duration) -> Vec<Incoming> {
        let mut expired = Vec::new();
        while self.waiting.front().is_some_and(|m| m.arrived.elapsed() > limit) {
            if let Some(message) = self.waiting.pop_front() {
                self.shrank(message.size());
                expired.push(message);
            }
        }
        expired
    }

    /// Time of the message that has waited longest, as [`Incoming::time_us`]; `None` if the queue is empty.
    pub fn oldest_us(&self) -> Option<i64> {
        self.waiting.front().map(|message| message.time_us)
    }

    /// When the message at the front arrived; `None` if the queue is empty.
    pub fn oldest(&self) -> Option<Instant> {
        self.waiting.front().map(|message| message.arrived)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes that the waiting messages take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn clear(&mut self) {
        self.waiting = VecDeque::new();
        self.shrank(self.bytes);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.clear();
        self.limits.closed();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    fn message(name: &str, size: usize) -> Incoming {
        Incoming {
            subject: name.into(),
            reply: None,
            headers: Headers::new(),
            payload: vec![0; size].into(),
            arrived: Instant::now(),
            time_us: 0,
            position: None,
            deaths: 0,
        }
    }

    fn names(messages: &[Incoming]) -> Vec<&str> {
        messages.iter().map(|m| m.subject.as_str()).collect()
    }

    fn is_refused(queue: &mut Queue, size: usize) -> bool {
        matches!(queue.push(message("m", size)), Pushed::Refused(_))
    }

    #[test]
    fn order_survives_taking_and_giving_back() {
        let mut queue = Queue::new(Limits::new(10, 1 << 20, 1 << 20));
        for name in ["a", "b", "c", "d"] {
            queue.push(message(name, 1));
        }
        let taken = queue.take(3, 1 << 20);
        assert_eq!(names(&taken), ["a", "b", "c"]);
        queue.give_back(taken.into_iter().skip(1));
        assert_eq!(names(&queue.take(9, 1 << 20)), ["b", "c", "d"]);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn number_and_bytes_are_bounded_but_one_message_always_fits() {
        let limits = Limits::new(2, 1000, 1 << 20);
        let mut queue = Queue::new(limits.clone());
        assert!(!is_refused(&mut queue, 9000));
        assert!(is_refused(&mut queue, 1));
        limits.bytes.store(99_000, Ordering::Relaxed);
        assert!(!is_refused(&mut queue, 1));
        assert!(is_refused(&mut queue, 1));
        limits.bytes.store(1000, Ordering::Relaxed);
        let mut other = Queue::new(limits);
        assert!(
            !is_refused(&mut other, 9000),
            "what waits elsewhere does not matter"
        );
        assert_eq!(queue.take(9, 100).len(), 1);
    }

    #[test]
    fn all_queues_together_are_bounded_and_each_has_its_share() {
        let limits = Limits::new(1000, 1 << 20, 10_000);
        let (mut greedy, mut modest) = (Queue::new(limits.clone()), Queue::new(limits.clone()));
        while !is_refused(&mut greedy, 800) {}
        assert_eq!(greedy.bytes(), 10_000 - 10_000 % 1_001, "{greedy:?}");
        assert!(!is_refused(&mut modest, 800));
        assert!(is_refused(&mut modest, 8000), "more than its share");
        drop(greedy);
        assert!(!is_refused(&mut modest, 8000));
        modest.clear();
        assert_eq!(limits.waiting(), 0);
    }

    #[test]
    fn who_was_there_when_an_executor_died_goes_alone() {
        let mut queue = Queue::new(Limits::new(10, 1 << 20, 1 << 20));
        for deaths in [0, 1, 0] {
            queue.push(Incoming {
                deaths,
                ..message(&deaths.to_string(), 1)
            });
        }
        assert_eq!([1, 1, 1], [(); 3].map(|()| queue.take(9, 1 << 20).len()));
    }
}
