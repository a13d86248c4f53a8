//! Brings messages to executors and their outcome back. The actor around the [`Pool`]; in the actor thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::acks;
use super::handler::Handler as MessageHandler;
use super::host::Notice;
use super::notifier::{Notifier, Notify};
use super::outbox::{Enable, Outbox, Wake};
use super::patroni_watcher::{Follow, PatroniWatcher};
use super::pool::Pool;
use super::queue::Incoming;
use super::registry::Apply;
use super::responder_registry::{Answer, ResponderRegistry, answer, answer_busy};
use super::role::Role;
use super::subscription_registry::SubscriptionRegistry;
use super::supervisor::{Dropped, Supervisor};
use super::system::Vital;
use super::task::Order;
use crate::channel::message::Row;
use crate::channel::work::{HandlerKind, Report, Said, Worked};
use crate::error::{Error, Kind};

/// Handlers wait so long for an executor before another one is started: most bursts are over by then.
const GROW_AFTER: Duration = Duration::from_millis(3);
/// Callbacks that run may go on for so long when their database is dropped, or its handlers must stop.
const GRACE: Duration = Duration::from_secs(2);
/// The same when their own handler was taken away.
const REMOVED_GRACE: Duration = Duration::from_secs(30);
/// After a look that has failed.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Longest wait for one database when all are looked at.
const SCAN_LIMIT: Duration = Duration::from_secs(10);

/// SQLSTATE of a reply that is larger than a message may be: `program_limit_exceeded`.
const TOO_LARGE: &str = "54000";

/// A handler's queue is no longer empty.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ready(pub Arc<MessageHandler>);

/// An executor has opened its channel; `false` if nobody expects it.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Joined {
    pub ticket: u32,
    pub pid: u32,
    pub orders: mpsc::Sender<Order>,
}

/// What an executor says.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Heard(pub u32, pub Said, pub Bytes);

/// An executor has closed its channel.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Gone(pub u32);

/// What became of an executor's process.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Noticed(pub u32, pub Notice);

/// The pool's sizes have changed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Resized;

/// A database's handlers may have changed; answered when that has taken effect.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Look(pub u32);

/// A session of this database has called: it is looked at, if it never was.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Met(pub u32);

/// Looks at these databases, one after another.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Scan(pub Vec<u32>);

/// The server was promoted, to this timeline, and has these databases.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Promoted {
    pub timeline: u32,
    pub databases: Vec<u32>,
}

/// Patroni does not take this node for the primary, for this reason; or it does.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Fence(pub Option<String>);

/// Has the executors leave a database; answered when they are gone.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Vacate(pub u32);

/// Undoes one `Vacate`, and looks at the database again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Release(pub u32);

/// A row for each executor.
#[derive(Message)]
#[rtype(result = "Vec<Row>")]
pub struct Rows;

/// Where what a database defines goes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Registries {
    pub subscriptions: Addr<SubscriptionRegistry>,
    pub responders: Addr<ResponderRegistry>,
    pub notifier: Addr<Notifier>,
    pub patroni: Addr<PatroniWatcher>,
    pub outbox: Addr<Outbox>,
    pub supervisor: Addr<Supervisor>,
}

/// The actor.
pub struct Dispatcher {
    pool: Pool,
    registries: Option<Registries>,
    role: watch::Sender<Role>,
    fence: Option<String>,
    /// The clock, and what it is set to.
    timer: Option<(SpawnHandle, Instant)>,
    _vital: Vital,
}

impl Dispatcher {
    pub fn new(pool: Pool, role: watch::Sender<Role>, vital: Vital) -> Self {
        Dispatcher {
            pool,
            registries: None,
            role,
            fence: None,
            timer: None,
            _vital: vital,
        }
    }

    /// Sets the clock for what the pool does when time has passed; none while all is at rest.
    fn wind(&mut self, ctx: &mut Context<Self>) {
        let Some(time) = self.pool.next_change() else {
            return;
        };
        let time = time.max(GROW_AFTER);
        let due = Instant::now() + time;
        match self.timer {
            Some((_, sooner)) if sooner <= due => return,
            Some((later, _)) => drop(ctx.cancel_future(later)),
            None => {}
        }
        let timer = ctx.run_later(time, |actor, ctx| {
            actor.timer = None;
            actor.pool.shrink();
            actor.wind(ctx);
        });
        self.timer = Some((timer, due));
    }

