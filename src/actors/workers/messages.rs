//! What the actor that has started a worker hears of it, and what it orders. Pure.

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::launcher::Notice;
use crate::channel::work::{FromWorker, ToWorker};
use crate::channel::worker_id::WorkerId;

/// What an executor is told, and the frame's body.
pub type WorkerOrder = (ToWorker, Bytes);

/// An executor has opened its channel; `false` if nobody expects it.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct WorkerJoined {
    pub worker: WorkerId,
    pub pid: u32,
    pub orders: mpsc::Sender<WorkerOrder>,
}

/// What an executor says.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WorkerSaid(pub WorkerId, pub FromWorker, pub Bytes);

/// An executor has closed its channel.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WorkerGone(pub WorkerId);

/// What became of an executor's process.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WorkerNoticed(pub WorkerId, pub Notice);

/// Has the executors leave a database; answered when they are gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DrainDatabase(pub u32);

/// Undoes one `DrainDatabase`, and looks at the database again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ResumeDatabase(pub u32);
