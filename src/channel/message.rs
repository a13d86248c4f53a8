//! The messages of the control channel. Pure.
//!
//! Backends and workers send [`Request`]s, the runtime worker sends [`Reply`]s. A request that is answered has an id
//! other than 0, and its reply has the same id, so that the late reply to a request that was given up is not taken for
//! that to the next one. Id 0 is for what needs no answer: publishes, cancels, the runtime worker's news, and all that
//! workers and the runtime worker say to each other.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::statistics::{Statistics, StatisticsRows};
use super::target::{Key, Link, Target};
use super::work::{FromWorker, ToWorker};
use super::worker_id::WorkerId;
use crate::error::Error;
use crate::findings::Finding;
use crate::nats::headers::Headers;
use crate::row::Row;
use crate::settings::Settings;

/// Raised whenever a message or the frame changes. The runtime worker refuses a session with another number than its
/// own.
pub const PROTOCOL: u16 = 10;

/// A call of JetStream may need several answers of JetStream, each of which may take as long as the time-out; all
/// together may take so many times the time-out.
pub const JETSTREAM_ANSWERS: u32 = 4;

/// [`Request::Examine`] takes at most so many times its `limit_ms`.
pub const EXAMINE_STEPS: u32 = 6;

/// From a backend or a worker to the runtime worker. Times are in milliseconds; `wait_ms` is the longest wait for NATS
/// to be reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The first request on every connection; answered with `Welcome`.
    Hello {
        protocol: u16,
        pid: u32,
        peer: Peer,
    },
    /// Binds `slot`, a number of the session's own, to a NATS connection, which is opened if need be; answered with
    /// `Used`.
    Use {
        slot: u16,
        target: Target,
        settings: Box<Settings>,
        wait_ms: u32,
    },
    /// Publishes a message; the frame's body is the payload. If `wait_ms` is 0, because the link is up or the message
    /// was held, the session does not wait and the runtime worker takes the message in any case. Otherwise the session
    /// sends a `Barrier` after its publishes.
    Publish {
        slot: u16,
        subject: String,
        reply: Option<String>,
        headers: Headers,
        wait_ms: u32,
    },
    /// The publishes that follow are held until a `Release` has them sent, or until a `Discard` or the session's end
    /// drops them.
    Hold,
    /// Sends the publishes that are held.
    Release,
    /// Drops the publishes that are held.
    Discard,
    /// The session no longer uses the slot.
    CloseSlot {
        slot: u16,
    },
    /// Answered when the runtime worker has taken every earlier publish of the session, or has failed to.
    Barrier,
    /// A NATS request; the body is the payload. Answered with `Message`.
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
    /// A call of JetStream; the body is the payload or the value.
    JetStream {
        slot: u16,
        api: JetStreamOptions,
        call: JetStreamCall,
    },
    /// A part of the object that the request with the id `upload` puts, in the body. The last part is followed by the
    /// digest (SHA-256) of the object; an empty body gives the upload up.
    Upload {
        upload: u32,
    },
    /// Asks which user mappings have a connection to this server.
    MappingsInUse {
        database: u32,
        server: u32,
    },
    /// New settings, by user mapping (0: none); `None` where the mapping or the server was dropped. With `force`,
    /// connections are renewed even if their settings are unchanged.
    Reload {
        database: u32,
        server: u32,
        settings: Vec<(u32, Option<Settings>)>,
        force: bool,
        wait_ms: u32,
    },
    /// A commit has changed the handlers of this database, or what they depend on. The session's next request waits
    /// until the change has taken effect, or until a time limit has passed (`RefreshIsLate`).
    Refresh {
        database: u32,
    },
    /// A commit has put messages into the outbox of this database.
    Outbox {
        database: u32,
    },
    /// Has the workers of a database leave it; answered when they are gone. A `Refresh` of the database or the
    /// session's end resumes it.
    DrainDatabase {
        database: u32,
    },
    /// Answered with `Statistics`.
    Statistics {
        database: u32,
        of: Statistics,
    },
    /// Resets the statistics of a database's handlers and connections, and of the control channel.
    ResetStatistics {
        database: u32,
    },
    /// Answered with `Findings` about a connection with these settings, which is made for the examination, and about
    /// the running connection. `limit_ms` is for each step.
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
    /// From an executor or an outbox relay.
    Worker(FromWorker),
    /// The session no longer waits for the reply to this request.
    Cancel {
        request: u32,
    },
    /// Has the task whose name begins with `task` panic, or an actor if `task` is empty; for tests.
    #[cfg(debug_assertions)]
    Panic {
        task: String,
    },
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

/// Which domain a JetStream call asks, and for how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JetStreamOptions {
    /// Replaces the foreign server's domain; `None` keeps it.
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
    /// The key does not exist, or was deleted.
    Absent,
    /// The key's latest revision is this one.
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
    /// Whether values are kept in memory instead of in files.
    pub memory: bool,
}

/// From the runtime worker to a backend or a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// The INFO of the NATS server that the connection is made to, as JSON.
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
    Statistics(StatisticsRows),
    Findings(Vec<Finding>),
    /// Bytes of the object whose parts follow.
    Size(u64),
    /// A part of an object, in the body; the reply to the same request is still to come.
    Part,
    Failed(Error),
    /// To an executor or an outbox relay.
    Worker(ToWorker),
    /// News: the handlers that a commit of this session has changed have not taken effect in the time for which the
    /// session's next request waits for that.
    RefreshIsLate {
        database: u32,
    },
    /// News: the state of a slot's connection changed.
    Link {
        slot: u16,
        link: Link,
    },
}
