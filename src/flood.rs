//! Keeps a flood of events from becoming a flood of log lines. Pure; used by the actor thread and by executors.

use std::time::{Duration, Instant};

/// Shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Lets one log line pass in an interval and counts the others.
#[derive(Debug, Default)]
pub struct Flood {
    last: Option<Instant>,
    suppressed: u64,
}

impl Flood {
    /// `Some` when a line may be written, with a remark on those that were not.
    pub fn pass(&mut self) -> Option<String> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        match std::mem::take(&mut self.suppressed) {
            0 => Some(String::new()),
            more => Some(format!(" ({more} more since the last such line)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
