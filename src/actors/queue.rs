//! Messages that wait for an executor: in the order of their arrival, bounded in number and bytes. In the actor thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::nats::headers::Headers;

/// What a waiting message takes beyond its subject, headers and payload; about what it does.
const OVERHEAD: usize = 200;

/// How much may wait for each handler; may change at any time.
#[derive(Debug)]
pub struct Limits {
    pub messages: AtomicUsize,
    pub bytes: AtomicUsize,
}

/// A message for a handler.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub subject: String,
    pub reply: Option<String>,
    pub headers: Headers,
    pub payload: Bytes,
    pub arrived: Instant,
    /// Executors that have died with it.
    pub deaths: u32,
}

impl Incoming {
    fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(n, v)| n.len() + v.len()).sum();
        let subjects = self.subject.len() + self.reply.as_ref().map_or(0, String::len);
        OVERHEAD + subjects + headers + self.payload.len()
    }
}

/// What became of a message.
#[derive(Debug)]
pub enum Pushed {
    /// The queue was empty before.
    First,
    Behind,
    /// There was no room.
    Refused(Incoming),
}

/// The messages of one handler.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: VecDeque<Incoming>,
    bytes: usize,
}

impl Queue {
    pub fn push(&mut self, message: Incoming, limits: &Limits) -> Pushed {
        let size = message.size();
        // One message is let in whatever its size.
        let full = self.waiting.len() >= limits.messages.load(Ordering::Relaxed)
            || self.bytes + size > limits.bytes.load(Ordering::Relaxed);
        if full && !self.waiting.is_empty() {
            return Pushed::Refused(message);
        }
        self.bytes += size;
        self.waiting.push_back(message);
        if self.waiting.len() == 1 {
            Pushed::First
        } else {
            Pushed::Behind
        }
    }

    /// Takes what goes to an executor together: at most so many messages, and bytes, but for a first one that is
    /// larger. A message that an executor has died with goes alone.
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
        self.bytes -= size;
        taken
    }

    /// Puts back at the front what was not executed.
    pub fn give_back(&mut self, messages: impl DoubleEndedIterator<Item = Incoming>) {
        for message in messages.rev() {
            self.bytes += message.size();
            self.waiting.push_front(message);
        }
    }

    /// Takes the messages at the front that have waited for longer than `limit`.
    pub fn expired(&mut self, limit: Duration) -> Vec<Incoming> {
        let mut expired = Vec::new();
        while self.waiting.front().is_some_and(|m| m.arrived.elapsed() > limit) {
            if let Some(message) = self.waiting.pop_front() {
                self.bytes -= message.size();
                expired.push(message);
            }
        }
        expired
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, size: usize) -> Incoming {
        Incoming {
            subject: name.into(),
            reply: None,
            headers: Headers::new(),
            payload: vec![0; size].into(),
            arrived: Instant::now(),
            deaths: 0,
        }
    }

    fn limits(messages: usize, bytes: usize) -> Limits {
        Limits {
            messages: messages.into(),
            bytes: bytes.into(),
        }
    }

    fn names(messages: &[Incoming]) -> Vec<&str> {
        messages.iter().map(|m| m.subject.as_str()).collect()
    }

    #[test]
    fn order_survives_taking_and_giving_back() {
        let (mut queue, limits) = (Queue::default(), limits(10, 1 << 20));
        for name in ["a", "b", "c", "d"] {
            queue.push(message(name, 1), &limits);
        }
        let taken = queue.take(3, 1 << 20);
        assert_eq!(names(&taken), ["a", "b", "c"]);
        queue.give_back(taken.into_iter().skip(1));
        assert_eq!(names(&queue.take(9, 1 << 20)), ["b", "c", "d"]);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn number_and_bytes_are_bounded_but_one_message_always_fits() {
        let mut queue = Queue::default();
        assert!(matches!(
            queue.push(message("a", 9000), &limits(2, 1000)),
            Pushed::First
        ));
        assert!(matches!(
            queue.push(message("b", 1), &limits(2, 1000)),
            Pushed::Refused(_)
        ));
        assert!(matches!(
            queue.push(message("b", 1), &limits(2, 99000)),
            Pushed::Behind
        ));
        assert!(matches!(
            queue.push(message("c", 1), &limits(2, 99000)),
            Pushed::Refused(_)
        ));
        assert_eq!(names(&queue.take(9, 100)), ["a"]);
    }

    #[test]
    fn who_was_there_when_an_executor_died_goes_alone() {
        let (mut queue, limits) = (Queue::default(), limits(10, 1 << 20));
        for deaths in [0, 1, 0] {
            let message = Incoming {
                deaths,
                ..message(&deaths.to_string(), 1)
            };
            queue.push(message, &limits);
        }
        assert_eq!([1, 1, 1], [(); 3].map(|()| queue.take(9, 1 << 20).len()));
    }
}
