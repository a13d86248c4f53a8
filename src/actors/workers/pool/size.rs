//! How many executors a database has: more while handlers wait, fewer when executors are idle, none while the database
//! is drained. A part of the pool; in the actor thread.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Activity, Executor, Pool};
use crate::actors::workers::launcher::{RESTART, RESTART_LIMIT};
use crate::channel::worker_id::WorkerId;

/// Tolerance for timers, which are not exact.
const SLACK: Duration = Duration::from_millis(100);
/// Time that a function has to end after it was cancelled.
const OVERDUE: Duration = Duration::from_secs(5);

impl Pool {
    /// Starts executors if handlers wait and the pool may grow. Where it may not, idle executors make room for other
    /// roles.
    pub fn grow(&mut self, number: u32) {
        self.settle(number);
        let coming = self.count(number, |activity| {
            matches!(activity, Activity::Starting | Activity::Leaving)
        });
        let wanted = self.waiting(number).saturating_sub(coming);
        let room = self.limit(number).saturating_sub(self.of(number).count());
        for _ in 0..wanted.min(room) {
            self.start(number);
        }
        for worker in self
            .idle(number)
            .into_iter()
            .rev()
            .take(wanted.saturating_sub(room))
        {
            self.dismiss(worker);
        }
    }

    /// Dismisses executors that have been idle for long, but for one in each database; ends those that are overdue;
    /// starts what had to wait.
    pub fn shrink(&mut self) {
        let limit = Duration::from_millis(self.sizes.idle_ms.load(Ordering::Relaxed));
        let databases: Vec<u32> = self.databases.keys().copied().collect();
        for number in databases {
            if let Some(entry) = self.databases.get_mut(&number) {
                entry.not_before = entry.not_before.filter(|time| Instant::now() < *time);
                entry.no_slot = entry
                    .no_slot
                    .filter(|_| entry.has_handlers || !entry.line.is_empty());
            }
            let mut spare = self.of(number).count().saturating_sub(1);
            let idle: Vec<WorkerId> = self
                .of(number)
                .filter(|(_, e)| matches!(e.activity, Activity::Idle) && e.since.elapsed() >= limit)
                .map(|(worker, _)| *worker)
                .collect();
            for worker in idle {
                if spare > 0 {
                    spare -= 1;
                    self.dismiss(worker);
                }
            }
            self.evict_overdue(number);
            self.grow(number);
        }
    }

    /// Time until [`Pool::shrink`] has something to do next; `None` if it has nothing to do.
    pub fn next_change(&self) -> Option<Duration> {
        let limit = Duration::from_millis(self.sizes.idle_ms.load(Ordering::Relaxed));
        let mut soonest: Option<Duration> = None;
        let mut at = |time: Duration| soonest = Some(soonest.map_or(time, |s| s.min(time)));
        for (number, entry) in &self.databases {
            if let Some(time) = entry.not_before
                && (entry.has_handlers || entry.refresh_wanted || !entry.line.is_empty())
            {
                at(time.saturating_duration_since(Instant::now()));
            }
            self.of(*number)
                .filter_map(|(_, e)| self.time_left(e))
                .for_each(&mut at);
            if self.of(*number).count() > 1 {
                let idle = self
                    .of(*number)
                    .filter(|(_, e)| matches!(e.activity, Activity::Idle));
                idle.for_each(|(_, e)| at(limit.saturating_sub(e.since.elapsed())));
            }
        }
        soonest
    }

    /// No worker slot is free for an executor of this database.
    pub(super) fn lacks_slot(&mut self, number: u32) {
        let others = self.of(number).count();
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        entry.no_slot.get_or_insert_with(Instant::now);
        entry.not_before = Some(Instant::now() + RESTART_LIMIT);
        if others == 0 {
            entry.waiters.clear();
        }
        if let Some(suppressed) = entry.complaints.pass() {
            let what = if entry.name.is_empty() {
                format!("to read the subscriptions and responders of the database with OID {number}")
            } else {
                format!(
                    "for an executor in database \"{}\", which has {others}",
                    entry.name
                )
            };
            log::warn!(
                "no background worker slot is free {what}; you might need to increase max_worker_processes{suppressed}"
            );
        }
        // A handler that waits may have the slot of an idle executor that cannot work for it.
        self.settle(number);
        let spare = (self.waiting(number) > 0)
            .then(|| self.idle(number).pop())
            .flatten();
        if let Some(spare) = spare {
            self.dismiss(spare);
        }
        if let Some(entry) = self.databases.get_mut(&number) {
            let now = Instant::now();
            entry.slot_given = spare.map(|_| now).or(entry.slot_given);
            if entry
                .slot_given
                .is_some_and(|given| given.elapsed() < RESTART_LIMIT)
            {
                entry.not_before = Some(now + RESTART);
            }
        }
    }

    /// Number of handlers that wait and whose role may have one more executor.
    fn waiting(&self, number: u32) -> usize {
        let line = self
            .databases
            .get(&number)
            .into_iter()
            .flat_map(|entry| &entry.line);
        line.filter(|(handler, _)| self.may_have_more(number, handler.role))
            .count()
    }

    /// Drains a database: its executors leave. `done` is told when they are gone.
    pub fn drain(&mut self, database: u32, done: oneshot::Sender<()>) {
        let entry = self.databases.entry(database).or_default();
        entry.draining += 1;
        entry.drain_waiters.push(done);
        self.settle(database);
    }

    /// Ends the executors that a drained database still has, whatever they do.
    pub fn evict(&mut self, database: u32) {
        if self
            .databases
            .get(&database)
            .is_some_and(|entry| entry.draining > 0)
        {
            for (worker, _) in self.of(database) {
                self.launcher.terminate(*worker);
            }
        }
    }

    /// Ends executors that still work for handlers which were removed at least this long ago.
    pub fn evict_workers(&mut self, database: u32, grace: Duration) {
        for (worker, executor) in self.of(database) {
            if let Activity::Working(task) = &executor.activity
                && task.handler.over_for().is_some_and(|time| time + SLACK >= grace)
            {
                self.launcher.terminate(*worker);
            }
        }
    }

    /// Ends executors whose function goes on after its timeout: a function may catch the cancel that it gets.
    fn evict_overdue(&mut self, database: u32) {
        for (worker, executor) in self.of(database) {
            if let Some(left) = self.time_left(executor)
                && left.is_zero()
                && let Activity::Working(task) = &executor.activity
            {
                let definition = task.handler.definition();
                log::warn!(
                    "{} on subject \"{}\" goes on after its timeout; its executor is ended",
                    definition.function,
                    definition.subject
                );
                self.launcher.terminate(*worker);
            }
        }
    }

    /// How long an executor may go on with its task; `None` if nothing limits that, or it has no task.
    fn time_left(&self, executor: &Executor) -> Option<Duration> {
        let Activity::Working(task) = &executor.activity else {
            return None;
        };
        let limit = if task.handler.is_responder() {
            task.handler.responder_timeout()
        } else {
            Duration::from_millis(self.sizes.callback_ms.load(Ordering::Relaxed))
        };
        // The limit is for each message, and several messages share a transaction.
        let all = limit * u32::try_from(task.messages.len()).unwrap_or(u32::MAX) + OVERDUE;
        (!limit.is_zero()).then(|| all.saturating_sub(task.since.elapsed()))
    }

    /// Undoes one [`Pool::drain`].
    pub fn resume(&mut self, database: u32) {
        if let Some(entry) = self.databases.get_mut(&database) {
            entry.draining = entry.draining.saturating_sub(1);
        }
    }
}
