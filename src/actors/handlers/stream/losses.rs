//! Counts how often the connection has ended while messages were on their way to a durable subscription: a message that
//! the client library cannot read ends the connection each time. A plain struct; in the actor thread.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The connection has to end so often before messages are suspected.
const SUSPICIOUS: usize = 2;
/// Within this time, and twice `ack_wait`, after which JetStream delivers again what it has not heard of.
const WINDOW: Duration = Duration::from_secs(30);

/// When the connection has ended lately while messages were on their way.
#[derive(Default)]
pub struct Losses(VecDeque<Instant>);

impl Losses {
    /// The connection has ended.
    pub fn note(&mut self) {
        self.0.push_back(Instant::now());
        if self.0.len() > SUSPICIOUS {
            self.0.pop_front();
        }
    }

    /// Whether a message may be the reason. `ack_wait` is that of the subscription.
    pub fn are_suspicious(&self, ack_wait: Duration) -> bool {
        let window = WINDOW + ack_wait * 2;
        self.0.len() >= SUSPICIOUS && self.0.iter().all(|time| time.elapsed() < window)
    }

    /// No message is the reason.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
