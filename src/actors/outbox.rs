//! Has each database's outbox delivered: keeps a courier, a worker that reads it, while there is something to deliver,
//! and sends what that reads. The actor; in the actor thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use futures::future::AbortHandle;
use tokio::sync::{mpsc, oneshot};

use super::backoff::backoff;
use super::dispatcher::{Gone, Heard, Joined, Noticed, Release, Vacate};
use super::host::{Host, Notice, Sizes};
use super::lane::Lanes;
use super::outbox_delivery::{Fate, deliver};
use super::pool::{RESTART, RESTART_LIMIT};
use super::supervisor::{Open, Supervisor};
use super::system::Vital;
use super::task::Order;
use crate::channel::outbox::{Batch, Fetch, Lane, Settled};
use crate::channel::work::{Said, Told};
use crate::error::Error;
use crate::flood::Flood;

/// Set in the number that a courier is started under, and in no executor's.
const COURIER: u32 = 1 << 31;
/// Under load, a courier reads no more often than this, so that it has more to read; the first message after a pause does
/// not wait.
const PACE: Duration = Duration::from_millis(5);
/// Messages from which on a batch is worth reading at once.
const WORTHWHILE: usize = 500;

/// Whether a worker of this number is a courier.
pub fn is_courier(ticket: u32) -> bool {
    ticket & COURIER != 0
}

/// There may be something in the outbox of this database.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake(pub u32);

/// Whether anything may be delivered: not by a standby, nor while fenced.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enable(pub bool);

#[derive(Default)]
struct Database {
    courier: Option<Courier>,
    /// Somebody has said that there is something.
    wanted: bool,
    /// What the courier has to write down.
    settled: Vec<Settled>,
    lanes: Lanes,
    vacated: u32,
    vacaters: Vec<oneshot::Sender<()>>,
    /// No courier is started, and nothing is read, before this time.
    not_before: Option<Instant>,
    /// It is waited for that time to pass.
    is_timed: bool,
    failures: u32,
    complaints: Flood,
}

struct Courier {
    ticket: u32,
    orders: Option<mpsc::Sender<Order>>,
    /// It carries out an order.
    is_busy: bool,
    /// It has to write something down with that.
    is_writing: bool,
    is_leaving: bool,
    idle_since: Instant,
    /// Its leaving is considered later.
    is_watched: bool,
    /// Ends the deliveries of what it has read: one of a lane at a time.
    deliveries: HashMap<Lane, AbortHandle>,
}

/// The actor.
pub struct Outbox {
    host: Arc<dyn Host>,
    sizes: Arc<Sizes>,
    supervisor: Addr<Supervisor>,
    databases: HashMap<u32, Database>,
    is_enabled: bool,
    last_ticket: u32,
    _vital: Vital,
}

impl Outbox {
    pub fn new(host: Arc<dyn Host>, sizes: Arc<Sizes>, supervisor: Addr<Supervisor>, vital: Vital) -> Self {
        Outbox {
            host,
            sizes,
            supervisor,
            databases: HashMap::new(),
            is_enabled: false,
            last_ticket: COURIER,
            _vital: vital,
        }
    }

