//! Starts and ends executors and outbox relays for the actor thread, which must not: only the runtime worker's main
//! thread may speak to the postmaster. Orders come through a queue, and a byte on a socket wakes the main thread. Runs
//! in the runtime worker, [`Remote`] on the actor thread and all else on the main thread.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::mpsc::UnboundedSender;

use super::{executor, logging};
use crate::actors::workers::launcher::{Launcher, Notice};
use crate::channel::worker_id::WorkerId;
use crate::pg::databases;
use crate::pg::transaction::transaction;
use crate::pg::worker::Process;

enum LaunchOrder {
    Start { id: WorkerId, database: u32 },
    Terminate { id: WorkerId },
}

/// The actor thread's end of the queue.
pub struct Remote(Sender<LaunchOrder>);

impl Remote {
    fn order(&self, order: LaunchOrder) {
        // The main thread outlives the actors.
        let _ = self.0.send(order);
        logging::wake();
    }
}

impl Launcher for Remote {
    fn start(&self, id: WorkerId, database: u32) {
        self.order(LaunchOrder::Start { id, database });
    }

    fn terminate(&self, id: WorkerId) {
        self.order(LaunchOrder::Terminate { id });
    }
}

/// The main thread's end of the queue, and the workers that run.
pub struct Workers {
    orders: Receiver<LaunchOrder>,
    notices: UnboundedSender<(WorkerId, Notice)>,
    running: HashMap<WorkerId, Process>,
}

/// Makes both ends; `notices` tells the actors what became of their orders.
pub fn hire(notices: UnboundedSender<(WorkerId, Notice)>) -> (Workers, Remote) {
    let (sender, orders) = channel();
    let workers = Workers {
        orders,
        notices,
        running: HashMap::new(),
    };
    (workers, Remote(sender))
}

impl Workers {
    /// Ends the workers together with the runtime worker: the next one would not know them.
    pub fn dismiss(self) {
        self.running.into_values().for_each(Process::terminate);
    }

    /// Carries out the orders that wait, and tells of processes that have ended.
    pub fn serve(&mut self) {
        for order in self.orders.try_iter() {
            match order {
                LaunchOrder::Start { id, database } => {
                    // Checked here, because a worker of a database that is gone would fail with an error in the server
                    // log.
                    let exists = transaction(|| databases::databases().contains(&database));
                    let outcome = match exists {
                        Ok(true) => executor::start(id, database).ok_or(Notice::NoSlot),
                        Ok(false) => Err(Notice::NoDatabase),
                        Err(_) => Err(Notice::Ended),
                    };
                    match outcome {
                        Ok(process) => drop(self.running.insert(id, process)),
                        // Actors that have ended need no news.
                        Err(notice) => drop(self.notices.send((id, notice))),
                    }
                }
                LaunchOrder::Terminate { id } => {
                    if let Some(process) = self.running.remove(&id) {
                        process.terminate();
                        // Actors that have ended need no news.
                        let _ = self.notices.send((id, Notice::Ended));
                    }
                }
            }
        }
        let notices = &self.notices;
        self.running.retain(|id, process| {
            let ended = process.has_ended();
            if ended {
                // Actors that have ended need no news.
                let _ = notices.send((*id, Notice::Ended));
            }
            !ended
        });
    }
}
