//! How busy the runtime is: the most calls that were in flight at a time lately. A backend polls for its reply, rather
//! than sleep, only while that is few; the number at the moment would say little, since answers come in bursts. In the
//! actor thread.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// "Lately" is between one and two of these.
const WINDOW: Duration = Duration::from_millis(20);

/// Shared by all sessions.
#[derive(Clone)]
pub struct Load(Rc<Inner>);

struct Inner {
    now: Cell<u16>,
    peak: Cell<u16>,
    peak_before: Cell<u16>,
    since: Cell<Instant>,
}

impl Load {
    pub fn new() -> Self {
        let none = || Cell::new(0);
        Load(Rc::new(Inner {
            now: none(),
            peak: none(),
            peak_before: none(),
            since: Cell::new(Instant::now()),
        }))
    }

    /// A call starts; it ends when the guard is dropped.
    pub fn call(&self) -> Call {
        let load = &self.0;
        load.now.set(load.now.get().saturating_add(1));
        load.peak.set(load.peak.get().max(load.now.get()));
        Call(self.clone())
    }

    /// The most calls in flight at a time, lately.
    pub fn peak(&self) -> u16 {
        let load = &self.0;
        let now = Instant::now();
        let age = now.duration_since(load.since.get());
        if age >= WINDOW {
            let last = if age >= 2 * WINDOW {
                load.now.get()
            } else {
                load.peak.get()
            };
            load.peak_before.set(last);
            load.peak.set(load.now.get());
            load.since.set(now);
        }
        load.peak.get().max(load.peak_before.get())
    }
}

/// A call in flight.
pub struct Call(Load);

impl Drop for Call {
    fn drop(&mut self) {
        let now = &self.0.0.now;
        now.set(now.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_remembered_for_a_while_and_then_forgotten() {
        let load = Load::new();
        let burst: Vec<Call> = (0..5).map(|_| load.call()).collect();
        drop(burst);
        assert_eq!(load.peak(), 5);
        std::thread::sleep(3 * WINDOW);
        let _one = load.call();
        load.peak();
        std::thread::sleep(WINDOW);
        assert_eq!(load.peak(), 1);
    }
}
