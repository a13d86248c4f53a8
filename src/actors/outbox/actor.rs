//! Has each database's outbox delivered: keeps a relay, a worker that reads it, while there is something to deliver,
//! and sends what that reads. The actor; in the actor thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use futures::future::AbortHandle;
use tokio::sync::{mpsc, oneshot};

use super::delivery::{MessageFate, deliver};
use super::interface::{Enable, Wake};
use super::partition::{KeptConnection, Partitions};
use crate::actors::base::backoff::backoff;
use crate::actors::base::liveness::Vital;
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::OpenConnection;
use crate::actors::workers::launcher::{Launcher, Notice, RESTART, RESTART_LIMIT, Sizes};
use crate::actors::workers::messages::{
    DrainDatabase, ResumeDatabase, WorkerGone, WorkerJoined, WorkerNoticed, WorkerOrder, WorkerSaid,
};
use crate::channel::outbox::{Batch, Fetch, Partition, Settled};
use crate::channel::work::{FromWorker, ToWorker};
use crate::channel::worker_id::WorkerId;
use crate::error::Error;
use crate::flood::Flood;

/// Under load, a relay reads no more often than this, so that it has more to read; the first message after a pause does
/// not wait.
const PACE: Duration = Duration::from_millis(5);
/// Messages from which on a batch is worth reading at once.
const WORTHWHILE: usize = 500;

#[derive(Default)]
struct DatabaseOutbox {
    relay: Option<Relay>,
    /// Somebody has said that there is something.
    wanted: bool,
    /// What the relay has to write down.
    settled: Vec<Settled>,
    partitions: Partitions,
    draining: u32,
    drain_waiters: Vec<oneshot::Sender<()>>,
    /// No relay is started, and nothing is read, before this time.
    not_before: Option<Instant>,
    /// It is waited for that time to pass.
    is_timed: bool,
    failures: u32,
    complaints: Flood,
}

struct Relay {
    worker: WorkerId,
    orders: Option<mpsc::Sender<WorkerOrder>>,
    /// It carries out an order.
    is_busy: bool,
    /// It has to write something down with that.
    is_writing: bool,
    is_leaving: bool,
    idle_since: Instant,
    /// Its leaving is considered later.
    is_watched: bool,
    /// Ends the deliveries of what it has read: one of a partition at a time.
    deliveries: HashMap<Partition, AbortHandle>,
}

/// The actor.
pub struct Outbox {
    launcher: Arc<dyn Launcher>,
    sizes: Arc<Sizes>,
    supervisor: Addr<Supervisor>,
    databases: HashMap<u32, DatabaseOutbox>,
    is_enabled: bool,
    started: u32,
    _vital: Vital,
}

impl Outbox {
    pub fn new(
        launcher: Arc<dyn Launcher>,
        sizes: Arc<Sizes>,
        supervisor: Addr<Supervisor>,
        vital: Vital,
    ) -> Self {
        Outbox {
            launcher,
            sizes,
            supervisor,
            databases: HashMap::new(),
            is_enabled: false,
            started: 0,
            _vital: vital,
        }
    }

