//! Has each database's outbox delivered: keeps an outbox relay, a worker that reads the outbox, while there is
//! something to deliver, and sends to JetStream what the relay reads. The actor around [`DatabaseOutbox`]; in the actor
//! thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use futures::future::AbortHandle;
use tokio::sync::{mpsc, oneshot};

use super::database_outbox::{DatabaseOutbox, Step};
use super::delivery::deliver;
use super::interface::{Enable, Wake};
use super::partition::BatchFate;
use crate::actors::base::tasks::Vital;
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::{ConnectionHandle, OpenConnection};
use crate::actors::connections::lease::ConnectionUser;
use crate::actors::workers::launcher::{Launcher, Notice, Sizes};
use crate::actors::workers::messages::{
    DrainDatabase, ResumeDatabase, WorkerGone, WorkerJoined, WorkerNoticed, WorkerOrder, WorkerSaid,
};
use crate::channel::outbox::{Batch, Partition, Settled};
use crate::channel::work::{FromWorker, ToWorker};
use crate::channel::worker_id::WorkerId;
use crate::flood::Flood;

/// The outbox of one database, and what the actor does for it.
#[derive(Default)]
struct DatabaseEntry {
    outbox: DatabaseOutbox<ConnectionHandle>,
    /// Orders to the relay; `None` while it has no channel.
    orders: Option<mpsc::Sender<WorkerOrder>>,
    /// Aborts deliveries that are under way; a partition has one at a time.
    deliveries: HashMap<Partition, AbortHandle>,
    /// Told when no relay is left.
    drain_waiters: Vec<oneshot::Sender<()>>,
    /// Whether a timer is set for the next step.
    is_timed: bool,
    /// Whether a timer is set for an idle relay to leave.
    is_watched: bool,
    complaints: Flood,
}

/// The actor that has all databases' outboxes delivered.
pub struct Outbox {
    launcher: Arc<dyn Launcher>,
    sizes: Arc<Sizes>,
    supervisor: Addr<Supervisor>,
    databases: HashMap<u32, DatabaseEntry>,
    is_enabled: bool,
    started: u32,
    _vital: Vital,
}

impl Outbox {
    pub fn new(launcher: Arc<dyn Launcher>, sizes: Arc<Sizes>, supervisor: Addr<Supervisor>) -> Self {
        Outbox {
            launcher,
            sizes,
            supervisor,
            databases: HashMap::new(),
            is_enabled: false,
            started: 0,
            _vital: Vital::new("outbox"),
        }
    }

    /// Takes the next step that the outbox of a database needs.
    fn advance(&mut self, number: u32, ctx: &mut Context<Self>) {
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        match entry.outbox.step(self.is_enabled, Instant::now()) {
            Step::Nothing => {}
            Step::Wait(time) => {
                if !std::mem::replace(&mut entry.is_timed, true) {
                    ctx.run_later(time, move |actor, ctx| {
                        if let Some(entry) = actor.databases.get_mut(&number) {
                            entry.is_timed = false;
                        }
                        actor.advance(number, ctx);
                    });
                }
            }
            Step::StartRelay => {
                self.started = self.started.wrapping_add(1);
                let worker = WorkerId::outbox_relay(self.started);
                entry.outbox.started(worker, Instant::now());
                self.launcher.start(worker, number);
            }
            Step::Order(fetch) => entry.order(ToWorker::Fetch(fetch)),
            Step::Leave => entry.order(ToWorker::End),
            Step::Drained => {
                for done in entry.drain_waiters.drain(..) {
                    // The waiter may have given up.
                    let _ = done.send(());
                }
            }
        }
    }

    fn wake(&mut self, number: u32, ctx: &mut Context<Self>) {
        self.databases.entry(number).or_default().outbox.want();
        self.advance(number, ctx);
    }

    /// The relay has read a batch; `None` if it found no messages.
    fn fetched(&mut self, number: u32, batch: Option<Box<Batch>>, body: Bytes, ctx: &mut Context<Self>) {
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        let messages = batch.as_ref().map(|batch| batch.messages.len());
        entry.outbox.fetched(messages, Instant::now());
        match batch {
            Some(batch) => self.start(number, *batch, body, ctx),
            None => self.let_go_later(number, ctx),
        }
        self.advance(number, ctx);
    }

