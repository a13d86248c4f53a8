//! Whether a connection holds once it stands, and how long to wait before the next one: a server, or a message that
//! the client cannot read, may end it again and again. A plain struct of the connection actor; in the actor thread.

use std::time::{Duration, Instant};

use crate::actors::base::backoff::backoff;
use crate::flood::Flood;

/// A connection that has lasted so long is taken for a good one.
const STEADY: Duration = Duration::from_secs(5);
/// So many may end sooner, one after another, without a pause.
const FORGIVEN: u32 = 2;
/// Before the next attempt after that; doubled each time, up to the limit.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_LIMIT: Duration = Duration::from_secs(2);

/// How the last connections have lasted.
#[derive(Debug, Default)]
pub struct ReconnectPolicy {
    since: Option<Instant>,
    short_lived: u32,
    lines: Flood,
}

impl ReconnectPolicy {
    pub fn connected(&mut self) {
        self.since = Some(Instant::now());
    }

    /// Notes the end of a connection; how long to wait before the next one.
    pub fn lost(&mut self) -> Duration {
        let lasted = self.since.take().is_some_and(|since| since.elapsed() >= STEADY);
        self.short_lived = if lasted { 0 } else { self.short_lived + 1 };
        if self.is_unsteady() {
            let times = (self.short_lived - FORGIVEN - 1).min(16);
            backoff(PAUSE, PAUSE_LIMIT, times)
        } else {
            Duration::ZERO
        }
    }

    /// Connections end again and again.
    pub fn is_unsteady(&self) -> bool {
        self.short_lived > FORGIVEN
    }

    /// Whether to write a line to the log about a loss, and a remark on those that were not written.
    pub fn line(&mut self) -> Option<String> {
        if self.is_unsteady() {
            self.lines.pass()
        } else {
            Some(String::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_connections_end_at_once() {
        let mut reconnect = ReconnectPolicy::default();
        let pauses: Vec<u128> = (0..10)
            .map(|_| {
                reconnect.connected();
                reconnect.lost().as_millis()
            })
            .collect();
        assert_eq!(pauses, [0, 0, 50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert!(reconnect.line().is_some() && reconnect.line().is_none());
    }

    #[test]
    fn one_that_lasts_makes_up_for_the_others() {
        let mut reconnect = ReconnectPolicy {
            short_lived: 9,
            ..ReconnectPolicy::default()
        };
        reconnect.since = Instant::now().checked_sub(STEADY);
        assert_eq!(reconnect.lost(), Duration::ZERO);
        assert!(!reconnect.is_unsteady());
    }
}
