//! What is said on the control channel. Pure.
//!
//! A backend sends [`Request`]s, the runtime [`Reply`]s. A request that is answered bears an id other than 0, and
//! its reply bears the same; a reply whose request was given up is thus told apart from the next one's. Id 0 is for
//! what needs no answer: publishes, cancels, and the runtime's news of a link.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::target::{Key, Link, Target};
use super::work::{FromWorker, ToWorker};
use super::worker_id::WorkerId;
use crate::error::Error;
use crate::nats::headers::Headers;
use crate::row::Row;
use crate::settings::Settings;

/// Raised whenever a message or the frame changes. A session whose library is older than the runtime's is refused.
pub const PROTOCOL: u16 = 6;

/// [`Request::Examine`] takes at most so many times its limit for a step.
pub const EXAMINE_STEPS: u32 = 6;

/// From a backend to the runtime. Times are milliseconds; `wait_ms` is the deadline for reaching NATS.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// First on every connection.
    Hello {
        protocol: u16,
        pid: u32,
        peer: Peer,
    },
    /// Binds `slot`, a number of the session's own, to a NATS connection; opens the connection if needed.
    Use {
        slot: u16,
        target: Target,
        settings: Box<Settings>,
        wait_ms: u32,
    },
    /// The frame's body is the payload. `wait_ms` 0: the session was told that the link is up and does not wait; the
    /// runtime takes the message in any case. Otherwise the session sends a `Barrier` behind its publishes.
    Publish {
        slot: u16,
        subject: String,
        reply: Option<String>,
        headers: Headers,
        wait_ms: u32,
    },
    /// The publishes that follow are held until a `Release` lets them go, or a `Discard` or the session's end forgets
    /// them.
    Hold,
    Release,
    Discard,
    /// The session no longer uses the slot.
    Leave {
        slot: u16,
    },
    /// Answered when every earlier publish of the session has been taken, or could not be.
    Barrier,
    /// A NATS request; the body is the payload, and the reply's body the answer.
    Ask {
        slot: u16,
        subject: String,
        headers: Headers,
        timeout_ms: u32,
        wait_ms: u32,
    },
    ServerInfo {
        slot: u16,
        wait_ms: u32,
    },
    /// The body is the payload or the value.
    JetStream {
        slot: u16,
        api: JetStreamOptions,
        call: JetStreamCall,
    },
    /// A part of the object that the request `upload` puts, in the body; behind the last one its digest (SHA-256). An
    /// empty body gives the upload up.
    Upload {
        upload: u32,
    },
    /// Which user mappings have a connection to this server.
    MappingsInUse {
        database: u32,
        server: u32,
    },
    /// New settings by user mapping (0: none); `None` where the mapping or the server is gone.
    Reload {
        database: u32,
        server: u32,
        settings: Vec<(u32, Option<Settings>)>,
        force: bool,
        wait_ms: u32,
    },
    /// A commit has changed the handlers of this database, or what they depend on. The session's next request waits
    /// until the change has taken effect.
    Refresh {
        database: u32,
    },
    /// A commit has put messages into the outbox of this database.
    Outbox {
        database: u32,
    },
    /// Has the executors of a database leave it, answered when they are gone; it is theirs again after a `Refresh` or
    /// the session's end.
    DrainDatabase {
        database: u32,
    },
    /// Answered with rows.
    Statistics {
        database: u32,
        of: Statistics,
    },
    /// Counts anew: the handlers and connections of a database, and the control channel.
    ResetStatistics {
        database: u32,
    },
    /// Answered with rows: what is found out about a connection with these settings, which is made for that, and about
    /// the one that runs. The limit is for each step.
    Examine {
        key: Key,
        settings: Box<Settings>,
        limit_ms: u32,
    },
    /// From the promotion notifier: the server takes writes now, and these databases allow connections.
    Promoted {
        timeline: u32,
        databases: Vec<u32>,
    },
    /// From an executor.
    Executor(FromWorker),
    /// The session no longer waits for the reply to this request.
    Cancel {
        request: u32,
    },
    /// Has an actor panic; for tests.
    #[cfg(debug_assertions)]
    Panic,
}

/// Who opens a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    Session,
    /// An executor or an outbox relay.
    Worker {
        id: WorkerId,
    },
}

/// What the runtime counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistics {
    /// Of the session's database.
    Handlers,
    /// These of all databases.
    Executors,
    Connections,
    Transfers,
    Channel,
}

/// Where and for how long a JetStream call asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JetStreamOptions {
    /// In place of the server's own default.
    pub domain: Option<String>,
    /// Milliseconds for each answer of JetStream.
    pub timeout_ms: u32,
    pub wait_ms: u32,
}

/// What is asked of JetStream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum JetStreamCall {
    /// Answered with the stream sequence.
    Publish {
        subject: String,
        headers: Headers,
    },
    Bucket {
        bucket: String,
        call: BucketCall,
    },
    Store {
        store: String,
        call: StoreCall,
    },
}

/// What is asked of a key-value bucket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum BucketCall {
    /// Answered with the revision.
    Put {
        key: String,
        expect: Expect,
    },
    /// Answered with `Found` or `Absent`.
    Get {
        key: String,
    },
    /// Leaves a marker; with `purge` drops the history as well.
    Delete {
        key: String,
        purge: bool,
    },
    /// Rows of revision, operation, value and time: of the latest entry only, or of all that are kept.
    Entries {
        key: String,
        history: bool,
    },
    Keys,
    Create(BucketConfig),
    Drop,
}

/// What is asked of an object store.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum StoreCall {
    /// The object's parts follow as `Upload`s.
    Put {
        name: String,
        size: u64,
    },
    /// Answered with `Size`, then the parts as `Part`s, then `Done` once the digest was verified.
    Get {
        name: String,
    },
    Delete {
        name: String,
    },
    /// Rows as `nats_get_file_info` returns them.
    Info {
        name: String,
    },
    List,
}

/// What a key must be for a put to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    Anything,
    /// It does not exist, or was deleted.
    Absent,
    /// Its latest revision is this.
    Revision(u64),
}

/// How to create a key-value bucket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BucketConfig {
    /// Values kept for each key.
    pub history: u8,
    /// Milliseconds; 0: for ever.
    pub ttl_ms: u64,
    pub replicas: u8,
    /// In memory instead of in files.
    pub memory: bool,
}

/// From the runtime to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Welcome {
        protocol: u16,
    },
    Done,
    Used(Link),
    /// The body is the payload.
    Message {
        headers: Headers,
    },
    /// INFO of the NATS server that the connection is on, as JSON.
    ServerInfo {
        json: String,
    },
    MappingsInUse {
        mappings: Vec<u32>,
    },
    /// A stream sequence or a revision.
    Number(u64),
    /// The body is the value.
    Found,
    Absent,
    Rows(Vec<Row>),
    /// Bytes of the object whose parts follow.
    Size(u64),
    /// A part of an object, in the body; the reply to the same request is still to come.
    Part,
    Failed(Error),
    /// To an executor.
    Executor(ToWorker),
    /// News: the state of a slot's connection changed.
    Link {
        slot: u16,
        link: Link,
    },
}
