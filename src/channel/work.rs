//! The messages between executors and the runtime worker: which handlers a database has, and messages for these. Pure.
//!
//! A handler is a function that messages call: the callback of a subscription or of a durable subscription, or a
//! responder.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::marks::Mark;
use super::outbox::{Batch, Fetch};
use super::progress::{Incarnation, StreamProgress};
use super::target::{Key, Source};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;

/// Bytes of a report besides its database name, servers and handlers; an upper bound.
const FRAME_OF_REPORT: usize = 64;

/// From an executor or an outbox relay to the runtime worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// The answer to [`ToWorker::Refresh`].
    Report(Report),
    /// The answer to [`ToWorker::Refresh`] if the handlers could not be read, and why.
    ReadFailed(String),
    /// The transaction of so many messages is about to commit: should the executor end before it says `Worked`, nobody
    /// knows whether they were executed. 0 takes this back.
    Committing { messages: u32 },
    /// The outcome of a transaction. The frame's body holds the replies, one after another.
    Worked(Worked),
    /// The handler cannot run as it is defined, because its function is gone for example. The messages stay with the
    /// runtime worker.
    Vanished,
    /// An outbox relay's answer to [`ToWorker::Fetch`]: the next messages, or none.
    Fetched(Option<Box<Batch>>),
}

/// An order from the runtime worker to an executor or an outbox relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Read the handlers of the database. The consumers with these keys are removed.
    Refresh { removed: Vec<i64> },
    /// Execute messages. The frame's body holds the payloads, one after another.
    Work(Box<Work>),
    /// To an outbox relay: read the outbox.
    Fetch(Box<Fetch>),
    /// End, so that the database can be dropped, for example.
    End,
}

/// What a database defines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub database_name: String,
    pub has_extension: bool,
    pub handlers: Vec<Definition>,
    /// Foreign servers with `notify_subject` or `patroni_url`. One whose options have no room is left out.
    pub servers: Vec<Source>,
    /// Whether messages wait in the outbox.
    pub has_outbox: bool,
    /// Consumers that no durable subscription uses any more. Those that have no room are left for the next report.
    pub former_consumers: Vec<FormerConsumer>,
}

/// A consumer that is to be removed from its stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FormerConsumer {
    /// The key in `litmus_pgnats.stream_consumer`.
    pub key: i64,
    /// The subscription that had the consumer.
    pub subscription: String,
    pub stream: String,
    pub durable: String,
    pub domain: Option<String>,
    /// The connection of the role that had subscribed.
    pub source: Source,
}

/// The kinds of handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HandlerKind {
    Subscription,
    /// A durable subscription of a JetStream stream.
    Stream,
    Responder,
}

impl HandlerKind {
    /// The kind that has this name in the table of handlers.
    pub fn named(name: &str) -> HandlerKind {
        match name {
            "responder" => HandlerKind::Responder,
            "stream" => HandlerKind::Stream,
            _ => HandlerKind::Subscription,
        }
    }

    /// The kind's name in messages to users.
    pub fn noun(self) -> &'static str {
        match self {
            HandlerKind::Stream => "durable subscription",
            _ => self.name(),
        }
    }

    /// A handler of the kind in messages to users. `subject` is the stream of a durable subscription.
    pub fn describe(self, subject: &str) -> String {
        let preposition = match self {
            HandlerKind::Stream => "of stream",
            _ => "on subject",
        };
        format!("{} {preposition} \"{subject}\"", self.noun())
    }

    /// The kind's name in the table of handlers.
    pub fn name(self) -> &'static str {
        match self {
            HandlerKind::Subscription => "subscription",
            HandlerKind::Stream => "stream",
            HandlerKind::Responder => "responder",
        }
    }
}

/// A handler as its database defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub kind: HandlerKind,
    pub server: String,
    /// The subject, or the stream of a durable subscription.
    pub subject: String,
    pub queue_group: Option<String>,
    /// Most messages for one call of a function that takes many; `None` for another function.
    pub batch_size: Option<u32>,
    /// For a durable subscription; `None` for other handlers.
    pub consumer: Option<Consumer>,
    /// Qualified name and argument types, for messages to users.
    pub function: String,
    pub function_oid: u32,
    pub role: u32,
    pub role_name: String,
    /// How far a durable subscription had got when this was read.
    pub progress: StreamProgress,
    /// The connection that the messages come from, or why the handler cannot run.
    pub source: Result<Source>,
    /// Why a durable subscription takes no messages, though it could; `None` if it takes them.
    pub halted: Option<String>,
}

