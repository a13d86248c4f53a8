//! The messages by which an actor hears of the workers that it has started, and drains and resumes databases. Pure.

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::launcher::Notice;
use crate::channel::work::{FromWorker, ToWorker};
use crate::channel::worker_id::WorkerId;

/// An order for a worker, and the body of the order's frame.
pub type WorkerOrder = (ToWorker, Bytes);

/// A worker has opened its channel. The answer is `false` if nobody expects the worker.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct WorkerJoined {
    pub worker: WorkerId,
    pub pid: u32,
    pub orders: mpsc::Sender<WorkerOrder>,
}

/// What a worker says, and the body of the frame.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WorkerSaid(pub WorkerId, pub FromWorker, pub Bytes);

/// A worker has closed its channel.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WorkerGone(pub WorkerId);

/// What became of a worker's process.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WorkerNoticed(pub WorkerId, pub Notice);

/// Drains a database: its workers leave. Answered when they are gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DrainDatabase(pub u32);

/// Undoes one `DrainDatabase`, and has the database refreshed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResumeDatabase(pub u32);
