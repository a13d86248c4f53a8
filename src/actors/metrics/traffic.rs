//! What a connection's clients have sent and received, added up: each reconnect makes a new client, which counts from
//! zero. Plain structs; in the actor thread.

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::Statistics;
use async_nats::message::OutboundMessage;

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
        let statistics = &client.statistics;
        Totals {
            in_msgs: statistics.in_messages.load(Ordering::Relaxed),
            out_msgs: statistics.out_messages.load(Ordering::Relaxed),
            in_bytes: statistics.in_bytes.load(Ordering::Relaxed),
            out_bytes: client.out_bytes.load(Ordering::Relaxed),
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

/// What one client has carried. async-nats counts sent bytes twice, when it takes a message and when it writes the
/// message, so sent bytes are counted here.
#[derive(Clone, Debug)]
pub struct ClientTraffic {
    statistics: Arc<Statistics>,
    out_bytes: Arc<AtomicU64>,
}

impl ClientTraffic {
    pub fn new(statistics: Arc<Statistics>) -> ClientTraffic {
        ClientTraffic {
            statistics,
            out_bytes: Arc::default(),
        }
    }

    /// The client has taken a message of so many bytes.
    pub fn sent(&self, bytes: usize) {
        self.out_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Bytes that a message takes in the protocol: `PUB subject [reply] size`, or `HPUB` with two sizes and the headers.
pub fn wire_size(message: &OutboundMessage) -> usize {
    const LINE_ENDS: usize = 4;
    let payload = message.payload.len();
    let reply = message.reply.as_ref().map_or(0, |reply| reply.len() + 1);
    let subject = message.subject.len() + 1;
    match &message.headers {
        None => "PUB ".len() + subject + reply + digits(payload) + LINE_ENDS + payload,
        Some(headers) => {
            let lines = headers.iter().flat_map(|(name, values)| {
                let name: &str = name.as_ref();
                values
                    .iter()
                    .map(move |value| name.len() + ": \r\n".len() + value.as_str().len())
            });
            let headers = "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>();
            let sizes = digits(headers) + 1 + digits(headers + payload);
            "HPUB ".len() + subject + reply + sizes + LINE_ENDS + headers + payload
        }
    }
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
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
        self.clients
            .retain(|known| !Arc::ptr_eq(&known.out_bytes, &client.out_bytes));
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
        let client = || ClientTraffic::new(Arc::default());
        let (first, second) = (client(), client());
        let count = |client: &ClientTraffic, messages, bytes| {
            client.statistics.out_messages.store(messages, Ordering::Relaxed);
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
        count(&second, 9, 70);
        assert_eq!(sent(&traffic), (7, 70));
    }

    #[test]
    fn bytes_are_those_of_the_protocol() {
        let mut message = OutboundMessage {
            subject: "a.b".into(),
            reply: None,
            payload: "hello".into(),
            headers: None,
        };
        assert_eq!(wire_size(&message), "PUB a.b 5\r\nhello\r\n".len());
        message.reply = Some("inbox".into());
        message.payload = vec![0; 10].into();
        assert_eq!(wire_size(&message), "PUB a.b inbox 10\r\n0123456789\r\n".len());
        let mut headers = async_nats::HeaderMap::new();
        headers.append("Name", "one");
        headers.append("Name", "two");
        message.headers = Some(headers);
        let header = "NATS/1.0\r\nName: one\r\nName: two\r\n\r\n".len();
        let line = format!("HPUB a.b inbox {header} {}\r\n", header + 10).len();
        assert_eq!(wire_size(&message), line + header + 10 + 2);
        message.payload = Default::default();
        assert_eq!(digits(0), 1);
    }
}
