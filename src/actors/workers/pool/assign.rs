//! Gives work to executors: decides which idle executor works for which of the handlers that stand in line. A part of
//! the pool; in the actor thread.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Activity, Executor, Pool};
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::workers::messages::WorkerOrder;
use crate::actors::workers::task::Task;
use crate::channel::work::ToWorker;
use crate::channel::worker_id::WorkerId;

/// In a full pool, a handler waits this long for an executor of its own role before one of another role has to leave.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

impl Pool {
    /// Gives work to idle executors, starts an executor where one is needed, and dismisses executors that are not
    /// needed.
    pub fn settle(&mut self, number: u32) {
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        if entry.draining > 0 {
            let all: Vec<WorkerId> = self.of(number).map(|(worker, _)| *worker).collect();
            for worker in &all {
                self.dismiss(*worker);
            }
            if all.is_empty()
                && let Some(entry) = self.databases.get_mut(&number)
            {
                for done in entry.drain_waiters.drain(..) {
                    // The waiter may have given up.
                    let _ = done.send(());
                }
            }
            return;
        }
        for worker in self.idle(number) {
            self.employ(worker, number);
        }
        let Some(entry) = self.databases.get(&number) else {
            return;
        };
        let nobody = self.of(number).next().is_none();
        if (nobody && (entry.has_handlers || !entry.line.is_empty())) || self.lacks_refresher(number) {
            self.start(number);
        } else if !entry.has_handlers && entry.line.is_empty() && !entry.refresh_wanted {
            for worker in self.idle(number) {
                self.dismiss(worker);
            }
        }
    }

    /// Whether a refresh is wanted, and no executor is starting or refreshing.
    fn lacks_refresher(&self, number: u32) -> bool {
        let coming = self.count(number, |activity| matches!(activity, Activity::Starting));
        let is_wanted = self
            .databases
            .get(&number)
            .is_some_and(|entry| entry.refresh_wanted);
        is_wanted && coming == 0 && !self.is_refreshing(number)
    }

    /// Whether an executor refreshes, or its report is being applied.
    fn is_refreshing(&self, number: u32) -> bool {
        self.count(number, |activity| matches!(activity, Activity::Refreshing)) > 0
            || self.databases.get(&number).is_some_and(|entry| entry.applies)
    }

    /// The idle executors: first those that have a role already, and of these the one that has worked last, so that the
    /// others stay idle and may leave.
    pub(super) fn idle(&self, number: u32) -> Vec<WorkerId> {
        let idle = self
            .of(number)
            .filter(|(_, e)| matches!(e.activity, Activity::Idle));
        let mut idle: Vec<_> = idle
            .map(|(worker, e)| (Reverse((e.role.is_some(), e.since)), *worker))
            .collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, worker)| worker).collect()
    }

    /// Gives an idle executor its next work, if there is any.
    fn employ(&mut self, worker: WorkerId, number: u32) {
        // One refresh at a time, or the older of two reports might take effect last.
        let is_refreshing = self.is_refreshing(number);
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        if entry.refresh_wanted && !is_refreshing {
            entry.refresh_wanted = false;
            let removed = std::mem::take(&mut entry.removed);
            let refresh = ToWorker::Refresh { removed };
            self.order(worker, Activity::Refreshing, (refresh, Bytes::new()));
            return;
        }
        if self.makes_way(worker, number) {
            self.dismiss(worker);
            return;
        }
        while let Some(handler) = self.next_for(worker, number) {
            handler.lock().lined_up = false;
            let Some((task, order)) = Task::take(&handler, worker, self.in_flight.call()) else {
                continue;
            };
            if let Some(executor) = self.executors.get_mut(&worker) {
                executor.role = Some(handler.role);
            }
            self.order(worker, Activity::Working(task), order);
            // Requests need no order: other executors may take the responder's next ones.
            self.line_up(&handler);
            return;
        }
    }

    /// Takes the first handler that this executor may work for out of the line.
    fn next_for(&mut self, worker: WorkerId, number: u32) -> Option<Arc<MessageHandler>> {
        let role = self.executors.get(&worker)?.role;
        let line = &self.databases.get(&number)?.line;
        let place = line.iter().position(|(handler, _)| match role {
            Some(role) => role == handler.role,
            None => self.may_have_more(number, handler.role),
        })?;
        let (handler, _) = self.databases.get_mut(&number)?.line.remove(place)?;
        Some(handler)
    }

    /// Whether a role may have one more executor: one executor of a shared pool is always left to the other roles.
    pub(super) fn may_have_more(&self, number: u32, role: u32) -> bool {
        let most = self.most();
        let is_shared = self.databases.get(&number).is_some_and(|entry| entry.is_shared);
        !is_shared || most == 1 || self.has(number, role) < most - 1
    }

    /// How many executors serve a role.
    fn has(&self, number: u32, role: u32) -> usize {
        self.of(number).filter(|(_, e)| e.role == Some(role)).count()
    }

    /// Most executors of a database. There may be one more if a single role has all of them, because it had handlers
    /// before other roles did.
    pub(super) fn limit(&self, number: u32) -> usize {
        let most = self.most();
        let is_shared = self.databases.get(&number).is_some_and(|entry| entry.is_shared);
        let mut roles = self.of(number).filter_map(|(_, e)| e.role);
        let is_taken = is_shared && most > 1 && roles.any(|role| self.has(number, role) >= most);
        most + usize::from(is_taken)
    }

    /// Whether an executor has to leave: the pool is full, and a handler of another role has waited for too long.
    fn makes_way(&self, worker: WorkerId, number: u32) -> bool {
        let Some(role) = self.executors.get(&worker).and_then(|executor| executor.role) else {
            return false;
        };
        let longest = self.databases.get(&number).and_then(|entry| {
            let mut others = entry.line.iter().filter(|(handler, _)| handler.role != role);
            others.find(|(handler, _)| self.may_have_more(number, handler.role))
        });
        let comes = |activity: &Activity| matches!(activity, Activity::Starting | Activity::Leaving);
        longest.is_some_and(|(_, since)| since.elapsed() >= PATIENCE)
            && self.of(number).count() >= self.limit(number)
            && self.count(number, comes) == 0
    }

    fn order(&mut self, worker: WorkerId, activity: Activity, order: WorkerOrder) {
        if let Some(executor) = self.executors.get_mut(&worker) {
            executor.activity = activity;
            executor.since = Instant::now();
            if let Some(orders) = &executor.orders {
                // There is room for all orders that an executor may have at a time, and `WorkerGone` tells of the end
                // of a closed channel.
                let _ = orders.try_send(order);
            }
        }
    }

    pub(super) fn dismiss(&mut self, worker: WorkerId) {
        let Some(executor) = self.executors.get_mut(&worker) else {
            return;
        };
        match &executor.activity {
            Activity::Idle => self.order(worker, Activity::Leaving, (ToWorker::End, Bytes::new())),
            // The executor has not opened its channel and may never do so; nothing is lost with it.
            Activity::Starting => {
                executor.activity = Activity::Leaving;
                self.launcher.terminate(worker);
            }
            Activity::Refreshing | Activity::Working(_) | Activity::Leaving => {}
        }
    }

    pub(super) fn start(&mut self, number: u32) {
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        if entry.draining > 0 || entry.not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        entry.not_before = None;
        self.started = self.started.wrapping_add(1);
        let worker = WorkerId::executor(self.started);
        let executor = Executor {
            database: number,
            role: None,
            pid: 0,
            orders: None,
            activity: Activity::Starting,
            since: Instant::now(),
        };
        self.executors.insert(worker, executor);
        self.launcher.start(worker, number);
    }
}
