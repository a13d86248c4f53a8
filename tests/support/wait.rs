//! Waiting for something to become true.

use std::fmt::Debug;
use std::panic::Location;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(20);

/// What a probe of [`eventually`] may return: `true`, `Some(value)` and `Ok(value)` end the wait.
pub trait Probe {
    type Value;
    /// The value when the condition holds, otherwise what was seen instead.
    fn verdict(self) -> Result<Self::Value, String>;
}

impl Probe for bool {
    type Value = ();
    fn verdict(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "false".into())
    }
}

impl<T> Probe for Option<T> {
    type Value = T;
    fn verdict(self) -> Result<T, String> {
        self.ok_or_else(|| "None".into())
    }
}

impl<T, E: Debug> Probe for Result<T, E> {
    type Value = T;
    fn verdict(self) -> Result<T, String> {
        self.map_err(|seen| format!("{seen:?}"))
    }
}

/// Text for the `Err` of a probe that is shown as it is, line breaks included.
pub struct Seen(pub String);

impl Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Calls `probe` again and again until it holds and returns its value; panics with what it last returned when it
/// does not hold within `timeout`.
#[track_caller]
pub fn eventually<P: Probe>(
    timeout: Duration,
    mut probe: impl AsyncFnMut() -> P,
) -> impl Future<Output = P::Value> {
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + timeout;
        loop {
            let out_of_time = Instant::now() >= deadline;
            match probe().await.verdict() {
                Ok(value) => return value,
                Err(seen) if out_of_time => {
                    panic!("{caller}: did not hold within {timeout:?}; last seen: {seen}")
                }
                Err(_) => tokio::time::sleep(TICK).await,
            }
        }
    }
}

/// Waits until `probe` returns `expected`; panics with what it last returned otherwise.
#[track_caller]
pub fn eventually_eq<T: PartialEq + Debug>(
    timeout: Duration,
    expected: T,
    mut probe: impl AsyncFnMut() -> T,
) -> impl Future<Output = ()> {
    eventually(timeout, async move || {
        let seen = probe().await;
        if seen == expected {
            Ok(())
        } else {
            Err(Seen(format!("{seen:?} instead of {expected:?}")))
        }
    })
}
