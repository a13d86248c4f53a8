//! Objects that are being put and got, and how far each is: the rows of the view `litmus_pgnats.object_transfers`.
//! Plain structs, shared by sessions and the calls that transfer; in the actor thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use dashmap::DashMap;

use crate::channel::statistics::TransferRow;

/// Which process transfers which object.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub pid: u32,
    pub database: u32,
    pub server: u32,
    pub server_name: String,
    /// `put` or `get`.
    pub command: &'static str,
    pub store: String,
    pub name: String,
}

/// How far a transfer is, in bytes; shared by the call that transfers and the table.
#[derive(Clone, Debug, Default)]
pub struct TransferProgress(Arc<ByteCounts>);

#[derive(Debug, Default)]
struct ByteCounts {
    done: AtomicU64,
    /// 0 while the total is unknown.
    total: AtomicU64,
}

impl TransferProgress {
    pub fn set_total(&self, bytes: u64) {
        self.0.total.store(bytes, Ordering::Relaxed);
    }

    pub fn add(&self, bytes: usize) {
        self.0.done.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct RunningTransfer {
    transfer: Transfer,
    progress: TransferProgress,
    since: SystemTime,
}

/// All running transfers; shared by the sessions.
#[derive(Clone, Debug, Default)]
pub struct Transfers {
    running: Arc<DashMap<u64, RunningTransfer>>,
    begun: Arc<AtomicU64>,
}

impl Transfers {
    /// Adds a transfer, until the returned guard is dropped.
    pub fn begin(&self, transfer: Transfer) -> Underway {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let progress = TransferProgress::default();
        let running = RunningTransfer {
            transfer,
            progress: progress.clone(),
            since: SystemTime::now(),
        };
        self.running.insert(number, running);
        Underway {
            transfers: self.clone(),
            number,
            progress,
        }
    }

    /// A row for each transfer.
    pub fn rows(&self) -> Vec<TransferRow> {
        self.running.iter().map(|entry| entry.value().row()).collect()
    }
}

impl RunningTransfer {
    fn row(&self) -> TransferRow {
        let Transfer {
            pid,
            database,
            server,
            server_name,
            command,
            store,
            name,
        } = self.transfer.clone();
        let bytes = &self.progress.0;
        TransferRow {
            pid,
            database,
            server,
            server_name,
            command: command.to_string(),
            store,
            name,
            bytes_processed: bytes.done.load(Ordering::Relaxed),
            bytes_total: Some(bytes.total.load(Ordering::Relaxed)).filter(|total| *total > 0),
            since: self.since.into(),
        }
    }
}

/// Guard of a running transfer.
pub struct Underway {
    transfers: Transfers,
    number: u64,
    pub progress: TransferProgress,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.transfers.running.remove(&self.number);
    }
}
