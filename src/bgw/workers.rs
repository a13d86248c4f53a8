//! Starts and ends executors for the actor thread, which must not: only the runtime worker's main thread may speak to
//! the postmaster. Orders come through a queue, and a byte on the socket that the main thread waits for.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::mpsc::UnboundedSender;

use super::{executor, logging};
use crate::actors::host::{Host, Notice};
use crate::pg::catalog;
use crate::pg::transaction::transaction;
use crate::pg::worker::Process;

enum Order {
    Start { ticket: u32, database: u32 },
    Terminate { ticket: u32 },
}

/// The actor thread's end.
pub struct Remote(Sender<Order>);

impl Remote {
    fn order(&self, order: Order) {
        // The main thread outlives the actors.
        let _ = self.0.send(order);
        logging::wake();
    }
}

impl Host for Remote {
    fn start(&self, ticket: u32, database: u32) {
        self.order(Order::Start { ticket, database });
    }

    fn terminate(&self, ticket: u32) {
        self.order(Order::Terminate { ticket });
    }
}

/// The main thread's end.
pub struct Workers {
    orders: Receiver<Order>,
    notices: UnboundedSender<(u32, Notice)>,
    running: HashMap<u32, Process>,
}

/// The two ends; `notices` tells the actors what became of their orders.
pub fn hire(notices: UnboundedSender<(u32, Notice)>) -> (Workers, Remote) {
    let (sender, orders) = channel();
    let workers = Workers {
        orders,
        notices,
        running: HashMap::new(),
    };
    (workers, Remote(sender))
}

impl Workers {
    /// Ends the executors with the runtime: the next one would not know them.
    pub fn dismiss(self) {
        self.running.into_values().for_each(Process::terminate);
    }

    /// Carries out the orders that wait, and tells of processes that have ended.
    pub fn serve(&mut self) {
        for order in self.orders.try_iter() {
            match order {
                Order::Start { ticket, database } => {
                    // Looked at here, because a worker for a database that is gone could only fail loudly.
                    let exists = transaction(|| catalog::databases().contains(&database));
                    let outcome = match exists {
                        Ok(true) => executor::start(ticket, database).ok_or(Notice::NoSlot),
                        Ok(false) => Err(Notice::NoDatabase),
                        Err(_) => Err(Notice::Ended),
                    };
                    match outcome {
                        Ok(process) => drop(self.running.insert(ticket, process)),
                        Err(notice) => drop(self.notices.send((ticket, notice))),
                    }
                }
                Order::Terminate { ticket } => {
                    if let Some(process) = self.running.remove(&ticket) {
                        process.terminate();
                        let _ = self.notices.send((ticket, Notice::Ended));
                    }
                }
            }
        }
        let notices = &self.notices;
        self.running.retain(|ticket, process| {
            let ended = process.has_ended();
            if ended {
                let _ = notices.send((*ticket, Notice::Ended));
            }
            !ended
        });
    }
}