    /// The same after what happens all the time, and makes nothing due sooner.
    fn wind_if_stopped(&mut self, ctx: &mut Context<Self>) {
        if self.timer.is_none() {
            self.wind(ctx);
        }
    }

    /// Has requests that wait for too long answered, even if no executor has time.
    fn watch(&mut self, handler: Arc<MessageHandler>, ctx: &mut Context<Self>) {
        if !handler.is_responder() || std::mem::replace(&mut handler.lock().watched, true) {
            return;
        }
        let timeout = handler.responder_timeout();
        let oldest = handler
            .lock()
            .queue
            .oldest()
            .map_or(Duration::ZERO, |oldest| oldest.elapsed());
        ctx.run_later(timeout.saturating_sub(oldest), move |actor, ctx| {
            let mut inner = handler.lock();
            inner.watched = false;
            let expired = inner.queue.expired(timeout);
            let more = !inner.queue.is_empty();
            drop(inner);
            answer_busy(&handler, expired);
            if more {
                actor.watch(handler, ctx);
            }
        });
    }

    /// The outbox is the primary's to deliver, unless Patroni takes another for it.
    fn enable_outbox(&self) {
        if let Some(registries) = &self.registries {
            let is_enabled = self.role.borrow().is_primary && self.fence.is_none();
            registries.outbox.do_send(Enable(is_enabled));
        }
    }

    fn worked(&mut self, ticket: u32, worked: Worked, body: Bytes, ctx: &mut Context<Self>) {
        let Some(task) = self.pool.task(ticket) else {
            return;
        };
        let done = task.done(worked.messages as usize);
        let count = done.len();
        // The rest of a transaction whose replies are too many for one frame is done too.
        task.committing = task.committing.saturating_sub(worked.messages);
        let each = task.since.elapsed() / u32::try_from(count.max(1)).unwrap_or(1);
        task.since = Instant::now();
        let handler = task.handler.clone();
        {
            let mut inner = handler.lock();
            inner.mean = Some(inner.mean.map_or(each, |mean| (mean * 3 + each) / 4));
        }
        {
            let mut counts = handler.counts();
            counts.messages += count as u64;
            for us in &worked.times_us {
                counts.times.add(Duration::from_micros((*us).into()));
            }
        }
        for failure in &worked.failures {
            handler.failed(&failure.sqlstate, &failure.message);
        }
        let goes_on = worked.goes_on;
        if let Some(floor) = worked.floor {
            handler.in_hand.set_floor(&task.stream_created, floor);
        }
        if handler.is_responder() {
            reply(&handler, done, worked, body);
        } else if let Some(again) = acks::settle(&handler, done, &worked.failures) {
            task.messages.push_front(again.message);
            handler.lock().held_until = Some(Instant::now() + again.after);
            ctx.run_later(again.after, move |actor, ctx| {
                handler.lock().held_until = None;
                actor.pool.ready(&handler);
                actor.wind_if_stopped(ctx);
            });
        }
        if !goes_on {
            let waiting = self.pool.finished(ticket);
            self.grow_soon(waiting, ctx);
        }
    }

    /// Has the pool of a database grow, or change its roles, unless those who wait there are served soon.
    fn grow_soon(&self, database: Option<u32>, ctx: &mut Context<Self>) {
        if let Some(database) = database {
            ctx.run_later(GROW_AFTER, move |actor, ctx| {
                actor.pool.grow(database);
                actor.wind_if_stopped(ctx);
            });
        }
    }

    /// A database could not be looked at: all stays as it was, and it is tried again.
    fn blind(&mut self, ticket: u32, why: &str, ctx: &mut Context<Self>) {
        log::warn!("could not read the subscriptions and responders of a database: {why}");
        if let Some(database) = self.pool.blind(ticket) {
            ctx.run_later(LOOK_AGAIN, move |actor, ctx| {
                actor.pool.look(database, oneshot::channel().0);
                actor.wind(ctx);
            });
        }
    }

