//! The executors of each database, and what becomes of them: `pool/assign.rs` gives them work, `pool/size.rs` starts
//! and ends them. A plain struct; the dispatcher is the actor around it. In the actor thread.
//!
//! An executor serves one role for life, so that what its functions leave in the process, say an extension's
//! connections to elsewhere, never serves another role.

mod assign;
mod size;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::launcher::{Launcher, Notice, RESTART, RESTART_LIMIT, Sizes};
use super::messages::WorkerOrder;
use super::task::Task;
use crate::actors::base::backoff::exponential;
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::metrics::in_flight::InFlight;
use crate::channel::statistics::ExecutorRow;
use crate::channel::work::HandlerKind;
use crate::channel::worker_id::WorkerId;
use crate::flood::Flood;

enum Activity {
    Starting,
    Idle,
    Refreshing,
    Working(Task),
    Leaving,
}

struct Executor {
    database: u32,
    /// The role that the executor serves, from its first message on; `None` before.
    role: Option<u32>,
    pid: u32,
    orders: Option<mpsc::Sender<WorkerOrder>>,
    activity: Activity,
    since: Instant,
}

#[derive(Default)]
struct DatabasePool {
    name: String,
    has_handlers: bool,
    /// Handlers of several roles share the pool.
    is_shared: bool,
    /// Handlers that wait for an executor, and since when; the longest waiting first.
    line: VecDeque<(Arc<MessageHandler>, Instant)>,
    /// A report of this database is being applied. Its executor works on meanwhile, because new handlers may have to
    /// wait for NATS; but no executor refreshes, or the older of two reports might take effect last.
    applies: bool,
    /// A refresh is wanted.
    refresh_wanted: bool,
    /// Told when the refresh has taken effect.
    waiters: Vec<oneshot::Sender<()>>,
    /// Keys of consumers that are removed, which the next refresh tells the database.
    removed: Vec<i64>,
    /// Number of drains that were not resumed yet.
    draining: u32,
    /// Told when no executor is left.
    drain_waiters: Vec<oneshot::Sender<()>>,
    /// No executor is started before this time.
    not_before: Option<Instant>,
    failures: u32,
    /// Since when an executor could not be started for lack of a worker slot.
    no_slot: Option<Instant>,
    /// When an executor was last told to leave so that another one has its slot. The slot is free only when the process
    /// has ended.
    slot_given: Option<Instant>,
    complaints: Flood,
}

/// The executors of all databases.
pub struct Pool {
    launcher: Arc<dyn Launcher>,
    sizes: Arc<Sizes>,
    in_flight: InFlight,
    databases: HashMap<u32, DatabasePool>,
    /// By the id that each was started under.
    executors: HashMap<WorkerId, Executor>,
    started: u32,
}

impl Pool {
    pub fn new(launcher: Arc<dyn Launcher>, sizes: Arc<Sizes>, in_flight: InFlight) -> Self {
        Pool {
            launcher,
            sizes,
            in_flight,
            databases: HashMap::new(),
            executors: HashMap::new(),
            started: 0,
        }
    }

    fn of(&self, database: u32) -> impl Iterator<Item = (&WorkerId, &Executor)> {
        self.executors.iter().filter(move |(_, e)| e.database == database)
    }

    /// Object ids of the databases that are known.
    pub fn databases(&self) -> Vec<u32> {
        self.databases.keys().copied().collect()
    }

    fn count(&self, database: u32, activity: fn(&Activity) -> bool) -> usize {
        self.of(database).filter(|(_, e)| activity(&e.activity)).count()
    }

    /// An executor has opened its channel. `false` if nobody expects it.
    pub fn joined(&mut self, worker: WorkerId, pid: u32, orders: mpsc::Sender<WorkerOrder>) -> bool {
        let Some(executor) = self.executors.get_mut(&worker) else {
            return false;
        };
        executor.pid = pid;
        executor.orders = Some(orders);
        if !matches!(executor.activity, Activity::Leaving) {
            executor.activity = Activity::Idle;
        }
        executor.since = Instant::now();
        if let Some(database) = self.databases.get_mut(&executor.database) {
            database.failures = 0;
            database.not_before = None;
            database.no_slot = None;
        }
        let database = executor.database;
        self.settle(database);
        true
    }

