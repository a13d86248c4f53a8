//! How much may wait for executors, in each queue and in all together, and how much does. In every thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much may wait; may change at any time.
#[derive(Debug, Default)]
pub struct Limits {
    /// For each handler.
    pub messages: AtomicUsize,
    pub bytes: AtomicUsize,
    /// For all handlers of all databases. When that is full, each may still have its equal share of it, so that one
    /// whose messages pile up does not take the others' room.
    pub total_bytes: AtomicUsize,
    /// What waits in all queues, and how many there are.
    waiting: AtomicUsize,
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

    /// Whether a queue of so many messages and bytes may have one of `more` bytes: within its own limits and those of
    /// all. One message is let in whatever its size, by the one if the queue is empty and by the other if all are.
    pub fn allows(&self, messages: usize, bytes: usize, more: usize) -> bool {
        let get = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        let (total, waiting) = (get(&self.total_bytes), get(&self.waiting));
        let share = total / get(&self.queues).max(1);
        let own = messages == 0 || (messages < get(&self.messages) && bytes + more <= get(&self.bytes));
        own && (waiting == 0 || waiting + more <= total || bytes + more <= share)
    }

    /// A queue begins.
    pub fn opened(&self) {
        self.queues.fetch_add(1, Ordering::Relaxed);
    }

    /// An empty queue ends.
    pub fn closed(&self) {
        self.queues.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many bytes more wait.
    pub fn grew(&self, bytes: usize) {
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes fewer wait.
    pub fn shrank(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
    }
}