    /// Hands on what a database defines, and tells those who wait when it has taken effect.
    fn apply(&mut self, ticket: u32, report: Report, ctx: &mut Context<Self>) {
        let Report {
            database_name,
            has_extension,
            mut handlers,
            servers,
            has_outbox,
        } = report;
        let is_primary = self.role.borrow().is_primary;
        if !is_primary {
            handlers.clear();
        }
        if let Some(why) = &self.fence {
            for handler in &mut handlers {
                handler.source = Err(Error::new(Kind::Fenced, why.clone()));
            }
        }
        let live = handlers.iter().filter(|definition| definition.source.is_ok());
        let roles = live.map(|definition| definition.role).collect();
        let Some(database) = self.pool.reported(ticket, database_name, &roles) else {
            return;
        };
        // What runs for a handler that is taken away may finish, within reason.
        let grace = if has_extension && is_primary && self.fence.is_none() {
            REMOVED_GRACE
        } else {
            GRACE
        };
        ctx.run_later(grace, move |actor, _| actor.pool.evict_workers(database, grace));
        let Some(registries) = &self.registries else {
            return;
        };
        if has_outbox {
            registries.outbox.do_send(Wake(database));
        }
        registries.patroni.do_send(Follow {
            database,
            urls: servers
                .iter()
                .filter_map(|server| server.settings.patroni_url.clone())
                .collect(),
        });
        registries.notifier.do_send(Notify {
            database,
            sources: servers,
        });
        let (subscriptions, responders) = handlers
            .into_iter()
            .partition(|definition| definition.kind != HandlerKind::Responder);
        let subscriptions = registries.subscriptions.send(Apply {
            database,
            definitions: subscriptions,
        });
        let responders = registries.responders.send(Apply {
            database,
            definitions: responders,
        });
        let lookers = self.pool.take_lookers(database);
        let applied = async move { tokio::join!(subscriptions, responders) };
        ctx.spawn(applied.into_actor(self).map(move |_, actor, ctx| {
            actor.pool.applied(database, lookers);
            actor.grow_soon(Some(database), ctx);
            actor.wind(ctx);
        }));
    }
}

/// Answers the requests that an executor has done.
fn reply(handler: &MessageHandler, requests: Vec<Incoming>, worked: Worked, mut body: Bytes) {
    let most = handler.max_payload();
    let mut failures = worked.failures.into_iter().peekable();
    let requests = requests.into_iter().zip(worked.replies).enumerate();
    let answers = requests.map(|(index, (request, size))| {
        let payload = body.split_to((size as usize).min(body.len()));
        let failure = failures.next_if(|failure| failure.index as usize == index);
        let outcome = match failure {
            Some(failure) => Answer::Error(failure.sqlstate, failure.message),
            None if u64::from(size) > most => {
                let why = format!("reply of {size} bytes is larger than the NATS server allows");
                handler.failed(TOO_LARGE, &why);
                Answer::Error(TOO_LARGE.into(), why)
            }
            None => Answer::Payload(payload),
        };
        (request.reply, outcome)
    });
    answer(handler, answers);
}

impl Actor for Dispatcher {
    type Context = Context<Self>;
}

impl Handler<Registries> for Dispatcher {
    type Result = ();

    fn handle(&mut self, registries: Registries, _: &mut Self::Context) {
        self.registries = Some(registries);
        self.enable_outbox();
    }
}

impl Handler<Ready> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Ready(handler): Ready, ctx: &mut Self::Context) {
        let database = handler.database;
        if self.pool.ready(&handler) {
            self.grow_soon(Some(database), ctx);
            self.watch(handler, ctx);
        }
    }
}

impl Handler<Joined> for Dispatcher {
    type Result = bool;

    fn handle(&mut self, Joined { ticket, pid, orders }: Joined, ctx: &mut Self::Context) -> bool {
        let expected = self.pool.joined(ticket, pid, orders);
        self.wind(ctx);
        expected
    }
}