    /// Has the relay of a database do what there is to do, starts it or lets it go.
    fn advance(&mut self, number: u32, ctx: &mut Context<Self>) {
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let may_stay = self.is_enabled && database.draining == 0;
        if !may_stay {
            match &mut database.relay {
                Some(relay) => relay.leave(),
                None => database.drain_waiters.drain(..).for_each(|done| {
                    let _ = done.send(());
                }),
            }
            return;
        }
        if !database.wanted && database.settled.is_empty() {
            return;
        }
        let wait = database
            .not_before
            .map(|time| time.saturating_duration_since(Instant::now()));
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            if !std::mem::replace(&mut database.is_timed, true) {
                ctx.run_later(wait, move |actor, ctx| {
                    if let Some(database) = actor.databases.get_mut(&number) {
                        database.is_timed = false;
                    }
                    actor.advance(number, ctx);
                });
            }
            return;
        }
        let Some(relay) = &mut database.relay else {
            self.started = self.started.wrapping_add(1);
            let worker = WorkerId::outbox_relay(self.started);
            database.relay = Some(Relay::new(worker));
            self.launcher.start(worker, number);
            return;
        };
        if relay.is_busy || relay.is_leaving {
            return;
        }
        let Some(orders) = &relay.orders else {
            return;
        };
        database.wanted = false;
        let (busy, held) = database.partitions.closed();
        let fetch = Fetch {
            settled: std::mem::take(&mut database.settled),
            busy,
            held,
        };
        relay.is_writing = !fetch.settled.is_empty();
        relay.is_busy = orders
            .try_send((ToWorker::Fetch(Box::new(fetch)), Bytes::new()))
            .is_ok();
    }

    /// The relay has read a batch, or there is none.
    fn fetched(&mut self, number: u32, batch: Option<Box<Batch>>, body: Bytes, ctx: &mut Context<Self>) {
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let Some(relay) = &mut database.relay else {
            return;
        };
        relay.is_busy = false;
        relay.idle_since = Instant::now();
        // One that reads, and then fails to remove what was delivered, has it sent again and again.
        let is_done = batch.is_none() && database.partitions.are_idle() && database.settled.is_empty();
        if relay.is_writing || is_done {
            database.failures = 0;
        }
        if batch
            .as_ref()
            .is_none_or(|batch| batch.messages.len() < WORTHWHILE)
        {
            database.not_before = Some(Instant::now() + PACE);
        }
        match batch {
            Some(batch) => {
                // There may be more, of other partitions.
                database.wanted = true;
                let worker = relay.worker;
                self.start(number, worker, *batch, body, ctx);
            }
            None => {
                database.partitions.nothing_left();
                self.let_go_later(number, ctx);
            }
        }
        self.advance(number, ctx);
    }

    /// Starts the delivery of a batch.
    fn start(
        &mut self,
        number: u32,
        worker: WorkerId,
        batch: Batch,
        mut body: Bytes,
        ctx: &mut Context<Self>,
    ) {
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let Batch {
            partition,
            source,
            messages,
        } = batch;
        let messages: Vec<_> = messages
            .into_iter()
            .map(|message| {
                let payload = body.split_to((message.size as usize).min(body.len()));
                (message, payload)
            })
            .collect();
        let subjects: Vec<String> = messages
            .iter()
            .map(|(message, _)| message.subject.clone())
            .collect();
        let serial = database.partitions.begin(&partition);
        let supervisor = self.supervisor.clone();
        let task = async move {
            let source = source?;
            let key = source.target.key;
            let open = OpenConnection {
                target: source.target,
                settings: source.settings,
            };
            let handle = match supervisor.send(open).await {
                Ok(handle) => handle?,
                Err(_) => return Ok((Vec::new(), None)),
            };
            let fates = deliver(handle.status.clone(), messages, serial).await;
            Ok((fates, Some((key, handle))))
        };
        let (task, abort) = futures::future::abortable(task);
        if let Some(relay) = &mut database.relay {
            relay.deliveries.insert(partition.clone(), abort);
        }
        ctx.spawn(task.into_actor(self).map(move |outcome, actor, ctx| {
            if let Ok(outcome) = outcome {
                actor.delivered(number, worker, partition, &subjects, outcome, ctx);
            }
        }));
    }

    fn delivered(
        &mut self,
        number: u32,
        worker: WorkerId,
        partition: Partition,
        subjects: &[String],
        outcome: Result<(Vec<MessageFate>, KeptConnection), Error>,
        ctx: &mut Context<Self>,
    ) {
        let retry = u64::try_from(self.sizes.outbox_retry_ms.load(Ordering::Relaxed)).ok();
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        // Another relay reads it again, and what is repeated JetStream knows by its number.
        if database.relay.as_ref().is_none_or(|relay| relay.worker != worker) {
            return;
        }
        let outcomes = database.partitions.end(
            &partition,
            subjects,
            outcome,
            retry.map(Duration::from_millis),
            &self.supervisor,
        );
        database.settled.push(Settled { partition, outcomes });
        database.wanted = true;
        if let Some(wait) = database.partitions.next_due() {
            ctx.run_later(wait, move |actor, ctx| actor.wake(number, ctx));
        }
        self.advance(number, ctx);
    }

    fn wake(&mut self, number: u32, ctx: &mut Context<Self>) {
        self.databases.entry(number).or_default().wanted = true;
        self.advance(number, ctx);
    }

    /// A relay that has nothing to do for long leaves.
    fn let_go_later(&mut self, number: u32, ctx: &mut Context<Self>) {
        let limit = Duration::from_millis(self.sizes.idle_ms.load(Ordering::Relaxed));
        let Some(relay) = self
            .databases
            .get_mut(&number)
            .and_then(|database| database.relay.as_mut())
        else {
            return;
        };
        if std::mem::replace(&mut relay.is_watched, true) {
            return;
        }
        let rest = limit.saturating_sub(relay.idle_since.elapsed());
        ctx.run_later(rest, move |actor, ctx| {
            let Some(database) = actor.databases.get_mut(&number) else {
                return;
            };
            let is_idle = !database.wanted && database.settled.is_empty() && database.partitions.are_idle();
            let Some(relay) = &mut database.relay else {
                return;
            };
            relay.is_watched = false;
            // While it works, its next rest has it watched again.
            if is_idle && !relay.is_busy {
                if relay.idle_since.elapsed() >= limit {
                    relay.leave();
                } else {
                    actor.let_go_later(number, ctx);
                }
            }
        });
    }

    /// The relay of this number is gone.
    fn gone(&mut self, worker: WorkerId, ctx: &mut Context<Self>) {
        let Some(number) = self.of(worker) else { return };
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let Some(relay) = database.relay.take() else {
            return;
        };
        relay.deliveries.values().for_each(AbortHandle::abort);
        let had_more = !database.partitions.are_idle() || !database.settled.is_empty() || relay.is_busy;
        database.settled.clear();
        database.partitions.leave(&self.supervisor);
        if !relay.is_leaving {
            let wait = backoff(RESTART, RESTART_LIMIT, database.failures);
            database.failures += 1;
            database.not_before = Some(Instant::now() + wait);
        }
        database.wanted |= had_more;
        self.advance(number, ctx);
    }

    fn of(&self, worker: WorkerId) -> Option<u32> {
        let has = |database: &DatabaseOutbox| database.relay.as_ref().is_some_and(|c| c.worker == worker);
        self.databases
            .iter()
            .find(|(_, database)| has(database))
            .map(|(number, _)| *number)
    }
}

