//! What can go wrong, as one enum of kinds.
//!
//! Pure: used by every process and thread. `pg/sqlstates.rs` maps each kind to its SQLSTATE and hint.

#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of failure that a caller can tell apart; each has one SQLSTATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    // The caller's arguments.
    NullArgument,
    InvalidSubject,
    InvalidHeaders,
    InvalidArgument,
    InvalidFunction,
    InvalidEncoding,
    PayloadTooLarge,
    // The choice of a foreign server, and the rights to it.
    NoServer,
    SeveralServers,
    PermissionDenied,
    FileOptionDenied,
    IncompleteCredential,
    // The connection to NATS, limits, and the server's role.
    Unreachable,
    AuthenticationRefused,
    TooManyConnections,
    TooManySubscriptions,
    TooManyHandlers,
    Standby,
    TransactionTooLarge,
    TlsFailed,
    FileUnreadable,
    BufferFull,
    ConnectionLost,
    Unsupported,
    // The answers to requests.
    NoResponders,
    Timeout,
    ServiceError,
    InvalidReply,
    // JetStream, key-value buckets and object stores.
    JetStreamUnavailable,
    JetStreamRefused,
    NoStream,
    ExpectationFailed,
    StreamFull,
    /// JetStream has as many streams, consumers or bytes as it may have.
    JetStreamLimit,
    /// JetStream cannot do it now, and can later.
    JetStreamBusy,
    /// The stream would never take such a message.
    NeverStored,
    AckTimeout,
    InvalidName,
    BucketNotFound,
    KeyExists,
    ObjectNotFound,
    ObjectTooLarge,
    DigestMismatch,
    // The runtime worker and the control channel.
    RuntimeUnavailable,
    RuntimeLost,
    WorkerSlots,
    Protocol,
    /// A task of the runtime worker has panicked.
    Internal,
    // Options of a foreign server or a user mapping.
    UnknownOption,
    MalformedOption,
    ContradictoryOptions,
    /// A durable subscription has stopped, and somebody has to decide: at a message that fails, say.
    Stopped,
    /// Patroni does not take this node for the primary.
    Fenced,
    /// The statement was cancelled; PostgreSQL knows why.
    Interrupted,
    /// Another extension of the database has functions of the same names.
    Rival,
}

/// A failure: its kind, a message in PostgreSQL's style (lower case, no full stop) and, where there is more to
/// say, a detail and a hint (sentences). Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub detail: Option<String>,
    /// Replaces the kind's own hint; an empty text means no hint at all.
    pub hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets the detail from another library's message, which is made a sentence.
    #[must_use]
    pub fn cause(self, why: &str) -> Self {
        let mut rest = why.trim_end_matches('.').chars();
        let start = rest.next().map(char::to_uppercase).into_iter().flatten();
        self.detail(format!("{}{}.", start.collect::<String>(), rest.as_str()))
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