    /// Refreshes the handlers of a database. `done` is told when the refresh has taken effect, and dropped if that
    /// cannot be.
    pub fn refresh(&mut self, database: u32, done: oneshot::Sender<()>) {
        let entry = self.databases.entry(database).or_default();
        entry.refresh_wanted = true;
        entry.waiters.push(done);
        entry.not_before = None;
        self.settle(database);
    }

    /// Consumers of a database are removed, which is to be told it.
    pub fn consumers_removed(&mut self, database: u32, keys: Vec<i64>) {
        self.databases.entry(database).or_default().removed.extend(keys);
        self.refresh(database, oneshot::channel().0);
    }

    /// An executor's report is about to be applied; `roles` are those of all handlers that can run. Returns the
    /// database; `None` if the executor is not known.
    pub fn reported(&mut self, worker: WorkerId, name: String, roles: &HashSet<u32>) -> Option<u32> {
        let database = self.free(worker)?;
        let entry = self.databases.get_mut(&database)?;
        entry.applies = true;
        entry.name = name;
        entry.has_handlers = !roles.is_empty();
        entry.is_shared = roles.len() > 1;
        Some(database)
    }

    /// An executor's refresh has ended, with a report or without. Returns the database.
    fn free(&mut self, worker: WorkerId) -> Option<u32> {
        let executor = self.executors.get_mut(&worker)?;
        if matches!(executor.activity, Activity::Refreshing) {
            executor.activity = Activity::Idle;
            executor.since = Instant::now();
        }
        let database = executor.database;
        // If all executors were at work, one beyond the limit was started for the refresh.
        if self.of(database).count() > self.limit(database) {
            self.dismiss(worker);
        }
        Some(database)
    }

    /// The report of a database has taken effect.
    pub fn applied(&mut self, database: u32, waiters: Vec<oneshot::Sender<()>>) {
        for done in waiters {
            // The waiter may have given up.
            let _ = done.send(());
        }
        if let Some(entry) = self.databases.get_mut(&database) {
            entry.applies = false;
        }
        self.settle(database);
    }

    fn most(&self) -> usize {
        self.sizes.executors.load(Ordering::Relaxed).max(1)
    }

    /// An executor's refresh has failed: its waiters are dropped. Returns the database.
    pub fn read_failed(&mut self, worker: WorkerId) -> Option<u32> {
        let database = self.free(worker)?;
        drop(self.take_waiters(database));
        self.applied(database, Vec::new());
        Some(database)
    }

    /// Takes those who wait for the refresh that is being applied. If another refresh is wanted by now, all of them
    /// wait for that one, because those who asked later are not served by the first.
    pub fn take_waiters(&mut self, database: u32) -> Vec<oneshot::Sender<()>> {
        match self.databases.get_mut(&database) {
            Some(entry) if !entry.refresh_wanted => std::mem::take(&mut entry.waiters),
            _ => Vec::new(),
        }
    }

    /// A handler has messages. `true` if they wait for an executor, or some of them are with an executor.
    pub fn ready(&mut self, handler: &Arc<MessageHandler>) -> bool {
        if self.line_up(handler) {
            self.settle(handler.database);
        }
        let changing = handler.lock();
        changing.lined_up || !changing.at_work.is_empty()
    }

    /// Puts a handler into the line, if it has messages that an executor may take. `false` if that changes nothing.
    fn line_up(&mut self, handler: &Arc<MessageHandler>) -> bool {
        let mut changing = handler.lock();
        let in_order = changing.definition.kind != HandlerKind::Responder;
        let is_held = changing.held_until.is_some_and(|time| Instant::now() < time);
        let is_at_work = !changing.at_work.is_empty();
        if changing.lined_up || changing.queue.is_empty() || is_held || (in_order && is_at_work) {
            return false;
        }
        changing.lined_up = true;
        drop(changing);
        let entry = self.databases.entry(handler.database).or_default();
        entry.line.push_back((handler.clone(), Instant::now()));
        true
    }

    /// The task of an executor, to be changed by what the executor says; `None` if it has none.
    pub fn task(&mut self, worker: WorkerId) -> Option<&mut Task> {
        match self.executors.get_mut(&worker) {
            Some(Executor {
                activity: Activity::Working(task),
                ..
            }) => Some(task),
            _ => None,
        }
    }

