//! How busy the runtime is: the most calls that were in flight at a time lately. A backend polls for its reply, instead
//! of sleeping, only while this number is small. The number at the moment would say little, since answers come in
//! bursts. In the actor thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The peak covers the last one to two windows.
const WINDOW: Duration = Duration::from_millis(20);

/// Counts the calls in flight. Clones share the count.
#[derive(Clone)]
pub struct InFlight(Arc<Mutex<Peaks>>);

struct Peaks {
    now: u16,
    peak: u16,
    peak_before: u16,
    since: Instant,
}

impl InFlight {
    pub fn new() -> Self {
        InFlight(Arc::new(Mutex::new(Peaks {
            now: 0,
            peak: 0,
            peak_before: 0,
            since: Instant::now(),
        })))
    }

    /// Counts a call as in flight until the returned guard is dropped.
    pub fn call(&self) -> CallInFlight {
        let mut load = self.0.lock();
        load.now = load.now.saturating_add(1);
        load.peak = load.peak.max(load.now);
        CallInFlight(self.clone())
    }

    /// Calls in flight now.
    pub fn now(&self) -> u16 {
        self.0.lock().now
    }

    /// The most calls in flight at a time during the last one to two windows.
    pub fn peak(&self) -> u16 {
        let mut load = self.0.lock();
        let now = Instant::now();
        let age = now.duration_since(load.since);
        if age >= WINDOW {
            load.peak_before = if age >= 2 * WINDOW { load.now } else { load.peak };
            load.peak = load.now;
            load.since = now;
        }
        load.peak.max(load.peak_before)
    }
}

/// Guard of a call in flight.
pub struct CallInFlight(InFlight);

impl Drop for CallInFlight {
    fn drop(&mut self) {
        let mut load = self.0.0.lock();
        load.now = load.now.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_remembered_for_a_while_and_then_forgotten() {
        let load = InFlight::new();
        let burst: Vec<CallInFlight> = (0..5).map(|_| load.call()).collect();
        drop(burst);
        assert_eq!(load.peak(), 5);
        std::thread::sleep(3 * WINDOW);
        let _one = load.call();
        load.peak();
        std::thread::sleep(WINDOW);
        assert_eq!(load.peak(), 1);
    }
}
