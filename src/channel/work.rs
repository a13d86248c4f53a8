//! What an executor and the runtime say to each other: which handlers a database has, and messages for them. Pure.
//!
//! A handler is a function that messages call: a subscription's callback, a durable one's, or a responder.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::outbox::{Batch, Fetch};
use super::target::{Key, Source};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;

/// Room for what a report has besides its parts, in bytes.
const FRAME_OF_REPORT: usize = 64;

/// From an executor to the runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FromWorker {
    /// In answer to [`ToWorker::Refresh`].
    Report(Report),
    /// The same, if it cannot be read, and why.
    ReadFailed(String),
    /// So many messages have been executed and their transaction is about to commit: should the executor end before
    /// it says `Worked`, nobody knows whether they were.
    Committing { messages: u32 },
    /// The transaction has ended. The frame's body holds the replies, one after another.
    Worked(Worked),
    /// The function of the work at hand is gone; the messages stay.
    Vanished,
    /// An outbox relay's answer to [`ToWorker::Fetch`]: the next messages, or none.
    Fetched(Option<Box<Batch>>),
}

/// From the runtime to an executor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Read what handlers there are.
    Refresh,
    /// The frame's body holds the payloads, one after another.
    Work(Box<Work>),
    /// To an outbox relay.
    Fetch(Box<Fetch>),
    /// End, and be no trouble to DROP DATABASE.
    Leave,
}

/// What a database defines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub database_name: String,
    pub has_extension: bool,
    pub handlers: Vec<Definition>,
    /// Servers that name a subject for the server's role, or Patroni.
    pub servers: Vec<Source>,
    /// Messages wait in the outbox.
    pub has_outbox: bool,
}

/// What kind of handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HandlerKind {
    Subscription,
    /// A durable subscription of a JetStream stream.
    Stream,
    Responder,
}

impl HandlerKind {
    /// The kind that the table calls so.
    pub fn named(name: &str) -> HandlerKind {
        match name {
            "responder" => HandlerKind::Responder,
            "stream" => HandlerKind::Stream,
            _ => HandlerKind::Subscription,
        }
    }

    /// As people call it.
    pub fn noun(self) -> &'static str {
        match self {
            HandlerKind::Stream => "durable subscription",
            _ => self.name(),
        }
    }

    /// One of the kind, in messages to people; of a durable subscription `subject` is the stream.
    pub fn describe(self, subject: &str) -> String {
        let preposition = match self {
            HandlerKind::Stream => "of stream",
            _ => "on subject",
        };
        format!("{} {preposition} \"{subject}\"", self.noun())
    }

    /// As the table has it.
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
    /// Of a durable subscription: the stream.
    pub subject: String,
    pub queue_group: Option<String>,
    /// Most messages for one call of a function that takes many; none for another function.
    pub batch_size: Option<u32>,
    /// Of a durable subscription.
    pub consumer: Option<Consumer>,
    /// Qualified name and argument types, for people.
    pub function: String,
    pub function_oid: u32,
    pub role: u32,
    pub role_name: String,
    /// How far a durable subscription was when this was read.
    pub progress: StreamProgress,
    /// Where its messages come from, or why it cannot run.
    pub source: Result<Source>,
}

/// What a durable subscription asks of JetStream, and of its executors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Consumer {
    /// The subscription's key in `litmus_pgnats.handler_stream`.
    pub id: String,
    /// Name of the durable consumer.
    pub durable: String,
    pub domain: Option<String>,
    /// None: all subjects of the stream.
    pub filter_subjects: Vec<String>,
    pub start: DeliverFrom,
    /// Most messages for one pull, and one call of a function that takes many.
    pub batch_size: u32,
    pub ack_wait_ms: u64,
    /// After so many deliveries a message that fails is given up; 0: never.
    pub max_deliveries: u32,
    /// Milliseconds before the second, third, ... delivery; the last one for all further.
    pub backoff_ms: Vec<u64>,
    /// Whether messages behind one that fails wait for it, and the subscription stops rather than give it up.
    pub stop_on_failure: bool,
}