impl Handler<Heard> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Heard(ticket, said, body): Heard, ctx: &mut Self::Context) {
        match said {
            Said::Report(report) => self.apply(ticket, report, ctx),
            Said::Blind(why) => self.blind(ticket, &why, ctx),
            Said::Committing { messages } => {
                if let Some(task) = self.pool.task(ticket) {
                    task.committing = messages;
                }
            }
            Said::Worked(worked) => {
                self.worked(ticket, worked, body, ctx);
                self.wind_if_stopped(ctx);
            }
            Said::Fetched(_) => {}
            Said::Vanished => {
                if let Some(task) = self.pool.task(ticket) {
                    let database = task.handler.database;
                    self.pool.look(database, oneshot::channel().0);
                }
                let waiting = self.pool.finished(ticket);
                self.grow_soon(waiting, ctx);
            }
        }
    }
}

impl Handler<Gone> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Gone(ticket): Gone, ctx: &mut Self::Context) {
        self.pool.left(ticket);
        self.wind(ctx);
    }
}

impl Handler<Noticed> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Noticed(ticket, notice): Noticed, ctx: &mut Self::Context) {
        if let Some(dropped) = self.pool.notice(ticket, notice)
            && let Some(registries) = &self.registries
        {
            let nothing = || Apply {
                database: dropped,
                definitions: Vec::new(),
            };
            registries.subscriptions.do_send(nothing());
            registries.responders.do_send(nothing());
            registries.patroni.do_send(Follow {
                database: dropped,
                urls: Default::default(),
            });
            registries.notifier.do_send(Notify {
                database: dropped,
                sources: Vec::new(),
            });
            registries.supervisor.do_send(Dropped(dropped));
        }
        self.wind(ctx);
    }
}

impl Handler<Resized> for Dispatcher {
    type Result = ();

    fn handle(&mut self, _: Resized, ctx: &mut Self::Context) {
        if let Some((timer, _)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        self.pool.shrink();
        self.wind(ctx);
    }
}

impl Handler<Look> for Dispatcher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Look(database): Look, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        self.pool.look(database, done);
        self.wind(ctx);
        Box::pin(async move { drop(wait.await) })
    }
}

impl Handler<Met> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Met(database): Met, ctx: &mut Self::Context) {
        if !self.pool.databases().contains(&database) {
            self.pool.look(database, oneshot::channel().0);
            self.wind(ctx);
        }
    }
}

impl Handler<Scan> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Scan(databases): Scan, ctx: &mut Self::Context) {
        let this = ctx.address();
        actix::spawn(async move {
            for database in databases {
                let _ = tokio::time::timeout(SCAN_LIMIT, this.send(Look(database))).await;
            }
        });
    }
}

impl Handler<Promoted> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Promoted { timeline, databases }: Promoted, ctx: &mut Self::Context) {
        let promoted = self.role.send_if_modified(|role| {
            let promoted = !role.is_primary;
            *role = Role {
                is_primary: true,
                timeline,
            };
            promoted
        });
        if promoted {
            log::info!("the server was promoted, its timeline is {timeline}");
            self.enable_outbox();
            ctx.notify(Scan(databases));
        }
    }
}

impl Handler<Fence> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Fence(fence): Fence, ctx: &mut Self::Context) {
        self.fence = fence;
        self.enable_outbox();
        ctx.notify(Scan(self.pool.databases()));
    }
}

impl Handler<Vacate> for Dispatcher {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Vacate(database): Vacate, ctx: &mut Self::Context) -> Self::Result {
        let (done, wait) = oneshot::channel();
        self.pool.vacate(database, done);
        ctx.run_later(GRACE, move |actor, _| actor.pool.evict(database));
        let registries = self.registries.as_ref();
        let courier = registries.map(|registries| registries.outbox.send(Vacate(database)));
        Box::pin(async move {
            drop(wait.await);
            if let Some(courier) = courier {
                let _ = courier.await;
            }
        })
    }
}

impl Handler<Release> for Dispatcher {
    type Result = ();

    fn handle(&mut self, Release(database): Release, ctx: &mut Self::Context) {
        self.pool.release(database);
        if let Some(registries) = &self.registries {
            registries.outbox.do_send(Release(database));
        }
        self.pool.look(database, oneshot::channel().0);
        self.wind(ctx);
    }
}

impl Handler<Rows> for Dispatcher {
    type Result = MessageResult<Rows>;

    fn handle(&mut self, _: Rows, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.pool.rows())
    }
}
