//! Pauses between attempts that fail. Pure, but for the random numbers of the jitter.

use std::time::Duration;

/// The pause before the next attempt: doubled with each failure, with full jitter, which is a random time between zero
/// and the whole pause. Clients that fail at the same moment, say because a NATS server stops, thus do not retry in
/// step.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// `first` bounds the pause after the first failure, `longest` the pause after any failure.
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff {
            first,
            longest,
            failures: 0,
        }
    }

    /// Counts a failure and returns the pause before the next attempt.
    pub fn failed(&mut self) -> Duration {
        self.failed_within(self.longest)
    }

    /// Like [`Backoff::failed`], with another upper bound for this kind of failure.
    pub fn failed_within(&mut self, longest: Duration) -> Duration {
        let pause = exponential(self.first, longest, self.failures);
        self.failures = self.failures.saturating_add(1);
        full_jitter(pause)
    }

    /// An attempt has succeeded: the next pause is short again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// The pause without jitter after `failures` earlier failures in a row: `first`, doubled for each of them, up to
/// `longest`.
pub fn exponential(first: Duration, longest: Duration, failures: u32) -> Duration {
    first
        .saturating_mul(2u32.saturating_pow(failures.min(16)))
        .min(longest)
}

/// A random time between zero and the whole pause.
pub fn full_jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::random())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses = [0, 1, 2, 3, 4, 40].map(|failures| exponential(MS(10), MS(100), failures).as_millis());
        assert_eq!(pauses, [10, 20, 40, 80, 100, 100]);
    }

    #[test]
    fn a_success_begins_anew() {
        let mut backoff = Backoff::new(MS(1), MS(1000));
        (0..20).for_each(|_| assert!(backoff.failed() <= MS(1000)));
        backoff.succeeded();
        assert!(backoff.failed() <= MS(1));
    }

    /// Two hundred backoffs spread over the pause: no tenth of it gets three times its share.
    #[test]
    fn many_do_not_retry_in_step() {
        let mut backoffs = vec![Backoff::new(MS(1000), MS(1000)); 200];
        let mut tenths = [0; 10];
        for backoff in &mut backoffs {
            let tenth = backoff.failed().as_millis() / 100;
            tenths[usize::try_from(tenth).expect("a small number").min(9)] += 1;
        }
        assert!(tenths.iter().all(|count| *count < 60), "{tenths:?}");
    }
}
