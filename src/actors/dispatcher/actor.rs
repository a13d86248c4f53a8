//! Brings messages to executors, and their outcomes back. The actor around the [`Pool`]; `actor/databases.rs` has what
//! concerns a database as a whole. In the actor thread.

mod databases;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::interface::{ExecutorRows, Registries, Resized};
use crate::actors::base::tasks::Vital;
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::handlers::interface::Ready;
use crate::actors::handlers::queue::Incoming;
use crate::actors::handlers::reply::{ResponderReply, answer, answer_busy};
use crate::actors::handlers::stream::acks;
use crate::actors::workers::messages::{WorkerGone, WorkerJoined, WorkerNoticed, WorkerSaid};
use crate::actors::workers::pool::Pool;
use crate::channel::marks::Mark;
use crate::channel::work::{Failure, FromWorker, Worked};
use crate::channel::worker_id::WorkerId;
use crate::server_role::ServerRole;

/// Handlers wait this long for an executor before another one is started: most bursts are over by then.
const GROW_AFTER: Duration = Duration::from_millis(3);
/// The timer is set no later than this, because work that begins meanwhile may be overdue sooner than anything now.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// SQLSTATE of the answer in place of a reply that is too large for the NATS server: `program_limit_exceeded`.
const TOO_LARGE: &str = "54000";

/// The actor that brings messages to executors.
pub struct Dispatcher {
    pool: Pool,
    registries: Option<Registries>,
    role: watch::Sender<ServerRole>,
    /// Why the server is fenced; `None` if it is not.
    fence: Option<String>,
    /// The timer for the pool's next change, and when it fires.
    timer: Option<(SpawnHandle, Instant)>,
    /// Databases whose pool is about to grow, if handlers still wait then.
    growing: HashSet<u32>,
    /// For each database, the removal of consumers that are not used any more.
    removals: HashMap<u32, SpawnHandle>,
    /// Those that wait until the handlers of a database were read.
    readers: HashMap<u32, Vec<oneshot::Sender<()>>>,
    _vital: Vital,
}

impl Dispatcher {
    pub fn new(pool: Pool, role: watch::Sender<ServerRole>) -> Self {
        Dispatcher {
            pool,
            registries: None,
            role,
            fence: None,
            timer: None,
            growing: HashSet::new(),
            removals: HashMap::new(),
            readers: HashMap::new(),
            _vital: Vital::new("dispatcher"),
        }
    }

    /// Sets the timer for the pool's next change, if there is one.
    pub(super) fn wind(&mut self, ctx: &mut Context<Self>) {
        let Some(time) = self.pool.next_change() else {
            return;
        };
        let time = time.clamp(GROW_AFTER, LONGEST_WAIT);
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

    /// Sets the timer if none is set; cheap enough for every message.
    fn wind_if_stopped(&mut self, ctx: &mut Context<Self>) {
        if self.timer.is_none() {
            self.wind(ctx);
        }
    }

    /// Has a responder's requests that wait for too long answered, even if no executor has time.
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
            let mut changing = handler.lock();
            changing.watched = false;
            let expired = changing.queue.expired(timeout);
            let more = !changing.queue.is_empty();
            drop(changing);
            answer_busy(&handler, expired);
            if more {
                actor.watch(handler, ctx);
            }
        });
    }

    fn worked(&mut self, worker: WorkerId, worked: Worked, body: Bytes, ctx: &mut Context<Self>) {
        let Some(task) = self.pool.task(worker) else {
            return;
        };
        let done = task.done(worked.messages as usize);
        let count = done.len();
        // A transaction whose replies are too many for one frame is reported in several; its other messages still count
        // as committing.
        task.committing = task.committing.saturating_sub(worked.messages);
        let each = task.since.elapsed() / u32::try_from(count.max(1)).unwrap_or(1);
        task.since = Instant::now();
        let handler = task.handler.clone();
        {
            let mut changing = handler.lock();
            changing.mean = Some(changing.mean.map_or(each, |mean| (mean * 3 + each) / 4));
        }
        {
            let mut counts = handler.counts();
            counts.messages += count as u64;
            for us in &worked.times_us {
                counts.times.add(Duration::from_micros((*us).into()));
            }
        }
        for failure in &worked.failures {
            let position = done
                .get(failure.index as usize)
                .and_then(|message| message.position);
            let of = position.map_or_else(String::new, |position| format!("message {}: ", position.sequence));
            handler.failed(&failure.sqlstate, &format!("{of}{}", failure.message));
        }
        let goes_on = worked.goes_on;
        if worked.ack_floor.is_some() {
            let marks = marks(&done, &worked.failures);
            handler
                .ack_pending
                .committed(&task.incarnation, worked.ack_floor, marks);
        }
        if handler.is_responder() {
            reply(&handler, done, worked, body);
        } else if !task.is_present() {
            // The stream that the messages come from is gone, and so are its acknowledgements.
        } else if let Some(again) = acks::settle(&handler, done, &worked.failures) {
            task.messages.push_front(again.message);
            let until = Instant::now() + again.after;
            handler.lock().held_until = Some(until);
            ctx.run_later(again.after, move |actor, ctx| {
                // Another message may be held until later by now.
                handler.lock().held_until.take_if(|held| *held <= until);
                actor.ready(&handler, ctx);
            });
        }
        if !goes_on {
            let waiting = self.pool.finished(worker);
            self.grow_soon(waiting, ctx);
        }
    }

    /// A handler has messages. `true` if they wait for an executor, or some of them are with an executor.
    fn ready(&mut self, handler: &Arc<MessageHandler>, ctx: &mut Context<Self>) -> bool {
        let waits = self.pool.ready(handler);
        if waits {
            self.grow_soon(Some(handler.database), ctx);
        }
        waits
    }

    /// Has the pool of a database grow, or change its roles, unless the handlers that wait there are served soon.
    pub(super) fn grow_soon(&mut self, database: Option<u32>, ctx: &mut Context<Self>) {
        if let Some(database) = database.filter(|database| self.growing.insert(*database)) {
            ctx.run_later(GROW_AFTER, move |actor, ctx| {
                actor.growing.remove(&database);
                actor.pool.grow(database);
                actor.wind_if_stopped(ctx);
            });
        }
    }
}