    /// Starts the delivery of a batch.
    fn start(&mut self, number: u32, batch: Batch, mut body: Bytes, ctx: &mut Context<Self>) {
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        let Some(worker) = entry.outbox.worker() else {
            return;
        };
        let Batch {
            partition,
            source,
            messages,
        } = batch;
        let with_payload = messages.into_iter().map(|message| {
            let payload = body.split_to((message.size as usize).min(body.len()));
            (message, payload)
        });
        let messages: Vec<_> = with_payload.collect();
        let subjects: Vec<String> = messages
            .iter()
            .map(|(message, _)| message.subject.clone())
            .collect();
        let serial = entry.outbox.partitions.begin(&partition);
        let supervisor = self.supervisor.clone();
        let delivery = async move {
            let source = source?;
            let open = OpenConnection {
                target: source.target,
                settings: source.settings,
                user: ConnectionUser::Worker,
            };
            let handle = match supervisor.send(open).await {
                Ok(handle) => handle?,
                // The runtime worker is about to end.
                Err(_) => return Ok((Vec::new(), None)),
            };
            let fates = deliver(handle.status.clone(), messages, serial).await?;
            Ok((fates, Some(handle)))
        };
        let (delivery, abort) = futures::future::abortable(delivery);
        entry.deliveries.insert(partition.clone(), abort);
        ctx.spawn(delivery.into_actor(self).map(move |outcome, actor, ctx| {
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
        delivery: BatchFate<ConnectionHandle>,
        ctx: &mut Context<Self>,
    ) {
        // -1 means for ever.
        let retry = u64::try_from(self.sizes.outbox_retry_ms.load(Ordering::Relaxed)).ok();
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        // The relay that read the batch is gone. Another one reads the messages again, and JetStream recognises
        // repetitions by their message ids.
        if entry.outbox.worker() != Some(worker) {
            return;
        }
        let (retry, now) = (retry.map(Duration::from_millis), Instant::now());
        let partitions = &mut entry.outbox.partitions;
        let outcomes = partitions.end(&partition, subjects, delivery, retry, now);
        let next_due = partitions.next_due(now);
        entry.outbox.settle(Settled { partition, outcomes });
        if let Some(wait) = next_due {
            ctx.run_later(wait, move |actor, ctx| actor.wake(number, ctx));
        }
        self.advance(number, ctx);
    }

    /// Lets a relay leave that has had nothing to do for long.
    fn let_go_later(&mut self, number: u32, ctx: &mut Context<Self>) {
        let limit = Duration::from_millis(self.sizes.idle_ms.load(Ordering::Relaxed));
        let Some(entry) = self.databases.get_mut(&number) else {
            return;
        };
        if entry.is_watched {
            return;
        }
        match entry.outbox.idle_for(limit, Instant::now()) {
            // The relay works; when it is idle next, it is watched again.
            None => {}
            Some(Duration::ZERO) => entry.order(ToWorker::End),
            Some(rest) => {
                entry.is_watched = true;
                ctx.run_later(rest, move |actor, ctx| {
                    if let Some(entry) = actor.databases.get_mut(&number) {
                        entry.is_watched = false;
                    }
                    actor.let_go_later(number, ctx);
                });
            }
        }
    }

    /// The relay with this id is gone.
    fn gone(&mut self, worker: WorkerId, ctx: &mut Context<Self>) {
        let Some(number) = self.of(worker) else { return };
        if let Some(entry) = self.databases.get_mut(&number) {
            entry.orders = None;
            entry
                .deliveries
                .drain()
                .for_each(|(_, delivery)| delivery.abort());
            entry.outbox.gone(Instant::now());
        }
        self.advance(number, ctx);
    }

    /// No worker slot is free for the relay of a database.
    fn lacks_slot(&mut self, number: u32, ctx: &mut Context<Self>) {
        if let Some(entry) = self.databases.get_mut(&number) {
            entry.outbox.lacks_slot(Instant::now());
            if let Some(suppressed) = entry.complaints.pass() {
                log::warn!(
                    "no background worker slot is free to deliver the outbox of the database with OID {number}; \
                     you might need to increase max_worker_processes{suppressed}"
                );
            }
        }
        self.advance(number, ctx);
    }

    /// The database of a relay; `None` if the relay is not known.
    fn of(&self, worker: WorkerId) -> Option<u32> {
        let mut databases = self.databases.iter();
        let found = databases.find(|(_, entry)| entry.outbox.worker() == Some(worker));
        found.map(|(number, _)| *number)
    }
}

impl DatabaseEntry {
    fn order(&self, order: ToWorker) {
        if let Some(orders) = &self.orders {
            // There is room for one order and the one to leave, and `WorkerGone` tells of the end of a closed channel.
            let _ = orders.try_send((order, Bytes::new()));
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
        if let Some(entry) = self.databases.get_mut(&number) {
            entry.orders = Some(orders);
            if entry.outbox.joined() {
                entry.order(ToWorker::End);
            }
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
            Notice::NoSlot => self.lacks_slot(number, ctx),
        }
    }
}

impl Handler<DrainDatabase> for Outbox {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, DrainDatabase(number): DrainDatabase, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        let entry = self.databases.entry(number).or_default();
        entry.outbox.drain();
        entry.drain_waiters.push(done);
        self.advance(number, ctx);
        // An error means that the database is gone meanwhile, and its relay too.
        Box::pin(async move { drop(wait.await) })
    }
}

impl Handler<ResumeDatabase> for Outbox {
    type Result = ();

    fn handle(&mut self, ResumeDatabase(number): ResumeDatabase, ctx: &mut Self::Context) {
        if let Some(entry) = self.databases.get_mut(&number) {
            entry.outbox.resume();
        }
        self.wake(number, ctx);
    }
}
