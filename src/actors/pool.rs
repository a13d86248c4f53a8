//! The executors of each database: who is idle, who works for which handler, when another is started and when one
//! leaves. A plain struct; `dispatcher.rs` is the actor around it. In the actor thread.
//!
//! An executor serves one role for life: what its functions leave in the process, say an extension's connections to
//! elsewhere, is never another role's.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::handler::{Handler, State};
use super::host::{Host, Notice, Sizes};
use super::load::Load;
use super::task::{Order, Task};
use crate::channel::message::Row;
use crate::channel::work::{HandlerKind, Told};
use crate::flood::Flood;

/// In a full pool, a handler waits so long for an executor of its own role before one of another role has to leave.
const PATIENCE: Duration = Duration::from_millis(50);
/// After an executor that ended by itself, the next one is started so much later; doubled each time, up to the limit.
const RESTART: Duration = Duration::from_millis(200);
const RESTART_LIMIT: Duration = Duration::from_secs(10);

enum Doing {
    Starting,
    Idle,
    Looking,
    Working(Task),
    Leaving,
}

struct Executor {
    database: u32,
    /// Whom it serves, from its first message on.
    role: Option<u32>,
    pid: u32,
    orders: Option<mpsc::Sender<Order>>,
    doing: Doing,
    since: Instant,
}

#[derive(Default)]
struct Database {
    name: String,
    has_handlers: bool,
    /// Handlers of several roles share the pool.
    is_shared: bool,
    /// Handlers that want an executor, and since when: the one that waits longest first.
    line: VecDeque<(Arc<Handler>, Instant)>,
    /// Somebody wants to know what handlers there are, and who.
    look_wanted: bool,
    lookers: Vec<oneshot::Sender<()>>,
    /// So many want the database to themselves.
    vacated: u32,
    vacaters: Vec<oneshot::Sender<()>>,
    /// No executor is started before this time.
    not_before: Option<Instant>,
    failures: u32,
    no_slot: Option<Instant>,
    complaints: Flood,
}

/// The executors of all databases.
pub struct Pool {
    host: Box<dyn Host>,
    sizes: Arc<Sizes>,
    load: Load,
    databases: HashMap<u32, Database>,
    /// By the number that each was started under.
    executors: HashMap<u32, Executor>,
    last_ticket: u32,
}

impl Pool {
    pub fn new(host: Box<dyn Host>, sizes: Arc<Sizes>, load: Load) -> Self {
        Pool {
            host,
            sizes,
            load,
            databases: HashMap::new(),
            executors: HashMap::new(),
            last_ticket: 0,
        }
    }

    fn of(&self, database: u32) -> impl Iterator<Item = (&u32, &Executor)> {
        self.executors.iter().filter(move |(_, e)| e.database == database)
    }

    /// The databases that are known.
    pub fn databases(&self) -> Vec<u32> {
        self.databases.keys().copied().collect()
    }

    fn count(&self, database: u32, doing: fn(&Doing) -> bool) -> usize {
        self.of(database).filter(|(_, e)| doing(&e.doing)).count()
    }