/// What a durable subscription asks of JetStream, and of its executors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Consumer {
    /// The subscription's key in `litmus_pgnats.handler_stream`.
    pub id: String,
    /// System identifier of the PostgreSQL cluster, which the consumer's metadata names.
    pub cluster: i64,
    /// Name of the durable consumer.
    pub durable: String,
    pub domain: Option<String>,
    /// Empty for all subjects of the stream.
    pub filter_subjects: Vec<String>,
    pub start: DeliverFrom,
    /// Most messages for one pull, and one call of a function that takes many.
    pub batch_size: u32,
    pub ack_wait_ms: u64,
    /// Number of deliveries after which a message that fails is given up; 0: never.
    pub max_deliveries: u32,
    /// Milliseconds before the second, third, ... delivery; the last value holds for all further ones too.
    pub backoff_ms: Vec<u64>,
    /// Whether messages after one that fails wait for it, and the subscription stops rather than give that message up.
    pub stop_on_failure: bool,
    /// How often the subscription was told to go on, moved or altered: the handler begins anew then.
    pub resumed: u32,
}

/// Where a new consumer begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeliverFrom {
    All,
    New,
    Sequence(u64),
    /// Microseconds since 1970.
    Time(i64),
}

/// What identifies a handler: a definition with the same identity is of the same handler, and takes over its messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HandlerIdentity {
    kind: HandlerKind,
    function_oid: u32,
    role: u32,
    subject: String,
    queue_group: Option<String>,
    batch_size: Option<u32>,
    consumer: Option<Consumer>,
    key: Option<Key>,
    halted: Option<String>,
}

impl Definition {
    /// What tells whether a new definition is of the same handler.
    pub fn identity(&self) -> HandlerIdentity {
        HandlerIdentity {
            kind: self.kind,
            function_oid: self.function_oid,
            role: self.role,
            subject: self.subject.clone(),
            queue_group: self.queue_group.clone(),
            batch_size: self.batch_size,
            consumer: self.consumer.clone(),
            key: self.source.as_ref().map(|source| source.target.key).ok(),
            halted: self.halted.clone(),
        }
    }
}

impl Report {
    /// Makes the report fit into `room` bytes. One half is for the options of the connections: a handler whose options
    /// have no room cannot run, which its definition says then. The other half is for all else: handlers that have no
    /// room there are left out. Returns how many these are.
    pub fn fit(&mut self, room: usize) -> usize {
        let (mut options, mut others) = (Room(room / 2), Room(room / 2));
        others.take(size(&self.database_name) + FRAME_OF_REPORT);
        self.servers.retain(|source| options.take(size(source)));
        self.former_consumers.retain(|former| options.take(size(former)));
        let all = self.handlers.len();
        self.handlers.retain_mut(|handler| {
            if !options.take(size(&handler.source)) {
                handler.source = Err(Error::new(
                    Kind::TooManyHandlers,
                    "the options of the connections of this database's subscriptions and responders take too much room",
                ));
            }
            others.take(size(handler) - handler.source.as_ref().map_or(0, size))
        });
        all - self.handlers.len()
    }
}

/// Bytes that are left.
struct Room(usize);

impl Room {
    /// Takes so many bytes if they are left; `false` if they are not.
    fn take(&mut self, size: usize) -> bool {
        let rest = self.0.checked_sub(size);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

/// Bytes that a value takes in a frame.
fn size<T: Serialize>(value: &T) -> usize {
    postcard::serialize_with_flavor(value, postcard::ser_flavors::Size::default()).unwrap_or(usize::MAX)
}

/// Messages for one handler, in the order of their arrival.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub kind: HandlerKind,
    pub function: u32,
    pub role: u32,
    /// Object id of the foreign server, on which the role needs USAGE.
    pub server: u32,
    /// The handler's own subject, or the stream of a durable subscription.
    pub subject: String,
    /// Statement timeout in milliseconds; 0: the shorter of the role's own and `litmus_pgnats.callback_timeout`.
    pub timeout_ms: u32,
    /// Whether the function takes many messages at once.
    pub is_batch: bool,
    /// For a durable subscription; `None` for other handlers.
    pub stream: Option<StreamWork>,
    pub messages: Vec<Delivered>,
}

impl Work {
    /// Whether messages after one that fails have to wait for it.
    pub fn stops(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.stop_on_failure)
    }
}

