//! The executors of each database, and what becomes of them: `pool/assign.rs` gives them work, `pool/size.rs` has more
//! or fewer of them. A plain struct; `dispatcher.rs` is the actor around it. In the actor thread.
//!
//! An executor serves one role for life: what its functions leave in the process, say an extension's connections to
//! elsewhere, is never another role's.

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
use crate::actors::base::backoff::backoff;
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::metrics::in_flight::InFlight;
use crate::channel::work::HandlerKind;
use crate::channel::worker_id::WorkerId;
use crate::flood::Flood;
use crate::row::Row;

enum Activity {
    Starting,
    Idle,
    Refreshing,
    Working(Task),
    Leaving,
}

struct Executor {
    database: u32,
    /// Whom it serves, from its first message on.
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
    /// Handlers that want an executor, and since when: the one that waits longest first.
    line: VecDeque<(Arc<MessageHandler>, Instant)>,
    /// A report of this database takes effect. Its executor works on meanwhile, as new handlers may have to wait for NATS;
    /// no other looks, or the older of two reports might count.
    applies: bool,
    /// Somebody wants to know what handlers there are, and who.
    refresh_wanted: bool,
    waiters: Vec<oneshot::Sender<()>>,
    /// So many want the database to themselves.
    draining: u32,
    drain_waiters: Vec<oneshot::Sender<()>>,
    /// No executor is started before this time.
    not_before: Option<Instant>,
    failures: u32,
    no_slot: Option<Instant>,
    /// When an executor was last told to leave so that another has its slot, which its process gives up later.
    slot_given: Option<Instant>,
    complaints: Flood,
}

/// The executors of all databases.
pub struct Pool {
    launcher: Arc<dyn Launcher>,
    sizes: Arc<Sizes>,
    load: InFlight,
    databases: HashMap<u32, DatabasePool>,
    /// By the number that each was started under.
    executors: HashMap<WorkerId, Executor>,
    started: u32,
}

impl Pool {
    pub fn new(launcher: Arc<dyn Launcher>, sizes: Arc<Sizes>, load: InFlight) -> Self {
        Pool {
            launcher,
            sizes,
            load,
            databases: HashMap::new(),
            executors: HashMap::new(),
            started: 0,
        }
    }

    fn of(&self, database: u32) -> impl Iterator<Item = (&WorkerId, &Executor)> {
        self.executors.iter().filter(move |(_, e)| e.database == database)
    }

    /// The databases that are known.
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

    /// Somebody wants to know what handlers the database has; told when that has taken effect, or cannot.
    pub fn refresh(&mut self, database: u32, done: oneshot::Sender<()>) {
        let entry = self.databases.entry(database).or_default();
        entry.refresh_wanted = true;
        entry.waiters.push(done);
        entry.not_before = None;
        self.settle(database);
    }

    /// An executor's report is being applied, which names the roles of all handlers that can run: who asked before it
    /// began may wait for it, who asks later is not served by it.
    pub fn reported(&mut self, worker: WorkerId, name: String, roles: &HashSet<u32>) -> Option<u32> {
        let database = self.free(worker)?;
        let entry = self.databases.get_mut(&database)?;
        entry.applies = true;
        entry.name = name;
        entry.has_handlers = !roles.is_empty();
        entry.is_shared = roles.len() > 1;
        Some(database)
    }

    /// An executor has looked. Gives its database.
    fn free(&mut self, worker: WorkerId) -> Option<u32> {
        let executor = self.executors.get_mut(&worker)?;
        if matches!(executor.activity, Activity::Refreshing) {
            executor.activity = Activity::Idle;
            executor.since = Instant::now();
        }
        let database = executor.database;
        // Where all were at work, one more was started to look.
        if self.of(database).count() > self.limit(database) {
            self.dismiss(worker);
        }
        Some(database)
    }