impl Relay {
    fn new(worker: WorkerId) -> Relay {
        Relay {
            worker,
            orders: None,
            is_busy: false,
            is_writing: false,
            is_leaving: false,
            idle_since: Instant::now(),
            is_watched: false,
            deliveries: HashMap::new(),
        }
    }

    fn leave(&mut self) {
        self.is_leaving = true;
        if let Some(orders) = &self.orders {
            let _ = orders.try_send((ToWorker::Leave, Bytes::new()));
        }
    }
}

impl Actor for Outbox {
    type Context = Context<Self>;
}

impl Handler<Wake> for Outbox {
    type Result = ();

    fn handle(&mut self, Wake(number): Wake, ctx: &mut Self::Context) {
        self.wake(number, ctx);
    }
}

impl Handler<Enable> for Outbox {
    type Result = ();

    fn handle(&mut self, Enable(is_enabled): Enable, ctx: &mut Self::Context) {
        self.is_enabled = is_enabled;
        for number in self.databases.keys().copied().collect::<Vec<_>>() {
            self.wake(number, ctx);
        }
    }
}

impl Handler<WorkerJoined> for Outbox {
    type Result = bool;

    fn handle(&mut self, WorkerJoined { worker, orders, .. }: WorkerJoined, ctx: &mut Self::Context) -> bool {
        let Some(number) = self.of(worker) else {
            return false;
        };
        if let Some(database) = self.databases.get_mut(&number)
            && let Some(relay) = &mut database.relay
        {
            relay.orders = Some(orders);
            if relay.is_leaving {
                relay.leave();
            }
            database.not_before = None;
        }
        self.advance(number, ctx);
        true
    }
}

impl Handler<WorkerSaid> for Outbox {
    type Result = ();

    fn handle(&mut self, WorkerSaid(worker, said, body): WorkerSaid, ctx: &mut Self::Context) {
        if let (Some(number), FromWorker::Fetched(batch)) = (self.of(worker), said) {
            self.fetched(number, batch, body, ctx);
        }
    }
}

impl Handler<WorkerGone> for Outbox {
    type Result = ();

    fn handle(&mut self, WorkerGone(worker): WorkerGone, ctx: &mut Self::Context) {
        self.gone(worker, ctx);
    }
}

impl Handler<WorkerNoticed> for Outbox {
    type Result = ();

    fn handle(&mut self, WorkerNoticed(worker, notice): WorkerNoticed, ctx: &mut Self::Context) {
        let Some(number) = self.of(worker) else { return };
        match notice {
            Notice::Ended => self.gone(worker, ctx),
            Notice::NoDatabase => drop(self.databases.remove(&number)),
            Notice::NoSlot => {
                if let Some(database) = self.databases.get_mut(&number) {
                    database.relay = None;
                    database.not_before = Some(Instant::now() + RESTART_LIMIT);
                    if let Some(suppressed) = database.complaints.pass() {
                        log::warn!(
                            "no background worker slot is free to deliver the outbox of the database with OID {number}; \
                             you might need to increase max_worker_processes{suppressed}"
                        );
                    }
                }
                self.advance(number, ctx);
            }
        }
    }
}

impl Handler<DrainDatabase> for Outbox {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, DrainDatabase(number): DrainDatabase, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        let database = self.databases.entry(number).or_default();
        database.draining += 1;
        database.drain_waiters.push(done);
        self.advance(number, ctx);
        Box::pin(async move { drop(wait.await) })
    }
}

impl Handler<ResumeDatabase> for Outbox {
    type Result = ();

    fn handle(&mut self, ResumeDatabase(number): ResumeDatabase, ctx: &mut Self::Context) {
        if let Some(database) = self.databases.get_mut(&number) {
            database.draining = database.draining.saturating_sub(1);
        }
        self.wake(number, ctx);
    }
}
