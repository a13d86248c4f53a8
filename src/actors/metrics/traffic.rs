//! What a connection's clients have sent and received, added up: each reconnect makes a new client, which counts from
//! zero. Plain structs; in the actor thread.

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Messages, and bytes of NATS's protocol, without those that TLS adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
}

impl Totals {
    /// Messages in both directions. Bytes do not tell whether there were messages, because PINGs have bytes too.
    pub fn msgs(self) -> u64 {
        self.in_msgs + self.out_msgs
    }

    fn of(client: &ClientTraffic) -> Totals {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            in_msgs: count(&client.0.in_msgs),
            out_msgs: count(&client.0.out_msgs),
            in_bytes: count(&client.0.in_bytes),
            out_bytes: count(&client.0.out_bytes),
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

#[derive(Debug, Default)]
struct Carried {
    in_msgs: AtomicU64,
    out_msgs: AtomicU64,
    in_bytes: AtomicU64,
    out_bytes: AtomicU64,
}

/// What one client has carried.
#[derive(Clone, Debug, Default)]
pub struct ClientTraffic(Arc<Carried>);

impl ClientTraffic {
    /// The client has taken a message of so many bytes, to be sent.
    pub fn sent(&self, bytes: usize) {
        self.0.out_msgs.fetch_add(1, Ordering::Relaxed);
        self.0.out_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A message has come.
    pub fn received(&self) {
        self.0.in_msgs.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes have come.
    pub fn read(&self, bytes: usize) {
        self.0.in_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The traffic of all clients of a connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Totals of clients that have ended.
    past: Totals,
    /// The current client, and replaced clients that still deliver what they hold.
    clients: Vec<ClientTraffic>,
    /// Totals at the last reset, which do not count any more.
    base: Totals,
}

impl Traffic {
    /// The traffic of this client counts from now on.
    pub fn begin(&mut self, client: ClientTraffic) {
        self.clients.push(client);
    }

    /// A client has ended. Saying so twice changes nothing.
    pub fn end(&mut self, client: &ClientTraffic) {
        let before = self.clients.len();
        self.clients.retain(|known| !Arc::ptr_eq(&known.0, &client.0));
        if self.clients.len() < before {
            self.past = self.past + Totals::of(client);
        }
    }

    /// Totals since the connection was made, whatever was reset.
    pub fn all(&self) -> Totals {
        let clients = self.clients.iter().map(Totals::of);
        clients.fold(self.past, Totals::add)
    }

    /// Totals since the last reset.
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
        let (first, second) = (ClientTraffic::default(), ClientTraffic::default());
        let count = |client: &ClientTraffic, messages: usize, bytes| {
            (1..messages).for_each(|_| client.sent(0));
            client.sent(bytes);
        };
        traffic.begin(first.clone());
        count(&first, 3, 30);
        traffic.begin(second.clone());
        count(&second, 2, 20);
        let sent = |traffic: &Traffic| (traffic.totals().out_msgs, traffic.totals().out_bytes);
        assert_eq!(sent(&traffic), (5, 50));
        traffic.end(&first);
        traffic.end(&first);
        assert_eq!(sent(&traffic), (5, 50));
        traffic.reset();
        count(&second, 7, 70);
        assert_eq!(sent(&traffic), (7, 70));
    }
}
