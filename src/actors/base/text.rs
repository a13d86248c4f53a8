//! Times as text that the columns of the views read. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time as `to_timestamp` takes it.
pub fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64()).to_string()
}

/// A time that something takes, in milliseconds.
pub fn milliseconds(time: Duration) -> String {
    (time.as_secs_f64() * 1000.0).to_string()
}