    /// The executor is done with its task. What is left of the task goes back to the front of the queue. Returns what
    /// [`Pool::short_of`] does.
    pub fn finished(&mut self, worker: WorkerId) -> Option<u32> {
        let executor = self.executors.get_mut(&worker)?;
        executor.since = Instant::now();
        let database = executor.database;
        if let Activity::Working(task) = std::mem::replace(&mut executor.activity, Activity::Idle) {
            self.return_task(task);
        }
        self.settle(database);
        self.short_of(worker)
    }

    /// The database of an executor, if handlers wait there and more executors may be started, or idle ones may make
    /// room for them; otherwise `None`.
    pub fn short_of(&self, worker: WorkerId) -> Option<u32> {
        let database = self.executors.get(&worker)?.database;
        let waits = !self.databases.get(&database)?.line.is_empty();
        let may_change = || {
            let count = self.of(database).count();
            count < self.limit(database)
                || self.count(database, |activity| matches!(activity, Activity::Idle)) > 0
        };
        (waits && may_change()).then_some(database)
    }

    fn return_task(&mut self, task: Task) {
        let handler = task.end();
        self.line_up(&handler);
    }

    /// The executor's channel is closed or its process has ended.
    pub fn left(&mut self, worker: WorkerId) {
        let Some(executor) = self.executors.remove(&worker) else {
            return;
        };
        let number = executor.database;
        let leaving = matches!(executor.activity, Activity::Leaving);
        match executor.activity {
            Activity::Working(mut task) => {
                task.executor_died();
                self.return_task(task);
            }
            Activity::Refreshing | Activity::Starting => {
                if let Some(entry) = self.databases.get_mut(&number) {
                    entry.refresh_wanted = true;
                    // Perhaps executors cannot start at all, so nobody is kept waiting.
                    entry.waiters.clear();
                }
            }
            Activity::Idle | Activity::Leaving => {}
        }
        if let Some(entry) = self.databases.get_mut(&number)
            && !leaving
        {
            let wait = exponential(RESTART, RESTART_LIMIT, entry.failures);
            entry.failures += 1;
            entry.not_before = Some(Instant::now() + wait);
        }
        self.settle(number);
        if leaving {
            // The executor may have made room for one of another role.
            self.grow(number);
        }
    }

    /// Notes what became of a process. Returns the database if it turns out to be gone.
    pub fn notice(&mut self, worker: WorkerId, notice: Notice) -> Option<u32> {
        let executor = self.executors.get(&worker)?;
        let number = executor.database;
        match notice {
            // The end of its channel tells of an executor that has one, after all that the executor has said: which
            // messages it was about to commit, above all.
            Notice::Ended if executor.orders.is_some() => {}
            Notice::Ended => self.left(worker),
            Notice::NoDatabase => {
                self.executors.remove(&worker);
                self.databases.remove(&number);
                return Some(number);
            }
            Notice::NoSlot => {
                self.executors.remove(&worker);
                self.lacks_slot(number);
            }
        }
        None
    }

    /// A row for each executor, and for each database that lacks a worker slot.
    pub fn rows(&self) -> Vec<ExecutorRow> {
        let missing = self.databases.iter().filter_map(|(number, entry)| {
            let since = entry.no_slot?;
            Some(ExecutorRow {
                database: *number,
                pid: None,
                state: "no worker slot".into(),
                handler: None,
                seconds: since.elapsed().as_secs_f64(),
            })
        });
        self.executors
            .values()
            .map(Executor::row)
            .chain(missing)
            .collect()
    }
}

impl Executor {
    fn row(&self) -> ExecutorRow {
        let (state, handler) = match &self.activity {
            Activity::Starting => ("starting", None),
            Activity::Idle | Activity::Refreshing => ("idle", None),
            Activity::Working(task) => ("running", Some(task.handler.definition())),
            Activity::Leaving => ("leaving", None),
        };
        ExecutorRow {
            database: self.database,
            pid: Some(self.pid).filter(|pid| *pid != 0),
            state: state.into(),
            handler: handler.map(|of| format!("{} -> {}", of.subject, of.function)),
            seconds: self.since.elapsed().as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests;
