//! What passes over the control channel, counted by the runtime worker's end. Pure; runs on the actor thread.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of all connections to the channel.
#[derive(Debug, Default)]
pub struct ChannelCounts {
    /// Connections that are open, those of executors and outbox relays included.
    open: AtomicU64,
    pub frames_in: AtomicU64,
    pub frames_out: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
}

impl ChannelCounts {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, number: usize) {
        counter.fetch_add(number as u64, Ordering::Relaxed);
    }

    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// What was counted, in the order of the view `litmus_pgnats.control_channel`.
    pub fn totals(&self) -> [u64; 4] {
        [&self.frames_in, &self.frames_out, &self.bytes_in, &self.bytes_out]
            .map(|counter| counter.load(Ordering::Relaxed))
    }

    /// Sets all counters to 0, except for the number of open connections.
    pub fn reset(&self) {
        for counter in [&self.frames_in, &self.frames_out, &self.bytes_in, &self.bytes_out] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

/// Counts a connection as open until this is dropped.
#[derive(Debug)]
pub struct OpenChannel(pub Arc<ChannelCounts>);

impl OpenChannel {
    pub fn of(counts: &Arc<ChannelCounts>) -> OpenChannel {
        counts.open.fetch_add(1, Ordering::Relaxed);
        OpenChannel(counts.clone())
    }
}

impl Drop for OpenChannel {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