/// Where a new consumer begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeliverFrom {
    All,
    New,
    Sequence(u64),
    /// As RFC 3339.
    Time(String),
}

/// How far a durable subscription is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamProgress {
    /// All messages up to this sequence are done with, or are none of the subscription's; none: not known yet.
    pub floor: Option<u64>,
    /// When the stream was created that this holds for, as JetStream says it.
    pub stream_created: Option<String>,
}

/// What makes a handler another one: messages that were taken for one are also those of another with the same.
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
}

impl Definition {
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
        }
    }
}

impl Report {
    /// Makes the report fit into so many bytes: half of them are for the options of the connections, and a handler whose
    /// options have no room cannot run, which its definition says; the other half is for all else, and the last handlers
    /// are left out if that has no room. Returns how many these are.
    pub fn fit(&mut self, room: usize) -> usize {
        let (mut options, mut others) = (Room(room / 2), Room(room / 2));
        others.take(size(&self.database_name) + FRAME_OF_REPORT);
        self.servers.retain(|source| options.take(size(source)));
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
    /// Whether so many were left; they are taken then.
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
    /// The foreign server, which the role has to have the right to use.
    pub server: u32,
    /// The handler's own subject.
    pub subject: String,
    /// Statement timeout in milliseconds; 0: the role's own.
    pub timeout_ms: u32,
    /// Whether the function takes many messages at once.
    pub is_batch: bool,
    /// Of a durable subscription.
    pub stream: Option<StreamWork>,
    pub messages: Vec<Delivered>,
}

impl Work {
    /// Whether messages behind one that fails have to wait for it.
    pub fn stops(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.stop_on_failure)
    }
}

/// What the executor of a durable subscription's messages has to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamWork {
    /// The subscription's key in `litmus_pgnats.handler_stream`.
    pub id: String,
    pub stream_created: String,
    /// All messages up to this sequence are none of the subscription's, or done with.
    pub base: u64,
    /// 0: a message is never given up.
    pub max_deliveries: u32,
    pub stop_on_failure: bool,
}

/// Where a message of a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamPosition {
    pub sequence: u64,
    /// The consumer has no message between this sequence and the message's own.
    pub after: u64,
    /// This time included.
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
    /// Milliseconds after the first message of the work.
    pub after_ms: u32,
    /// When the stream took it, or it arrived: microseconds since 1970.
    pub time_us: i64,
    /// Of a durable subscription's.
    pub place: Option<StreamPosition>,
    /// Executors have died with it: it is given up, and not executed.
    pub is_poison: bool,
}

/// The outcome of a transaction.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Worked {
    /// Messages that are done with, from the first on.
    pub messages: u32,
    /// Those among them that failed, by their place in this transaction.
    pub failures: Vec<Failure>,
    /// Sizes of a responder's replies, 0 for one that failed; none for a subscription.
    pub replies: Vec<u32>,
    /// Whether the executor goes on with the rest of the work, or wants new work.
    pub goes_on: bool,
    /// Of a durable subscription: all messages up to this sequence are done with.
    pub floor: Option<u64>,
    /// What each call of the function took, in microseconds: those of attempts that were rolled back too.
    pub times_us: Vec<u32>,
}

/// Why a message's function failed; nothing of its effects remains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub index: u32,
    pub sqlstate: String,
    pub message: String,
    /// A durable subscription's: it is given up, and need not be delivered again.
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
        };
        Report {
            database_name: "db".into(),
            has_extension: true,
            handlers: (0..handlers).map(definition).collect(),
            servers: Vec::new(),
            has_outbox: false,
        }
    }

    #[test]
    fn a_report_of_any_size_fits() {
        let long = vec!["host"; 50].join(",");
        for (handlers, able, all_there) in [(10, 10, true), (100, 53, true), (1000, 53, false)] {
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
