//! Keeps a flood of events from becoming a flood of log lines. Pure; used by the actor thread and by executors.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Shortest time between two lines of a [`Flood`], and the time over which a [`Burst`] counts its lines.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Lets one log line pass per interval and counts the others.
#[derive(Debug, Default)]
pub struct Flood {
    last: Option<Instant>,
    suppressed: u64,
}

impl Flood {
    /// The number of suppressed lines that no later line has mentioned yet.
    pub fn rest(&self) -> u64 {
        self.suppressed
    }

    /// `Some` if a line may be written now: a remark on the lines suppressed before, to be appended to the line; empty
    /// if there were none.
    pub fn pass(&mut self) -> Option<String> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(remark(&mut self.suppressed))
    }
}

/// Lines that a [`Burst`] lets pass per interval.
const BURST: u32 = 20;

/// Lets a burst of lines pass per interval and counts the lines beyond it.
#[derive(Debug, Default)]
pub struct Burst {
    since: Option<Instant>,
    passed: u32,
    suppressed: u64,
}

impl Burst {
    /// Like [`Flood::pass`].
    pub fn pass(&mut self) -> Option<String> {
        let now = Instant::now();
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= INTERVAL)
        {
            self.since = Some(now);
            self.passed = 0;
        }
        if self.passed >= BURST {
            self.suppressed += 1;
            return None;
        }
        self.passed += 1;
        Some(remark(&mut self.suppressed))
    }
}

/// A remark on the lines suppressed since the last written one; empty if there were none. Resets the count.
fn remark(suppressed: &mut u64) -> String {
    match std::mem::take(suppressed) {
        0 => String::new(),
        more => format!(" ({more} more since the last such line)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_next_line_counts_those_beyond() {
        let mut burst = Burst::default();
        for _ in 0..BURST {
            assert_eq!(burst.pass(), Some(String::new()));
        }
        assert_eq!((burst.pass(), burst.pass()), (None, None));
        burst.since = burst.since.and_then(|since| since.checked_sub(INTERVAL));
        assert_eq!(
            burst.pass().as_deref(),
            Some(" (2 more since the last such line)")
        );
    }

    #[test]
    fn one_line_passes_and_the_next_one_counts_the_others() {
        let mut flood = Flood::default();
        assert_eq!(flood.pass(), Some(String::new()));
        assert_eq!((flood.pass(), flood.pass()), (None, None));
        flood.last = flood.last.and_then(|last| last.checked_sub(INTERVAL));
        assert_eq!(
            flood.pass().as_deref(),
            Some(" (2 more since the last such line)")
        );
    }
}
