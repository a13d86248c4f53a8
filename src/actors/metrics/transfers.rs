//! Objects that are being put and got, and how far each is: what the view `litmus_pgnats.object_transfers` shows. In the
//! actor thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::actors::base::text::seconds;
use crate::row::Row;

/// Who transfers what.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub pid: u32,
    pub database: u32,
    /// Object id and name of the foreign server.
    pub server: (u32, String),
    /// `put` or `get`.
    pub command: &'static str,
    pub store: String,
    pub name: String,
}

/// How far a transfer is, in bytes; shared by the call that makes it and the table.
#[derive(Clone, Debug, Default)]
pub struct TransferProgress(Arc<ByteCounts>);

#[derive(Debug, Default)]
struct ByteCounts {
    done: AtomicU64,
    /// 0 as long as it is not known.
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

type TransferTable = BTreeMap<u64, (Transfer, TransferProgress, SystemTime)>;

/// All transfers; shared by the sessions.
#[derive(Clone, Debug, Default)]
pub struct Transfers(Arc<Mutex<(u64, TransferTable)>>);

impl Transfers {
    fn lock(&self) -> MutexGuard<'_, (u64, TransferTable)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transfer begins; it ends when what is given is dropped.
    pub fn begin(&self, transfer: Transfer) -> Underway {
        let progress = TransferProgress::default();
        let mut inner = self.lock();
        inner.0 += 1;
        let number = inner.0;
        let entry = (transfer, progress.clone(), SystemTime::now());
        inner.1.insert(number, entry);
        Underway {
            transfers: self.clone(),
            number,
            progress,
        }
    }

    pub fn rows(&self) -> Vec<Row> {
        let inner = self.lock();
        let rows = inner.1.values().map(|(transfer, progress, since)| {
            let (server, server_name) = &transfer.server;
            let (done, total) = (&progress.0.done, &progress.0.total);
            vec![
                Some(transfer.pid.to_string()),
                Some(transfer.database.to_string()),
                Some(server.to_string()),
                Some(server_name.clone()),
                Some(transfer.command.to_string()),
                Some(transfer.store.clone()),
                Some(transfer.name.clone()),
                Some(done.load(Ordering::Relaxed).to_string()),
                Some(total.load(Ordering::Relaxed))
                    .filter(|total| *total > 0)
                    .map(|total| total.to_string()),
                Some(seconds(*since)),
            ]
        });
        rows.collect()
    }
}

/// A transfer that goes on.
pub struct Underway {
    transfers: Transfers,
    number: u64,
    pub progress: TransferProgress,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.transfers.lock().1.remove(&self.number);
    }
}
