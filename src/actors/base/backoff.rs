//! Pauses that grow while something fails. Pure.

use std::time::Duration;

/// The pause after so many failures in a row before: doubled each time, up to the limit.
pub fn backoff(first: Duration, limit: Duration, times: u32) -> Duration {
    first
        .saturating_mul(2u32.saturating_pow(times.min(16)))
        .min(limit)
}