    /// Has the courier of a database do what there is to do, starts it or lets it go.
    fn advance(&mut self, number: u32, ctx: &mut Context<Self>) {
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let may_stay = self.is_enabled && database.vacated == 0;
        if !may_stay {
            match &mut database.courier {
                Some(courier) => courier.leave(),
                None => database.vacaters.drain(..).for_each(|done| {
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
        let Some(courier) = &mut database.courier else {
            self.last_ticket = self.last_ticket.wrapping_add(1) | COURIER;
            database.courier = Some(Courier::new(self.last_ticket));
            self.host.start(self.last_ticket, number);
            return;
        };
        if courier.is_busy || courier.is_leaving {
            return;
        }
        let Some(orders) = &courier.orders else {
            return;
        };
        database.wanted = false;
        let (busy, held) = database.lanes.closed();
        let fetch = Fetch {
            settled: std::mem::take(&mut database.settled),
            busy,
            held,
        };
        courier.is_writing = !fetch.settled.is_empty();
        courier.is_busy = orders
            .try_send((Told::Fetch(Box::new(fetch)), Bytes::new()))
            .is_ok();
    }

    /// The courier has read a batch, or there is none.
    fn fetched(&mut self, number: u32, batch: Option<Box<Batch>>, body: Bytes, ctx: &mut Context<Self>) {
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let Some(courier) = &mut database.courier else {
            return;
        };
        courier.is_busy = false;
        courier.idle_since = Instant::now();
        // One that reads, and then fails to remove what was delivered, has it sent again and again.
        let is_done = batch.is_none() && database.lanes.are_idle() && database.settled.is_empty();
        if courier.is_writing || is_done {
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
                // There may be more, of other lanes.
                database.wanted = true;
                let ticket = courier.ticket;
                self.start(number, ticket, *batch, body, ctx);
            }
            None => {
                database.lanes.nothing_left();
                self.let_go_later(number, ctx);
            }
        }
        self.advance(number, ctx);
    }

    /// Starts the delivery of a batch.
    fn start(&mut self, number: u32, ticket: u32, batch: Batch, mut body: Bytes, ctx: &mut Context<Self>) {
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let Batch {
            lane,
            source,
            messages,
        } = batch;
        let letters: Vec<_> = messages
            .into_iter()
            .map(|letter| {
                let payload = body.split_to((letter.size as usize).min(body.len()));
                (letter, payload)
            })
            .collect();
        let subjects: Vec<String> = letters.iter().map(|(letter, _)| letter.subject.clone()).collect();
        let serial = database.lanes.begin(&lane);
        let supervisor = self.supervisor.clone();
        let task = async move {
            let source = source?;
            let key = source.target.key;
            let open = Open {
                target: source.target,
                settings: source.settings,
            };
            let handle = match supervisor.send(open).await {
                Ok(handle) => handle?,
                Err(_) => return Ok((Vec::new(), None)),
            };
            let fates = deliver(handle.status.clone(), letters, serial).await;
            Ok((fates, Some((key, handle))))
        };
        let (task, abort) = futures::future::abortable(task);
        if let Some(courier) = &mut database.courier {
            courier.deliveries.insert(lane.clone(), abort);
        }
        ctx.spawn(task.into_actor(self).map(move |outcome, actor, ctx| {
            if let Ok(outcome) = outcome {
                actor.delivered(number, ticket, lane, &subjects, outcome, ctx);
            }
        }));
    }

    fn delivered(
        &mut self,
        number: u32,
        ticket: u32,
        lane: Lane,
        subjects: &[String],
        outcome: Result<(Vec<Fate>, super::lane::Connection), Error>,
        ctx: &mut Context<Self>,
    ) {
        let retry = u64::try_from(self.sizes.outbox_retry_ms.load(Ordering::Relaxed)).ok();
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        // Another courier reads it again, and what is repeated JetStream knows by its number.
        if database
            .courier
            .as_ref()
            .is_none_or(|courier| courier.ticket != ticket)
        {
            return;
        }
        let outcomes = database.lanes.end(
            &lane,
            subjects,
            outcome,
            retry.map(Duration::from_millis),
            &self.supervisor,
        );
        database.settled.push(Settled { lane, outcomes });
        database.wanted = true;
        if let Some(wait) = database.lanes.next_due() {
            ctx.run_later(wait, move |actor, ctx| actor.wake(number, ctx));
        }
        self.advance(number, ctx);
    }

    fn wake(&mut self, number: u32, ctx: &mut Context<Self>) {
        self.databases.entry(number).or_default().wanted = true;
        self.advance(number, ctx);
    }

    /// A courier that has nothing to do for long leaves.
    fn let_go_later(&mut self, number: u32, ctx: &mut Context<Self>) {
        let limit = Duration::from_millis(self.sizes.idle_ms.load(Ordering::Relaxed));
        let Some(courier) = self
            .databases
            .get_mut(&number)
            .and_then(|database| database.courier.as_mut())
        else {
            return;
        };
        if std::mem::replace(&mut courier.is_watched, true) {
            return;
        }
        let rest = limit.saturating_sub(courier.idle_since.elapsed());
        ctx.run_later(rest, move |actor, ctx| {
            let Some(database) = actor.databases.get_mut(&number) else {
                return;
            };
            let is_idle = !database.wanted && database.settled.is_empty() && database.lanes.are_idle();
            let Some(courier) = &mut database.courier else {
                return;
            };
            courier.is_watched = false;
            // While it works, its next rest has it watched again.
            if is_idle && !courier.is_busy {
                if courier.idle_since.elapsed() >= limit {
                    courier.leave();
                } else {
                    actor.let_go_later(number, ctx);
                }
            }
        });
    }

    /// The courier of this number is gone.
    fn gone(&mut self, ticket: u32, ctx: &mut Context<Self>) {
        let Some(number) = self.of(ticket) else { return };
        let Some(database) = self.databases.get_mut(&number) else {
            return;
        };
        let Some(courier) = database.courier.take() else {
            return;
        };
        courier.deliveries.values().for_each(AbortHandle::abort);
        let had_more = !database.lanes.are_idle() || !database.settled.is_empty() || courier.is_busy;
        database.settled.clear();
        database.lanes.leave(&self.supervisor);
        if !courier.is_leaving {
            let wait = backoff(RESTART, RESTART_LIMIT, database.failures);
            database.failures += 1;
            database.not_before = Some(Instant::now() + wait);
        }
        database.wanted |= had_more;
        self.advance(number, ctx);
    }

    fn of(&self, ticket: u32) -> Option<u32> {
        let has = |database: &Database| database.courier.as_ref().is_some_and(|c| c.ticket == ticket);
        self.databases
            .iter()
            .find(|(_, database)| has(database))
            .map(|(number, _)| *number)
    }
}

impl Courier {
    fn new(ticket: u32) -> Courier {
        Courier {
            ticket,
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
            let _ = orders.try_send((Told::Leave, Bytes::new()));
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

impl Handler<Joined> for Outbox {
    type Result = bool;

    fn handle(&mut self, Joined { ticket, orders, .. }: Joined, ctx: &mut Self::Context) -> bool {
        let Some(number) = self.of(ticket) else {
            return false;
        };
        if let Some(database) = self.databases.get_mut(&number)
            && let Some(courier) = &mut database.courier
        {
            courier.orders = Some(orders);
            if courier.is_leaving {
                courier.leave();
            }
            database.not_before = None;
        }
        self.advance(number, ctx);
        true
    }
}

impl Handler<Heard> for Outbox {
    type Result = ();

    fn handle(&mut self, Heard(ticket, said, body): Heard, ctx: &mut Self::Context) {
        if let (Some(number), Said::Fetched(batch)) = (self.of(ticket), said) {
            self.fetched(number, batch, body, ctx);
        }
    }
}

impl Handler<Gone> for Outbox {
    type Result = ();

    fn handle(&mut self, Gone(ticket): Gone, ctx: &mut Self::Context) {
        self.gone(ticket, ctx);
    }
}

impl Handler<Noticed> for Outbox {
    type Result = ();

    fn handle(&mut self, Noticed(ticket, notice): Noticed, ctx: &mut Self::Context) {
        let Some(number) = self.of(ticket) else { return };
        match notice {
            Notice::Ended => self.gone(ticket, ctx),
            Notice::NoDatabase => drop(self.databases.remove(&number)),
            Notice::NoSlot => {
                if let Some(database) = self.databases.get_mut(&number) {
                    database.courier = None;
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

impl Handler<Vacate> for Outbox {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Vacate(number): Vacate, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        let database = self.databases.entry(number).or_default();
        database.vacated += 1;
        database.vacaters.push(done);
        self.advance(number, ctx);
        Box::pin(async move { drop(wait.await) })
    }
}

impl Handler<Release> for Outbox {
    type Result = ();

    fn handle(&mut self, Release(number): Release, ctx: &mut Self::Context) {
        if let Some(database) = self.databases.get_mut(&number) {
            database.vacated = database.vacated.saturating_sub(1);
        }
        self.wake(number, ctx);
    }
}
