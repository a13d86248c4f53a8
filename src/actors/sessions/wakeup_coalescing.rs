//! When the actor thread rests. While many sessions publish, each of their writes would wake it for a message or two,
//! and a wake-up costs more than what is then done. So it naps before it waits again: writers wake nobody meanwhile,
//! and each session is then read, and NATS written to, for many messages at once. Network cards spare the processor
//! in the same way. In the actor thread.
//!
//! It never naps for one session alone, which gains nothing, nor while anybody waits for an answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a nap is to gather from each session: so many messages, or so many bytes. Less than its socket holds.
const MESSAGES: f64 = 16.0;
const BYTES: f64 = 32.0 * 1024.0;
/// A nap that would be shorter is left out; it would cost more than it spares.
const SHORTEST: Duration = Duration::from_micros(50);
/// The longest that a message is held up.
const LONGEST: Duration = Duration::from_millis(2);
/// What is measured at a time.
const WINDOW: Duration = Duration::from_millis(4);

/// Shared by all sessions and the runtime.
#[derive(Clone)]
pub struct WakeupCoalescing(Arc<Mutex<Gauge>>);

struct Gauge {
    window: u64,
    since: Instant,
    taken: Taken,
    nap: Option<Duration>,
}

/// What sessions have published in a window.
#[derive(Clone, Copy, Default)]
struct Taken {
    sessions: u32,
    messages: u32,
    bytes: usize,
}

impl WakeupCoalescing {
    pub fn new() -> Self {
        WakeupCoalescing(Arc::new(Mutex::new(Gauge {
            window: 1,
            since: Instant::now(),
            taken: Taken::default(),
            nap: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Gauge> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has published. `seen` is the session's own: the window in which it last did, at first 0.
    pub fn took(&self, seen: &mut u64, messages: usize, bytes: usize) {
        let mut pace = self.lock();
        let window = pace.window;
        let taken = &mut pace.taken;
        taken.sessions += u32::from(std::mem::replace(seen, window) != window);
        taken.messages = taken
            .messages
            .saturating_add(u32::try_from(messages).unwrap_or(u32::MAX));
        taken.bytes = taken.bytes.saturating_add(bytes);
    }

    /// A session waits until what it has published is taken: there is no nap for a while.
    pub fn asked(&self) {
        let mut pace = self.lock();
        pace.nap = None;
        pace.taken = Taken::default();
        pace.since = Instant::now();
        pace.window += 1;
    }

    /// Before the thread waits for more to do: naps if that is worth it. `calls` may be waiting for an answer.
    pub fn rest(&self, calls: bool) {
        if let Some(nap) = self.lock().next(Instant::now()).filter(|_| !calls) {
            std::thread::sleep(nap);
        }
    }
}

impl Gauge {
    fn next(&mut self, now: Instant) -> Option<Duration> {
        let time = now.saturating_duration_since(self.since);
        if time >= WINDOW {
            self.nap = nap(time, std::mem::take(&mut self.taken));
            self.since = now;
            self.window += 1;
        }
        self.nap
    }
}

/// How long to nap, given what was taken in so much time.
fn nap(time: Duration, taken: Taken) -> Option<Duration> {
    if taken.sessions < 2 {
        return None;
    }
    // Of what each session publishes in this time, a nap is to gather this part.
    let part = (MESSAGES / f64::from(taken.messages)).min(BYTES / taken.bytes as f64);
    let nap = time.mul_f64(part * f64::from(taken.sessions));
    // At a low rate, a nap of any length would gather little.
    let gathered = f64::from(taken.messages) * LONGEST.as_secs_f64() / time.as_secs_f64();
    (nap >= SHORTEST && gathered >= MESSAGES).then(|| nap.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(sessions: u32, messages: u32, bytes: usize) -> Taken {
        Taken {
            sessions,
            messages,
            bytes,
        }
    }

    #[test]
    fn many_sessions_with_small_messages_are_gathered() {
        let nap = |taken| nap(WINDOW, taken);
        assert_eq!(nap(taken(8, 400, 2000)), Some(WINDOW * 8 * 16 / 400));
        assert_eq!(nap(taken(64, 300, 1500)), Some(LONGEST));
    }

    #[test]
    fn there_is_no_nap_for_one_session_or_few_messages() {
        assert_eq!(nap(WINDOW, Taken::default()), None);
        assert_eq!(nap(WINDOW, taken(1, 10_000, 50_000)), None);
        assert_eq!(nap(WINDOW, taken(2, 20, 100)), None);
        assert_eq!(nap(Duration::from_secs(60), taken(8, 400, 2000)), None);
    }

    #[test]
    fn sessions_that_fill_their_sockets_are_read_at_once() {
        assert_eq!(nap(WINDOW, taken(2, 10_000, 1_000_000)), None);
        let large = nap(WINDOW, taken(2, 40, 4_000_000));
        assert!(large.is_none_or(|nap| nap < SHORTEST * 2), "{large:?}");
    }

    #[test]
    fn a_session_counts_once_in_a_window() {
        let pace = WakeupCoalescing::new();
        let (mut one, mut other) = (0, 0);
        for _ in 0..50 {
            pace.took(&mut one, 1, 5);
        }
        assert_eq!(pace.lock().taken.sessions, 1);
        pace.took(&mut other, 1, 5);
        assert_eq!(pace.lock().taken.sessions, 2);
        let start = pace.lock().since;
        assert_eq!(pace.lock().next(start), None);
        assert!(pace.lock().next(start + WINDOW).is_some());
        pace.asked();
        assert_eq!(pace.lock().next(start + WINDOW), None);
        assert_eq!(pace.lock().next(start + 4 * WINDOW), None);
        pace.took(&mut one, 1, 5);
        assert_eq!(pace.lock().taken.sessions, 1);
    }
}
