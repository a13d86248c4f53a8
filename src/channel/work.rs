//! What an executor and the runtime say to each other: which handlers a database has, and messages for them. Pure.
//!
//! A handler is a function that messages call: a subscription's callback or a responder.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::message::Target;
use crate::error::Result;
use crate::nats::headers::Headers;
use crate::settings::Settings;

/// From an executor to the runtime.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Said {
    /// In answer to [`Told::Look`].
    Report(Report),
    /// The same, if it cannot be read, and why.
    Blind(String),
    /// So many messages have been executed and their transaction is about to commit: should the executor end before
    /// it says `Worked`, nobody knows whether they were.
    Committing { messages: u32 },
    /// The transaction has ended. The frame's body holds the replies, one after another.
    Worked(Worked),
    /// The function of the work at hand is gone; the messages stay.
    Vanished,
}

/// From the runtime to an executor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// Read what handlers there are.
    Look,
    /// The frame's body holds the payloads, one after another.
    Work(Box<Work>),
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
}

/// What kind of handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HandlerKind {
    Subscription,
    Responder,
}

/// A handler as its database defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    pub kind: HandlerKind,
    pub server: String,
    pub subject: String,
    pub queue_group: Option<String>,
    /// Qualified name and argument types, for people.
    pub function: String,
    pub function_oid: u32,
    pub role: u32,
    pub role_name: String,
    /// Where its messages come from, or why it cannot run.
    pub source: Result<Source>,
}

/// The NATS connection of a handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub target: Target,
    pub settings: Settings,
}

impl Definition {
    /// Whether messages that were taken for this handler are the other's as well.
    pub fn continues(&self, other: &Definition) -> bool {
        let place = |d: &Definition| d.source.as_ref().map(|source| source.target.key).ok();
        let same = |a: &Definition, b: &Definition| {
            (a.kind, a.function_oid, a.role) == (b.kind, b.function_oid, b.role)
                && (&a.subject, &a.queue_group) == (&b.subject, &b.queue_group)
        };
        same(self, other) && place(self) == place(other)
    }
}

/// Messages for one handler, in the order of their arrival.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub kind: HandlerKind,
    pub function: u32,
    pub role: u32,
    /// The handler's own subject.
    pub subject: String,
    /// Statement timeout in milliseconds; 0: the role's own.
    pub timeout_ms: u32,
    pub messages: Vec<Delivered>,
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
}

/// Why a message's function failed; nothing of its effects remains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub index: u32,
    pub sqlstate: String,
    pub message: String,
}
