//! The trait by which the actors have worker processes started, which only the runtime worker's main thread may do, and
//! the sizes that this thread sets. Called in the actor thread.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize};

use std::time::Duration;

use tokio::sync::Notify;

use crate::channel::worker_id::WorkerId;

/// Pause before the next worker is started after one has ended by itself; doubled each time, up to `RESTART_LIMIT`.
pub const RESTART: Duration = Duration::from_millis(200);
pub const RESTART_LIMIT: Duration = Duration::from_secs(10);

/// Starts and terminates worker processes; what becomes of them comes back as a [`Notice`].
pub trait Launcher: Send + Sync {
    fn start(&self, worker: WorkerId, database: u32);
    fn terminate(&self, worker: WorkerId);
}

/// What became of a process that was to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// There is no free slot for a background worker.
    NoSlot,
    /// The database does not exist or allows no connections.
    NoDatabase,
    /// The process has ended.
    Ended,
}

/// The sizes of pools and the time limits of workers; may change at any time.
#[derive(Debug)]
pub struct Sizes {
    /// Most executors of a database.
    pub executors: AtomicUsize,
    /// Milliseconds that a subscription's function may take for a message; 0 for no limit.
    pub callback_ms: AtomicU64,
    /// Milliseconds for which a message of the outbox that JetStream refuses is tried again; -1 for ever.
    pub outbox_retry_ms: AtomicI64,
    /// Milliseconds after which an idle outbox relay leaves, and an idle executor beyond a database's first.
    pub idle_ms: AtomicU64,
    /// Notified when `executors` or `idle_ms` has changed.
    pub changed: Notify,
}