/// What an executor has to know of the durable subscription whose messages it executes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamWork {
    /// The subscription's key in `litmus_pgnats.handler_stream`.
    pub id: String,
    /// As [`Consumer::resumed`]: messages that were taken before the subscription was changed have no effects.
    pub resumed: u32,
    /// The stream that the messages come from.
    pub incarnation: Incarnation,
    /// All messages up to this sequence do not concern the subscription, or are done with.
    pub base: u64,
    /// Number of deliveries after which a message that fails is given up; 0: never.
    pub max_deliveries: u32,
    pub stop_on_failure: bool,
}

/// The stream position of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    pub sequence: u64,
    /// The consumer has no message between this sequence and the message's own.
    pub after: u64,
    /// How often the message was delivered, this time included.
    pub deliveries: u32,
}

/// A message; its payload is in the frame's body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    pub subject: String,
    pub reply: Option<String>,
    pub headers: Headers,
    /// Bytes of the payload.
    pub size: u32,
    /// When the message arrived, in milliseconds after the first message of the work.
    pub after_ms: u32,
    /// When the stream stored the message or, where there is no stream, when it arrived; in microseconds since 1970.
    pub time_us: i64,
    /// `None` for a message that is not a durable subscription's.
    pub position: Option<StreamPosition>,
    /// Whether this is a poison message: executors have died with it, so it is given up and not executed.
    pub is_poison: bool,
}

impl StreamPosition {
    /// The message in the history of its stream, which has stored it at this time (in microseconds since 1970).
    pub fn mark(self, time_us: i64) -> Mark {
        Mark {
            sequence: self.sequence,
            time_us,
        }
    }
}

/// The outcome of a transaction.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Worked {
    /// Number of messages that are done with, from the first on.
    pub messages: u32,
    /// Those of the messages that failed.
    pub failures: Vec<Failure>,
    /// Sizes of a responder's replies in bytes, 0 for a message that failed; empty for a subscription.
    pub replies: Vec<u32>,
    /// Whether the executor goes on with the rest of the work; if not, it waits for new work.
    pub goes_on: bool,
    /// The ack floor of a durable subscription: all messages up to this sequence are done with. `None` for other
    /// handlers.
    pub ack_floor: Option<u64>,
    /// What each call of the function took, in microseconds; attempts that were rolled back are included.
    pub times_us: Vec<u32>,
}

/// Why a message's function failed; nothing of its effects remains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The message's place in this [`Worked`], from 0.
    pub index: u32,
    pub sqlstate: String,
    pub message: String,
    /// Whether a durable subscription's message was given up, so that it need not be delivered again.
    pub is_final: bool,
}

#[cfg(test)]
mod tests {
    use super::super::target::Target;
    use super::*;
    use crate::settings::{Options, Settings};

    fn report(handlers: usize, host: &str) -> Report {
        let options = Options::from([("host".to_string(), host.to_string())]);
        let definition = |n: usize| Definition {
            kind: HandlerKind::Subscription,
            server: "nats".into(),
            subject: format!("subject.{n}"),
            queue_group: None,
            batch_size: None,
            consumer: None,
            progress: StreamProgress::default(),
            function: "public.f(bytea)".into(),
            function_oid: 1,
            role: 10,
            role_name: "somebody".into(),
            source: Ok(Source {
                target: Target {
                    key: Key {
                        database: 1,
                        server: 2,
                        mapping: 3,
                        private_to: 0,
                    },
                    database_name: "db".into(),
                    server_name: "nats".into(),
                },
                settings: Settings::resolve(&options, None).expect("options"),
            }),
            halted: None,
        };
        Report {
            database_name: "db".into(),
            has_extension: true,
            handlers: (0..handlers).map(definition).collect(),
            servers: Vec::new(),
            has_outbox: false,
            former_consumers: Vec::new(),
        }
    }

    #[test]
    fn a_report_of_any_size_fits() {
        let long = vec!["host"; 50].join(",");
        for (handlers, able, all_there) in [(10, 10, true), (100, 52, true), (1000, 52, false)] {
            let mut report = report(handlers, &long);
            let left_out = report.fit(40_000);
            assert_eq!(report.handlers.len() + left_out, handlers);
            assert_eq!(left_out == 0, all_there, "of {handlers}");
            let runs = report.handlers.iter().filter(|h| h.source.is_ok());
            assert_eq!(runs.count(), able, "of {handlers}");
            assert!(size(&report) <= 40_000, "{}", size(&report));
        }
    }
}