/// The messages of a durable subscription that are done with.
fn marks<'a>(done: &'a [Incoming], failures: &'a [Failure]) -> impl Iterator<Item = Mark> + 'a {
    let has_failed = |index: usize| {
        let mut of_message = failures
            .iter()
            .filter(move |failure| failure.index as usize == index);
        of_message.any(|failure| !failure.is_final)
    };
    let done = done
        .iter()
        .enumerate()
        .filter(move |(index, _)| !has_failed(*index));
    done.filter_map(|(_, message)| message.position.map(|position| position.mark(message.time_us)))
}

/// Answers the requests that an executor has executed.
fn reply(handler: &Arc<MessageHandler>, requests: Vec<Incoming>, worked: Worked, mut body: Bytes) {
    let most = handler.max_payload();
    let mut failures = worked.failures.into_iter().peekable();
    let requests = requests.into_iter().zip(worked.replies).enumerate();
    let answers = requests.map(|(index, (request, size))| {
        let payload = body.split_to((size as usize).min(body.len()));
        let failure = failures.next_if(|failure| failure.index as usize == index);
        let outcome = match failure {
            Some(failure) => ResponderReply::Error(failure.sqlstate, failure.message),
            None if u64::from(size) > most => {
                let why = format!("reply of {size} bytes is larger than the NATS server allows");
                handler.failed(TOO_LARGE, &why);
                ResponderReply::Error(TOO_LARGE.into(), why)
            }
            None => ResponderReply::Payload(payload),
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
        if self.ready(&handler, ctx) {
            self.watch(handler, ctx);
        }
    }
}

impl Handler<WorkerJoined> for Dispatcher {
    type Result = bool;

    fn handle(
        &mut self,
        WorkerJoined { worker, pid, orders }: WorkerJoined,
        ctx: &mut Self::Context,
    ) -> bool {
        let expected = self.pool.joined(worker, pid, orders);
        let waiting = self.pool.short_of(worker);
        self.grow_soon(waiting, ctx);
        self.wind(ctx);
        expected
    }
}

impl Handler<WorkerSaid> for Dispatcher {
    type Result = ();

    fn handle(&mut self, WorkerSaid(worker, said, body): WorkerSaid, ctx: &mut Self::Context) {
        match said {
            FromWorker::Report(report) => self.apply(worker, report, ctx),
            FromWorker::ReadFailed(why) => self.read_failed(worker, &why, ctx),
            FromWorker::Committing { messages } => {
                if let Some(task) = self.pool.task(worker) {
                    task.committing = messages;
                }
            }
            FromWorker::Worked(worked) => {
                self.worked(worker, worked, body, ctx);
                self.wind_if_stopped(ctx);
            }
            FromWorker::Fetched(_) => {}
            FromWorker::Vanished => {
                if let Some(task) = self.pool.task(worker) {
                    let database = task.handler.database;
                    self.pool.refresh(database, oneshot::channel().0);
                }
                let waiting = self.pool.finished(worker);
                self.grow_soon(waiting, ctx);
            }
        }
    }
}

impl Handler<WorkerGone> for Dispatcher {
    type Result = ();

    fn handle(&mut self, WorkerGone(worker): WorkerGone, ctx: &mut Self::Context) {
        self.pool.left(worker);
        self.wind(ctx);
    }
}

impl Handler<WorkerNoticed> for Dispatcher {
    type Result = ();

    fn handle(&mut self, WorkerNoticed(worker, notice): WorkerNoticed, ctx: &mut Self::Context) {
        if let Some(database) = self.pool.notice(worker, notice) {
            self.forget(database);
            if let Some(removal) = self.removals.remove(&database) {
                ctx.cancel_future(removal);
            }
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

impl Handler<ExecutorRows> for Dispatcher {
    type Result = MessageResult<ExecutorRows>;

    fn handle(&mut self, _: ExecutorRows, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.pool.rows())
    }
}
