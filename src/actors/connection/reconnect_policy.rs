//! When a connection is tried again: after an attempt that failed, after a connection that was lost, and while a server
//! that is about to stop has to be left. A server, or a message that the client cannot read, may end connections again
//! and again, so a connection that did not last counts as a failure. Every pause has full jitter, because all
//! connections of all runtime workers lose a NATS server at the same time. A plain struct of the connection actor; in
//! the actor thread.

use std::time::{Duration, Instant};

use crate::actors::base::backoff::{Backoff, full_jitter};
use crate::flood::Flood;

/// Bounds of the pause between two attempts while NATS is away.
const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(500);
/// Longest pause while NATS refuses the credential, because each refusal is a line in the NATS server's log.
const LONGEST_REFUSED: Duration = Duration::from_secs(5);

/// A connection that has lasted this long is taken for a good one.
const STEADY: Duration = Duration::from_secs(5);
/// Connections in a row that may end sooner before the pauses get longer.
const FORGIVEN: u32 = 2;
/// Bounds of the pause after a lost connection when more connections in a row have ended sooner.
const UNSTEADY_FIRST: Duration = Duration::from_millis(50);
const UNSTEADY_LONGEST: Duration = Duration::from_secs(2);

/// Longest pause between two attempts to leave a server that is about to stop.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);

/// How the last attempts and connections went.
#[derive(Debug)]
pub struct ReconnectPolicy {
    attempts: Backoff,
    losses: Backoff,
    connected_since: Option<Instant>,
    short_lived: u32,
    log: Flood,
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        ReconnectPolicy {
            attempts: Backoff::new(FIRST, LONGEST),
            losses: Backoff::new(UNSTEADY_FIRST, UNSTEADY_LONGEST),
            connected_since: None,
            short_lived: 0,
            log: Flood::default(),
        }
    }
}

impl ReconnectPolicy {
    pub fn connected(&mut self) {
        self.attempts.succeeded();
        self.connected_since = Some(Instant::now());
    }

    /// An attempt has failed; returns the pause before the next one. `is_refused`: NATS has refused the credential.
    pub fn attempt_failed(&mut self, is_refused: bool) -> Duration {
        let longest = if is_refused { LONGEST_REFUSED } else { LONGEST };
        self.attempts.failed_within(longest)
    }

    /// A connection has ended; returns the pause before the next attempt.
    pub fn lost(&mut self) -> Duration {
        let since = self.connected_since.take();
        let has_lasted = since.is_some_and(|since| since.elapsed() >= STEADY);
        if has_lasted {
            self.short_lived = 0;
            self.losses.succeeded();
        } else {
            self.short_lived += 1;
        }
        if self.is_unsteady() {
            self.losses.failed()
        } else {
            full_jitter(FIRST)
        }
    }

    /// Whether connections end soon, again and again.
    pub fn is_unsteady(&self) -> bool {
        self.short_lived > FORGIVEN
    }

    /// Whether to log a loss: `Some` with a remark on the losses that were not logged, or `None`.
    pub fn line(&mut self) -> Option<String> {
        if self.is_unsteady() {
            self.log.pass()
        } else {
            Some(String::new())
        }
    }

    /// The pause before the next attempt to leave a server that is about to stop.
    pub fn leave_pause() -> Duration {
        full_jitter(LEAVE_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest of many random pauses, in milliseconds, which is close to their upper bound.
    fn longest(mut pause: impl FnMut() -> Duration) -> u128 {
        (0..200).map(|_| pause().as_millis()).max().unwrap_or(0)
    }

    #[test]
    fn pauses_grow_while_connections_end_at_once() {
        let after = |losses: u32| {
            longest(|| {
                let mut policy = ReconnectPolicy::default();
                let pauses = (0..losses).map(|_| {
                    policy.connected();
                    policy.lost()
                });
                pauses.last().expect("a loss")
            })
        };
        assert!(after(1) <= 10 && after(2) <= 10, "forgiven");
        assert!((25..=50).contains(&after(3)));
        assert!((1000..=2000).contains(&after(20)));
    }

    #[test]
    fn a_refused_credential_is_tried_less_often() {
        let after_many = |is_refused| {
            longest(|| {
                let mut policy = ReconnectPolicy::default();
                (0..20)
                    .map(|_| policy.attempt_failed(is_refused))
                    .last()
                    .expect("a failure")
            })
        };
        assert!((250..=500).contains(&after_many(false)));
        assert!((2500..=5000).contains(&after_many(true)));
    }

    #[test]
    fn many_losses_are_one_line_in_the_log() {
        let mut policy = ReconnectPolicy::default();
        for _ in 0..5 {
            policy.connected();
            policy.lost();
        }
        assert!(policy.line().is_some() && policy.line().is_none());
    }

    #[test]
    fn one_that_lasts_makes_up_for_the_others() {
        let mut policy = ReconnectPolicy {
            short_lived: 9,
            ..ReconnectPolicy::default()
        };
        policy.connected_since = Instant::now().checked_sub(STEADY);
        assert!(policy.lost() <= FIRST);
        assert!(!policy.is_unsteady());
    }

    /// Two hundred connections that lose one server do not retry in step.
    #[test]
    fn many_connections_do_not_retry_in_step() {
        let mut policies: Vec<_> = (0..200).map(|_| ReconnectPolicy::default()).collect();
        let mut pauses: Vec<Duration> = policies
            .iter_mut()
            .map(|policy| {
                (0..10)
                    .map(|_| policy.attempt_failed(false))
                    .last()
                    .expect("a failure")
            })
            .collect();
        pauses.sort();
        // A tenth of the longest pause has some twenty of the two hundred pauses.
        let crowd = pauses
            .windows(60)
            .filter(|crowd| crowd[59] - crowd[0] < LONGEST / 10);
        assert_eq!(crowd.count(), 0, "{pauses:?}");
    }
}
