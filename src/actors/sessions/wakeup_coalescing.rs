//! Wake-up coalescing for the actor thread, as network cards coalesce their interrupts. While many sessions publish,
//! each of their writes would wake the thread for a message or two, and a wake-up costs more than the work that
//! follows. So the thread pauses before it waits again: writes meanwhile wake nobody, and then each session is read,
//! and NATS written to, for many messages at once. In the actor thread.
//!
//! The thread never pauses for one session alone, which gains nothing, nor while anybody waits for an answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Messages that a pause is to gather from each session.
const MESSAGES: f64 = 16.0;
/// Most bytes that a pause is to gather from each session; less than the session's socket holds.
const BYTES: f64 = 32.0 * 1024.0;
/// A shorter pause is left out, because it would cost more than it saves.
const SHORTEST: Duration = Duration::from_micros(50);
/// The longest pause, by which a message is held up.
const LONGEST: Duration = Duration::from_millis(2);
/// The time for which publishes are counted at least, before the next pause is computed.
const WINDOW: Duration = Duration::from_millis(4);

/// Counts what sessions publish, and computes pauses from it. Clones share the counts.
#[derive(Clone)]
pub struct WakeupCoalescing(Arc<Mutex<Gauge>>);

struct Gauge {
    window: u64,
    since: Instant,
    taken: Taken,
    pause: Option<Duration>,
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
            pause: None,
        })))
    }

    /// Counts a session's publishes. `seen` is the session's own: the window in which it has last published, at first
    /// 0.
    pub fn took(&self, seen: &mut u64, messages: usize, bytes: usize) {
        let mut gauge = self.0.lock();
        let window = gauge.window;
        let taken = &mut gauge.taken;
        taken.sessions += u32::from(std::mem::replace(seen, window) != window);
        taken.messages = taken
            .messages
            .saturating_add(u32::try_from(messages).unwrap_or(u32::MAX));
        taken.bytes = taken.bytes.saturating_add(bytes);
    }

    /// A session waits until its publishes are taken (`Barrier`): there is no pause until a new window has ended.
    pub fn asked(&self) {
        let mut gauge = self.0.lock();
        gauge.pause = None;
        gauge.taken = Taken::default();
        gauge.since = Instant::now();
        gauge.window += 1;
    }

    /// Called before the thread waits for more to do: pauses if that is worth it. `calls`: calls are in flight, which
    /// may wait for an answer, so there is no pause.
    pub fn rest(&self, calls: bool) {
        let pause = self.0.lock().next(Instant::now());
        if let Some(pause) = pause.filter(|_| !calls) {
            std::thread::sleep(pause);
        }
    }
}

impl Gauge {
    fn next(&mut self, now: Instant) -> Option<Duration> {
        let time = now.saturating_duration_since(self.since);
        if time >= WINDOW {
            self.pause = pause(time, std::mem::take(&mut self.taken));
            self.since = now;
            self.window += 1;
        }
        self.pause
    }
}

/// The pause, from what was taken in `time`; `None` if there is to be none.
fn pause(time: Duration, taken: Taken) -> Option<Duration> {
    if taken.sessions < 2 {
        return None;
    }
    // The part of what each session publishes in `time` that a pause is to gather.
    let part = (MESSAGES / f64::from(taken.messages)).min(BYTES / taken.bytes as f64);
    let pause = time.mul_f64(part * f64::from(taken.sessions));
    // At a low rate, a pause of any length would gather little.
    let gathered = f64::from(taken.messages) * LONGEST.as_secs_f64() / time.as_secs_f64();
    (pause >= SHORTEST && gathered >= MESSAGES).then(|| pause.min(LONGEST))
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
        let pause = |taken| pause(WINDOW, taken);
        assert_eq!(pause(taken(8, 400, 2000)), Some(WINDOW * 8 * 16 / 400));
        assert_eq!(pause(taken(64, 300, 1500)), Some(LONGEST));
    }

    #[test]
    fn there_is_no_pause_for_one_session_or_few_messages() {
        assert_eq!(pause(WINDOW, Taken::default()), None);
        assert_eq!(pause(WINDOW, taken(1, 10_000, 50_000)), None);
        assert_eq!(pause(WINDOW, taken(2, 20, 100)), None);
        assert_eq!(pause(Duration::from_secs(60), taken(8, 400, 2000)), None);
    }

    #[test]
    fn sessions_that_fill_their_sockets_are_read_at_once() {
        assert_eq!(pause(WINDOW, taken(2, 10_000, 1_000_000)), None);
        let large = pause(WINDOW, taken(2, 40, 4_000_000));
        assert!(large.is_none_or(|pause| pause < SHORTEST * 2), "{large:?}");
    }

    #[test]
    fn a_session_counts_once_in_a_window() {
        let gauge = WakeupCoalescing::new();
        let (mut one, mut other) = (0, 0);
        for _ in 0..50 {
            gauge.took(&mut one, 1, 5);
        }
        assert_eq!(gauge.0.lock().taken.sessions, 1);
        gauge.took(&mut other, 1, 5);
        assert_eq!(gauge.0.lock().taken.sessions, 2);
        let start = gauge.0.lock().since;
        assert_eq!(gauge.0.lock().next(start), None);
        assert!(gauge.0.lock().next(start + WINDOW).is_some());
        gauge.asked();
        assert_eq!(gauge.0.lock().next(start + WINDOW), None);
        assert_eq!(gauge.0.lock().next(start + 4 * WINDOW), None);
        gauge.took(&mut one, 1, 5);
        assert_eq!(gauge.0.lock().taken.sessions, 1);
    }
}