    /// An executor has opened its channel. `false` if nobody expects it.
    pub fn joined(&mut self, ticket: u32, pid: u32, orders: mpsc::Sender<Order>) -> bool {
        let Some(executor) = self.executors.get_mut(&ticket) else {
            return false;
        };
        executor.pid = pid;
        executor.orders = Some(orders);
        if !matches!(executor.doing, Doing::Leaving) {
            executor.doing = Doing::Idle;
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
    pub fn look(&mut self, database: u32, done: oneshot::Sender<()>) {
        let entry = self.databases.entry(database).or_default();
        entry.look_wanted = true;
        entry.lookers.push(done);
        entry.not_before = None;
        self.settle(database);
    }

    /// An executor's report is being applied, which names the roles of all handlers that can run: who asked before it
    /// began may wait for it, who asks later is not served by it.
    pub fn reported(&mut self, ticket: u32, name: String, roles: &HashSet<u32>) -> Option<u32> {
        let executor = self.executors.get_mut(&ticket)?;
        let database = executor.database;
        if roles.is_empty() {
            executor.since = Instant::now();
        }
        let entry = self.databases.get_mut(&database)?;
        entry.name = name;
        entry.has_handlers = !roles.is_empty();
        entry.is_shared = roles.len() > 1;
        Some(database)
    }

    /// The report of this executor has taken effect. Gives the same as [`Pool::finished`].
    pub fn applied(&mut self, ticket: u32, lookers: Vec<oneshot::Sender<()>>) -> Option<u32> {
        for done in lookers {
            let _ = done.send(());
        }
        let executor = self.executors.get_mut(&ticket)?;
        if matches!(executor.doing, Doing::Looking) {
            executor.doing = Doing::Idle;
            executor.since = Instant::now();
        }
        let database = executor.database;
        // Where all were at work, one more was started to look.
        if self.of(database).count() > self.most() {
            self.dismiss(ticket);
        }
        self.settle(database);
        self.line_of_idle(ticket)
    }

    fn most(&self) -> usize {
        self.sizes.executors.load(Ordering::Relaxed).max(1)
    }

    /// This executor could not look at its database, which is given.
    pub fn blind(&mut self, ticket: u32) -> Option<u32> {
        let database = self.executors.get(&ticket)?.database;
        let lookers = self.take_lookers(database);
        self.applied(ticket, lookers);
        Some(database)
    }

    /// Those who wait for a look that is being made.
    pub fn take_lookers(&mut self, database: u32) -> Vec<oneshot::Sender<()>> {
        match self.databases.get_mut(&database) {
            Some(entry) if !entry.look_wanted => std::mem::take(&mut entry.lookers),
            _ => Vec::new(),
        }
    }

    /// A handler has messages. `true` if they wait for an executor.
    pub fn ready(&mut self, handler: &Arc<Handler>) -> bool {
        if self.line_up(handler) {
            self.settle(handler.database);
        }
        let inner = handler.lock();
        inner.lined_up || inner.executors > 0
    }

    /// Puts a handler into the line, if it has messages that nobody takes yet.
    fn line_up(&mut self, handler: &Arc<Handler>) -> bool {
        let mut inner = handler.lock();
        let in_order = inner.definition.kind == HandlerKind::Subscription;
        if inner.lined_up || inner.queue.is_empty() || (in_order && inner.executors > 0) {
            return false;
        }
        inner.lined_up = true;
        drop(inner);
        let entry = self.databases.entry(handler.database).or_default();
        entry.line.push_back((handler.clone(), Instant::now()));
        true
    }

    /// The work of an executor, to be changed by what it says.
    pub fn task(&mut self, ticket: u32) -> Option<&mut Task> {
        match self.executors.get_mut(&ticket) {
            Some(Executor {
                doing: Doing::Working(task),
                ..
            }) => Some(task),
            _ => None,
        }
    }

    /// The executor is done with its work; what is left of it goes back to the front of the queue. Gives its database if
    /// others wait there and it has nothing to do for them.
    pub fn finished(&mut self, ticket: u32) -> Option<u32> {
        let executor = self.executors.get_mut(&ticket)?;
        executor.since = Instant::now();
        let database = executor.database;
        if let Doing::Working(task) = std::mem::replace(&mut executor.doing, Doing::Idle) {
            self.return_task(task);
        }
        self.settle(database);
        self.line_of_idle(ticket)
    }

    /// The executor's database, if it is idle and others than its role's wait there.
    fn line_of_idle(&self, ticket: u32) -> Option<u32> {
        let executor = self.executors.get(&ticket)?;
        let waits = !self.databases.get(&executor.database)?.line.is_empty();
        (waits && matches!(executor.doing, Doing::Idle)).then_some(executor.database)
    }

    fn return_task(&mut self, task: Task) {
        let mut inner = task.handler.lock();
        inner.executors = inner.executors.saturating_sub(1);
        if *task.handler.state.borrow() != State::Over {
            inner.queue.give_back(task.messages.into_iter());
        }
        drop(inner);
        self.line_up(&task.handler);
    }

    /// The executor's channel is closed or its process has ended.
    pub fn left(&mut self, ticket: u32) {
        let Some(executor) = self.executors.remove(&ticket) else {
            return;
        };
        let number = executor.database;
        let leaving = matches!(executor.doing, Doing::Leaving);
        match executor.doing {
            Doing::Working(mut task) => {
                task.executor_died();
                self.return_task(task);
            }
            Doing::Looking | Doing::Starting => {
                if let Some(entry) = self.databases.get_mut(&number) {
                    entry.look_wanted = true;
                    // Perhaps executors cannot start at all: nobody is kept waiting.
                    entry.lookers.clear();
                }
            }
            Doing::Idle | Doing::Leaving => {}
        }
        if let Some(entry) = self.databases.get_mut(&number)
            && !leaving
        {
            let wait = (RESTART * 2u32.saturating_pow(entry.failures.min(16))).min(RESTART_LIMIT);
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
    pub fn notice(&mut self, ticket: u32, notice: Notice) -> Option<u32> {
        let number = self.executors.get(&ticket)?.database;
        match notice {
            Notice::Ended => self.left(ticket),
            Notice::NoDatabase => {
                self.executors.remove(&ticket);
                self.databases.remove(&number);
                return Some(number);
            }
            Notice::NoSlot => {
                self.executors.remove(&ticket);
                self.lacks_slot(number);
            }
        }
        None
    }

    fn lacks_slot(&mut self, number: u32) {
        let others = self.of(number).count();
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        entry.no_slot.get_or_insert_with(Instant::now);
        entry.not_before = Some(Instant::now() + RESTART_LIMIT);
        if others == 0 {
            entry.lookers.clear();
        }
        if let Some(suppressed) = entry.complaints.pass() {
            let what = if entry.name.is_empty() {
                format!("to look for subscriptions and responders in the database with OID {number}")
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
    }

    /// Has the executors leave a database; told when they are gone.
    pub fn vacate(&mut self, database: u32, done: oneshot::Sender<()>) {
        let entry = self.databases.entry(database).or_default();
        entry.vacated += 1;
        entry.vacaters.push(done);
        self.settle(database);
    }

    /// Ends the executors that a vacated database still has, whatever they do.
    pub fn evict(&mut self, database: u32) {
        if self
            .databases
            .get(&database)
            .is_some_and(|entry| entry.vacated > 0)
        {
            for (ticket, _) in self.of(database) {
                self.host.terminate(*ticket);
            }
        }
    }

    /// Ends executors that still work for handlers which were taken away.
    pub fn evict_workers(&mut self, database: u32) {
        for (ticket, executor) in self.of(database) {
            if let Doing::Working(task) = &executor.doing
                && *task.handler.state.borrow() == State::Over
            {
                self.host.terminate(*ticket);
            }
        }
    }

    /// Whoever wanted the database to themselves is done.
    pub fn release(&mut self, database: u32) {
        if let Some(entry) = self.databases.get_mut(&database) {
            entry.vacated = entry.vacated.saturating_sub(1);
        }
    }

    /// Gives everybody something to do. The time after which to look again, if something waits for time to pass.
    pub fn settle(&mut self, number: u32) {
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        if entry.vacated > 0 {
            let all: Vec<u32> = self.of(number).map(|(ticket, _)| *ticket).collect();
            for ticket in &all {
                self.dismiss(*ticket);
            }
            if all.is_empty()
                && let Some(entry) = self.databases.get_mut(&number)
            {
                for done in entry.vacaters.drain(..) {
                    let _ = done.send(());
                }
            }
            return;
        }
        for ticket in self.idle(number) {
            self.employ(ticket, number);
        }
        let Some(entry) = self.databases.get(&number) else {
            return;
        };
        let nobody = self.of(number).next().is_none();
        if (nobody && (entry.has_handlers || !entry.line.is_empty())) || self.looks_in_vain(number) {
            self.start(number);
        } else if !entry.has_handlers && entry.line.is_empty() && !entry.look_wanted {
            for ticket in self.idle(number) {
                self.dismiss(ticket);
            }
        }
    }

    /// A look is wanted, and nobody will have time for it soon.
    fn looks_in_vain(&self, number: u32) -> bool {
        let coming = self.count(number, |doing| matches!(doing, Doing::Starting | Doing::Looking));
        self.databases.get(&number).is_some_and(|entry| entry.look_wanted) && coming == 0
    }

    /// The idle executors: first those that have a role already, and of these the one that has worked last, as the
    /// others may leave one day.
    fn idle(&self, number: u32) -> Vec<u32> {
        let idle = self.of(number).filter(|(_, e)| matches!(e.doing, Doing::Idle));
        let mut idle: Vec<_> = idle
            .map(|(ticket, e)| (Reverse((e.role.is_some(), e.since)), *ticket))
            .collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, ticket)| ticket).collect()
    }

    /// Gives an idle executor the next thing to do, if there is any.
    fn employ(&mut self, ticket: u32, number: u32) {
        // One at a time, or the older of two reports might count.
        let looks = self.count(number, |doing| matches!(doing, Doing::Looking)) > 0;
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        if entry.look_wanted && !looks {
            entry.look_wanted = false;
            self.order(ticket, Doing::Looking, (Told::Look, Bytes::new()));
            return;
        }
        if self.makes_way(ticket, number) {
            self.dismiss(ticket);
            return;
        }
        while let Some(handler) = self.next_for(ticket, number) {
            handler.lock().lined_up = false;
            let Some((task, order)) = Task::take(&handler, self.load.call()) else {
                continue;
            };
            if let Some(executor) = self.executors.get_mut(&ticket) {
                executor.role = Some(handler.role);
            }
            self.order(ticket, Doing::Working(task), order);
            // Requests need no order: others may take the next ones.
            self.line_up(&handler);
            return;
        }
    }

    /// Takes out of the line whoever is the first that this executor may work for.
    fn next_for(&mut self, ticket: u32, number: u32) -> Option<Arc<Handler>> {
        let role = self.executors.get(&ticket)?.role;
        let line = &self.databases.get(&number)?.line;
        let place = line.iter().position(|(handler, _)| match role {
            Some(role) => role == handler.role,
            None => self.may_have_more(number, handler.role),
        })?;
        let (handler, _) = self.databases.get_mut(&number)?.line.remove(place)?;
        Some(handler)
    }

    /// One executor of a shared pool is always left to the other roles.
    fn may_have_more(&self, number: u32, role: u32) -> bool {
        let most = self.most();
        let is_shared = self.databases.get(&number).is_some_and(|entry| entry.is_shared);
        !is_shared || most == 1 || self.of(number).filter(|(_, e)| e.role == Some(role)).count() < most - 1
    }

    /// In a full pool, a handler of another role has waited for too long.
    fn makes_way(&self, ticket: u32, number: u32) -> bool {
        let Some(role) = self.executors.get(&ticket).and_then(|executor| executor.role) else {
            return false;
        };
        let longest = self.databases.get(&number).and_then(|entry| {
            let mut others = entry.line.iter().filter(|(handler, _)| handler.role != role);
            others.find(|(handler, _)| self.may_have_more(number, handler.role))
        });
        let comes = |doing: &Doing| matches!(doing, Doing::Starting | Doing::Leaving);
        longest.is_some_and(|(_, since)| since.elapsed() >= PATIENCE)
            && self.of(number).count() >= self.most()
            && self.count(number, comes) == 0
    }

    fn order(&mut self, ticket: u32, doing: Doing, order: Order) {
        if let Some(executor) = self.executors.get_mut(&ticket) {
            executor.doing = doing;
            executor.since = Instant::now();
            if let Some(orders) = &executor.orders {
                // There is room for what an executor can be told at a time; a closed channel is reported elsewhere.
                let _ = orders.try_send(order);
            }
        }
    }

    fn dismiss(&mut self, ticket: u32) {
        let Some(executor) = self.executors.get_mut(&ticket) else {
            return;
        };
        match &executor.doing {
            Doing::Idle => self.order(ticket, Doing::Leaving, (Told::Leave, Bytes::new())),
            // It has not opened its channel and may never do; nothing is lost with it.
            Doing::Starting => {
                executor.doing = Doing::Leaving;
                self.host.terminate(ticket);
            }
            Doing::Looking | Doing::Working(_) | Doing::Leaving => {}
        }
    }

    fn start(&mut self, number: u32) {
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        if entry.vacated > 0 || entry.not_before.is_some_and(|time| Instant::now() < time) {
            return;
        }
        entry.not_before = None;
        self.last_ticket = self.last_ticket.wrapping_add(1);
        let executor = Executor {
            database: number,
            role: None,
            pid: 0,
            orders: None,
            doing: Doing::Starting,
            since: Instant::now(),
        };
        self.executors.insert(self.last_ticket, executor);
        self.host.start(self.last_ticket, number);
    }

    /// Starts other executors if handlers wait and the pool may grow, or has others' leave it that have nothing to do.
    pub fn grow(&mut self, number: u32) {
        self.settle(number);
        let coming = self.count(number, |doing| matches!(doing, Doing::Starting | Doing::Leaving));
        let waiting = self.databases.get(&number).map_or(0, |entry| {
            let line = entry.line.iter();
            line.filter(|(handler, _)| self.may_have_more(number, handler.role))
                .count()
        });
        let wanted = waiting.saturating_sub(coming);
        let room = self.most().saturating_sub(self.of(number).count());
        for _ in 0..wanted.min(room) {
            self.start(number);
        }
        for ticket in self
            .idle(number)
            .into_iter()
            .rev()
            .take(wanted.saturating_sub(room))
        {
            self.dismiss(ticket);
        }
    }

    /// Sends executors home that have been idle for long; each database keeps one. Starts what had to wait.
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
            let idle: Vec<u32> = self
                .of(number)
                .filter(|(_, e)| matches!(e.doing, Doing::Idle) && e.since.elapsed() >= limit)
                .map(|(ticket, _)| *ticket)
                .collect();
            for ticket in idle {
                if spare > 0 {
                    spare -= 1;
                    self.dismiss(ticket);
                }
            }
            self.grow(number);
        }
    }

    /// When [`Pool::shrink`] has something to do next; `None` while all is at rest.
    pub fn next_change(&self) -> Option<Duration> {
        let limit = Duration::from_millis(self.sizes.idle_ms.load(Ordering::Relaxed));
        let mut soonest: Option<Duration> = None;
        let mut at = |time: Duration| soonest = Some(soonest.map_or(time, |s| s.min(time)));
        for (number, entry) in &self.databases {
            if let Some(time) = entry.not_before
                && (entry.has_handlers || entry.look_wanted || !entry.line.is_empty())
            {
                at(time.saturating_duration_since(Instant::now()));
            }
            if self.of(*number).count() > 1 {
                let idle = self.of(*number).filter(|(_, e)| matches!(e.doing, Doing::Idle));
                idle.for_each(|(_, e)| at(limit.saturating_sub(e.since.elapsed())));
            }
        }
        soonest
    }

    /// Database, process, state, handler and since when, in seconds, for each executor, and for each that is missing.
    pub fn rows(&self) -> Vec<Row> {
        let ago = |since: Instant| Some(since.elapsed().as_secs_f64().to_string());
        let executors = self.executors.values().map(|executor| {
            let (state, handler) = match &executor.doing {
                Doing::Starting => ("starting", None),
                Doing::Idle | Doing::Looking => ("idle", None),
                Doing::Working(task) => ("running", Some(task.handler.definition())),
                Doing::Leaving => ("leaving", None),
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
