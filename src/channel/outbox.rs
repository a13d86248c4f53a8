//! The messages between outbox relays and the runtime worker. An outbox relay is a worker that reads a database's
//! outbox, and removes from it what the runtime worker has delivered. Pure.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::target::Source;
use crate::error::{Error, Result};
use crate::nats::headers::Headers;

/// A part of the outbox, whose messages are delivered in order by one connection: those that a role has published to a
/// foreign server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Partition {
    pub server: String,
    pub role: u32,
}

/// An order to an outbox relay: write down what became of messages, then read the next ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    pub settled: Vec<Settled>,
    /// Partitions that are being delivered or wait, and are not to be read.
    pub busy: Vec<Partition>,
    /// Subjects that wait, by partition, and are not to be read.
    pub held: Vec<(Partition, Vec<String>)>,
}

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    pub partition: Partition,
    /// In the order of the batch's messages. Messages without an outcome were not sent, and wait.
    pub outcomes: Vec<DeliveryOutcome>,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeliveryOutcome {
    /// JetStream has stored the message.
    Stored,
    /// The message stays in the outbox, to be sent again.
    Waits,
    /// The message goes to the dead letters, for this reason.
    Dead(Error),
}

/// Messages of one partition, in the order in which they are to be sent, of any number of transactions: not what the
/// column `batch` of the table numbers, which is one transaction. The frame's body holds the payloads, one after
/// another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    pub partition: Partition,
    /// The connection, or why there is none.
    pub source: Result<Source>,
    pub messages: Vec<OutboxMessage>,
}

/// A message of the outbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutboxMessage {
    pub subject: String,
    pub headers: Headers,
    pub domain: Option<String>,
    /// The value of the header `Nats-Msg-Id`.
    pub message_id: String,
    /// Bytes of the payload.
    pub size: u32,
}