    /// The report of a database has taken effect.
    pub fn applied(&mut self, database: u32, waiters: Vec<oneshot::Sender<()>>) {
        for done in waiters {
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

    /// This executor could not look at its database, which is given.
    pub fn read_failed(&mut self, worker: WorkerId) -> Option<u32> {
        let database = self.free(worker)?;
        let waiters = self.take_waiters(database);
        self.applied(database, waiters);
        Some(database)
    }

    /// Those who wait for a look that is being made.
    pub fn take_waiters(&mut self, database: u32) -> Vec<oneshot::Sender<()>> {
        match self.databases.get_mut(&database) {
            Some(entry) if !entry.refresh_wanted => std::mem::take(&mut entry.waiters),
            _ => Vec::new(),
        }
    }

    /// A handler has messages. `true` if they wait for an executor.
    pub fn ready(&mut self, handler: &Arc<MessageHandler>) -> bool {
        if self.line_up(handler) {
            self.settle(handler.database);
        }
        let inner = handler.lock();
        inner.lined_up || !inner.at_work.is_empty()
    }

    /// Puts a handler into the line, if it has messages that nobody takes yet.
    fn line_up(&mut self, handler: &Arc<MessageHandler>) -> bool {
        let mut inner = handler.lock();
        let in_order = inner.definition.kind != HandlerKind::Responder;
        let is_held = inner.held_until.is_some_and(|time| Instant::now() < time);
        if inner.lined_up || inner.queue.is_empty() || is_held || (in_order && !inner.at_work.is_empty()) {
            return false;
        }
        inner.lined_up = true;
        drop(inner);
        let entry = self.databases.entry(handler.database).or_default();
        entry.line.push_back((handler.clone(), Instant::now()));
        true
    }

    /// The work of an executor, to be changed by what it says.
    pub fn task(&mut self, worker: WorkerId) -> Option<&mut Task> {
        match self.executors.get_mut(&worker) {
            Some(Executor {
                activity: Activity::Working(task),
                ..
            }) => Some(task),
            _ => None,
        }
    }

    /// The executor is done with its work; what is left of it goes back to the front of the queue. Gives its database as
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

    /// The database of an executor, if handlers wait there and more executors may come, or others must go for them.
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
                    // Perhaps executors cannot start at all: nobody is kept waiting.
                    entry.waiters.clear();
                }
            }
            Activity::Idle | Activity::Leaving => {}
        }
        if let Some(entry) = self.databases.get_mut(&number)
            && !leaving
        {
            let wait = backoff(RESTART, RESTART_LIMIT, entry.failures);
            entry.failures += 1;
            entry.not_before = Some(Instant::now() + wait);
        }
        self.settle(number);
        if leaving {
            // It may have made room for another role's.
            self.grow(number);
        }
    }

    /// What became of a process. Gives a database that turns out to be gone.
    pub fn notice(&mut self, worker: WorkerId, notice: Notice) -> Option<u32> {
        let number = self.executors.get(&worker)?.database;
        match notice {
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

    /// Database, process, state, handler and since when, in seconds, for each executor, and for each that is missing.
    pub fn rows(&self) -> Vec<Row> {
        let ago = |since: Instant| Some(since.elapsed().as_secs_f64().to_string());
        let executors = self.executors.values().map(|executor| {
            let (state, handler) = match &executor.activity {
                Activity::Starting => ("starting", None),
                Activity::Idle | Activity::Refreshing => ("idle", None),
                Activity::Working(task) => ("running", Some(task.handler.definition())),
                Activity::Leaving => ("leaving", None),
            };
            let handler = handler.map(|d| format!("{} -> {}", d.subject, d.function));
            let pid = (executor.pid != 0).then(|| executor.pid.to_string());
            vec![
                Some(executor.database.to_string()),
                pid,
                Some(state.into()),
                handler,
                ago(executor.since),
            ]
        });
        let missing = self.databases.iter().filter_map(|(number, entry)| {
            let row = vec![
                Some(number.to_string()),
                None,
                Some("no worker slot".into()),
                None,
            ];
            entry.no_slot.map(|since| [row, vec![ago(since)]].concat())
        });
        executors.chain(missing).collect()
    }
}

#[cfg(test)]
mod tests;
