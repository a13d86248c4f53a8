//! How much may wait for executors, in each queue and in all queues together, and how much does wait. Atomics: the
//! runtime worker's main thread sets the limits, its actor thread reads them and counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The limits, which may change at any time, and what counts against them.
#[derive(Debug, Default)]
pub struct Limits {
    /// Most messages in the queue of one handler.
    pub messages: AtomicUsize,
    /// Most bytes in the queue of one handler.
    pub bytes: AtomicUsize,
    /// Most bytes in the queues of all handlers of all databases. When these are full, each queue may still hold its
    /// equal share, so that one handler's backlog does not take the room of the others.
    pub total_bytes: AtomicUsize,
    /// Bytes that wait in all queues.
    waiting: AtomicUsize,
    /// Number of queues.
    queues: AtomicUsize,
}

impl Limits {
    pub fn new(messages: usize, bytes: usize, total_bytes: usize) -> Arc<Limits> {
        Arc::new(Limits {
            messages: messages.into(),
            bytes: bytes.into(),
            total_bytes: total_bytes.into(),
            ..Limits::default()
        })
    }

    /// Bytes that wait in all queues.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether a queue that holds so many messages and bytes may take a message of `more` bytes, by its own limits and
    /// by the limit for all. A message of any size passes the queue's own limits if the queue is empty, and the limit
    /// for all if all queues are empty.
    pub fn allows(&self, messages: usize, bytes: usize, more: usize) -> bool {
        let get = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        let (total, waiting) = (get(&self.total_bytes), get(&self.waiting));
        let share = total / get(&self.queues).max(1);
        let own = messages == 0 || (messages < get(&self.messages) && bytes + more <= get(&self.bytes));
        own && (waiting == 0 || waiting + more <= total || bytes + more <= share)
    }

    /// Counts a new queue.
    pub fn opened(&self) {
        self.queues.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a queue that ends, which must be empty.
    pub fn closed(&self) {
        self.queues.fetch_sub(1, Ordering::Relaxed);
    }

    /// `bytes` more wait.
    pub fn grew(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `bytes` fewer wait.
    pub fn shrank(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }
}
