//! What a connection's clients have sent and received: each reconnect makes a new client, which counts from zero. A plain
//! struct of the connection actor; in the actor thread.

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_nats::Statistics;

/// Messages, and bytes with those of the protocol, but without TLS's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
}

impl Totals {
    /// Messages in both directions. Bytes tell nothing of them: some are PINGs.
    pub fn msgs(self) -> u64 {
        self.in_msgs + self.out_msgs
    }

    fn of(statistics: &Statistics) -> Totals {
        Totals {
            in_msgs: statistics.in_messages.load(Ordering::Relaxed),
            out_msgs: statistics.out_messages.load(Ordering::Relaxed),
            in_bytes: statistics.in_bytes.load(Ordering::Relaxed),
            out_bytes: written(
                statistics.out_bytes.load(Ordering::Relaxed),
                statistics.out_messages.load(Ordering::Relaxed),
            ),
        }
    }
}

impl Add for Totals {
    type Output = Totals;

    fn add(self, other: Totals) -> Totals {
        Totals {
            in_msgs: self.in_msgs + other.in_msgs,
            out_msgs: self.out_msgs + other.out_msgs,
            in_bytes: self.in_bytes + other.in_bytes,
            out_bytes: self.out_bytes + other.out_bytes,
        }
    }
}

impl Sub for Totals {
    type Output = Totals;

    fn sub(self, other: Totals) -> Totals {
        Totals {
            in_msgs: self.in_msgs.saturating_sub(other.in_msgs),
            out_msgs: self.out_msgs.saturating_sub(other.out_msgs),
            in_bytes: self.in_bytes.saturating_sub(other.in_bytes),
            out_bytes: self.out_bytes.saturating_sub(other.out_bytes),
        }
    }
}

/// async-nats 0.51 counts a message's subject and payload when it takes the message, and all of its bytes when it writes
/// them. So this is what it has written, but for half of the bytes of headers.
fn written(counted: u64, messages: u64) -> u64 {
    (counted + PUB * messages) / 2
}

/// What the protocol adds to a subject and a payload: `PUB`, the length, spaces and line ends.
const PUB: u64 = 13;

/// The clients' numbers.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Of clients that have ended.
    past: Totals,
    /// Of the present one, and of those that it replaces and that deliver what they hold.
    clients: Vec<Arc<Statistics>>,
    /// What is not counted: all before the reset.
    base: Totals,
}

impl Traffic {
    /// A client counts.
    pub fn begin(&mut self, client: Arc<Statistics>) {
        self.clients.push(client);
    }

    /// It has ended.
    pub fn end(&mut self, client: &Arc<Statistics>) {
        let before = self.clients.len();
        self.clients.retain(|known| !Arc::ptr_eq(known, client));
        if self.clients.len() < before {
            self.past = self.past + Totals::of(client);
        }
    }

    /// Since the connection was first made, resets or not.
    pub fn all(&self) -> Totals {
        let clients = self.clients.iter().map(|client| Totals::of(client));
        clients.fold(self.past, Totals::add)
    }

    pub fn totals(&self) -> Totals {
        self.all() - self.base
    }

    pub fn reset(&mut self) {
        self.base = self.all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_counted_twice_or_forgotten_from_one_client_to_the_next() {
        let mut traffic = Traffic::default();
        let (first, second) = (Arc::<Statistics>::default(), Arc::<Statistics>::default());
        traffic.begin(first.clone());
        first.out_messages.store(3, Ordering::Relaxed);
        traffic.begin(second.clone());
        second.out_messages.store(2, Ordering::Relaxed);
        assert_eq!(traffic.totals().out_msgs, 5);
        traffic.end(&first);
        traffic.end(&first);
        assert_eq!(traffic.totals().out_msgs, 5);
        traffic.reset();
        second.out_messages.store(9, Ordering::Relaxed);
        assert_eq!(traffic.totals().out_msgs, 7);
    }
}
