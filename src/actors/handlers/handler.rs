//! A handler as the actors hold it: its definition, the messages that wait for it, and its counts. Shared by the
//! registry that subscribes for it and the dispatcher that has its messages executed. In the actor thread.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::queue::{Incoming, Pushed, Queue};
use super::stream::ack_pending::AckPending;
use crate::actors::base::queue_limits::Limits;
use crate::actors::base::tasks;
use crate::actors::connections::interface::ConnectionHandle;
use crate::actors::metrics::exec_times::ExecTimes;
use crate::channel::statistics::{HandlerRow, LastError};
use crate::channel::work::{Definition, HandlerKind};
use crate::channel::worker_id::WorkerId;
use crate::error::{Error, Kind};
use crate::flood::{self, Flood};

/// Whether a handler gets messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandlerState {
    /// The subscription waits for the connection to NATS, or is not confirmed yet.
    Waiting,
    /// The subscription waits, and the handler's problem says for what.
    Stalled,
    Live,
    /// The NATS server does not let the user subscribe; that is tried again from time to time.
    Refused,
    /// The definition has to be corrected first.
    Disabled,
    /// The handler was removed.
    Over,
}

/// The counts of a handler, since it was first read or last reset.
#[derive(Clone, Debug)]
pub struct HandlerCounts {
    pub since: SystemTime,
    /// Messages that were executed, failed ones included.
    pub messages: u64,
    pub errors: u64,
    /// Messages that were not executed, for lack of room, of time, or of an executor that survives them, and replies
    /// that could not be sent.
    pub dropped: u64,
    pub last_error: Option<LastError>,
    /// Execution times of the function.
    pub times: ExecTimes,
}

impl Default for HandlerCounts {
    fn default() -> Self {
        HandlerCounts {
            since: SystemTime::now(),
            messages: 0,
            errors: 0,
            dropped: 0,
            last_error: None,
            times: ExecTimes::default(),
        }
    }
}

/// The part of a handler that changes.
pub struct Changing {
    pub definition: Arc<Definition>,
    pub queue: Queue,
    /// Whether the handler stands in the line for an executor.
    pub lined_up: bool,
    /// Executors that have messages of the handler, and the time of the first message that each has (as
    /// [`Incoming::time_us`]). A subscription has one executor at most, which keeps its order.
    pub at_work: HashMap<WorkerId, i64>,
    /// For a durable subscription: messages that JetStream has still to deliver for the first time, as JetStream has said
    /// last; `None` if it has not said yet.
    pub undelivered: Option<u64>,
    /// For a durable subscription that takes no messages: when its stream took the first of these, in microseconds since
    /// 1970.
    pub oldest_undelivered_us: Option<i64>,
    /// Running mean of the time that a message takes; `None` before the first one.
    pub mean: Option<Duration>,
    /// Whether a timer is set that answers requests which have waited for too long.
    pub watched: bool,
    /// Messages are held until this time, because the first of them has failed and is tried again then.
    pub held_until: Option<Instant>,
    /// Why the handler gets no messages, though its connection is up.
    problem: Option<Error>,
    dropping: Flood,
    /// Dropped messages that no line of the log has told of yet.
    untold: usize,
}

impl Changing {
    fn tell_drops(&mut self, why: &str) {
        let count = std::mem::take(&mut self.untold);
        if count > 0 {
            let (subject, function) = (&self.definition.subject, &self.definition.function);
            log::warn!("{count} messages on subject \"{subject}\" for {function} were dropped: {why}");
        }
    }

    /// Age of the oldest message that waits, is with an executor, or is ack pending: the time since it arrived or, for
    /// a durable subscription, since the stream took it. Zero if there is none.
    fn lag(&self, ack_pending_us: Option<i64>) -> Duration {
        let oldest = self.at_work.values().copied().chain(self.queue.oldest_us());
        let oldest = oldest.chain(ack_pending_us).min();
        // A clock before 1970 has not been set, and counts as 1970.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let since = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or(0));
        oldest.map_or(Duration::ZERO, |oldest| now.saturating_sub(since(oldest)))
    }
}

/// A subscription, durable subscription or responder.
pub struct MessageHandler {
    pub database: u32,
    /// Object id of the role that the function runs as.
    pub role: u32,
    /// The connection that the handler's messages come from; `None` if the handler is disabled.
    pub connection: Option<ConnectionHandle>,
    pub state: watch::Sender<HandlerState>,
    /// The messages that a durable subscription has not acknowledged yet.
    pub ack_pending: AckPending,
    /// When the handler was removed.
    over: OnceLock<Instant>,
    /// Shared with the handler that takes the place of this one, because work that this one has begun ends later.
    pub counts: Arc<Mutex<HandlerCounts>>,
    changing: Mutex<Changing>,
}

impl MessageHandler {
    pub fn new(
        database: u32,
        definition: Definition,
        connection: Option<ConnectionHandle>,
        limits: Arc<Limits>,
        counts: Arc<Mutex<HandlerCounts>>,
    ) -> Arc<MessageHandler> {
        let state = if definition.source.is_ok() && definition.halted.is_none() {
            HandlerState::Waiting
        } else {
            HandlerState::Disabled
        };
        Arc::new(MessageHandler {
            database,
            role: definition.role,
            connection,
            state: watch::Sender::new(state),
            ack_pending: AckPending::default(),
            over: OnceLock::new(),
            counts,
            changing: Mutex::new(Changing {
                definition: Arc::new(definition),
                queue: Queue::new(limits),
                lined_up: false,
                at_work: HashMap::new(),
                undelivered: None,
                oldest_undelivered_us: None,
                mean: None,
                watched: false,
                held_until: None,
                problem: None,
                dropping: Flood::default(),
                untold: 0,
            }),
        })
    }

    /// Locks the part that changes: for a moment, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock()
    }

    /// Changes the state, unless the handler is over.
    pub fn set_state(&self, state: HandlerState) {
        self.state.send_if_modified(|now| {
            let changes = *now != state && *now != HandlerState::Over;
            if changes {
                *now = state;
            }
            changes
        });
    }

    /// The handler gets no messages, though its connection is up, and this is why.
    pub fn stall(&self, problem: Error) {
        self.lock().problem = Some(problem);
        self.set_state(HandlerState::Stalled);
    }

    /// The NATS server refuses the handler's subscription, and this is why.
    pub fn refused(&self, problem: Error) {
        self.lock().problem = Some(problem);
        self.set_state(HandlerState::Refused);
    }

    /// The handler gets messages. `notice` is what the view says besides.
    pub fn set_live(&self, notice: Option<Error>) {
        let mut changing = self.lock();
        changing.problem = notice;
        changing.oldest_undelivered_us = None;
        drop(changing);
        self.set_state(HandlerState::Live);
    }

    /// Returns when the handler is live, disabled or over, or when it is known why it waits.
    pub async fn settled(self: Arc<Self>) {
        let mut state = self.state.subscribe();
        let decided = state.wait_for(|state| *state != HandlerState::Waiting);
        // An error means that the handler or its connection is gone, and is waited for no longer.
        let Some(connection) = &self.connection else {
            let _ = decided.await;
            return;
        };
        let mut status = connection.status.clone();
        tokio::select! {
            _ = decided => {}
            _ = status.wait_for(|status| status.error.is_some()) => {}
        }
    }

    /// Removes the handler: its queue is cleared, and takes no more messages.
    pub fn end(&self) {
        self.set_state(HandlerState::Over);
        self.over.get_or_init(Instant::now);
        self.lock().queue.clear();
    }

    /// Time since the handler was removed; `None` if it was not.
    pub fn over_for(&self) -> Option<Duration> {
        self.over.get().map(Instant::elapsed)
    }

    pub fn is_responder(&self) -> bool {
        self.lock().definition.kind == HandlerKind::Responder
    }

    /// How long a request may wait, and then take: the foreign server's option `responder_timeout_ms`. Zero if the
    /// handler is disabled.
    pub fn responder_timeout(&self) -> Duration {
        let definition = self.definition();
        let settings = definition.source.as_ref().map(|source| &source.settings);
        Duration::from_millis(settings.map_or(0, |settings| settings.responder_timeout_ms.into()))
    }

    pub fn definition(&self) -> Arc<Definition> {
        self.lock().definition.clone()
    }

    /// Puts a message into the queue. A handler that is over drops it.
    pub fn push(&self, message: Incoming) -> Pushed {
        if *self.state.borrow() == HandlerState::Over {
            return Pushed::Behind;
        }
        self.lock().queue.push(message)
    }

    /// Largest message that the NATS server takes, in bytes; `u64::MAX` while the connection is down.
    pub fn max_payload(&self) -> u64 {
        let link = self
            .connection
            .as_ref()
            .map(|connection| connection.status.borrow().link);
        link.filter(|link| link.up)
            .map_or(u64::MAX, |link| link.max_payload)
    }

    pub fn counts(&self) -> MutexGuard<'_, HandlerCounts> {
        self.counts.lock()
    }

    /// Counts the failure of a message that was executed.
    pub fn failed(&self, sqlstate: &str, message: &str) {
        self.counts().errors += 1;
        self.note_error(format!("{sqlstate}: {message}"));
    }

    /// Shows an error as the handler's last.
    pub fn note_error(&self, error: String) {
        self.counts().last_error = Some((error, SystemTime::now().into()));
    }

    /// The handler's row in the views.
    pub fn row(&self) -> HandlerRow {
        let changing = self.lock();
        let definition = &changing.definition;
        let (state, problem) = self.shown_state(&changing);
        // It is not known what a handler without a subscription misses, unless it is looked after.
        let is_subscribed = state != "disabled" && state != "fenced";
        let undelivered = changing.undelivered.filter(|_| definition.source.is_ok());
        let pending =
            undelivered.map(|undelivered| undelivered.saturating_add(self.ack_pending.undone() as u64));
        let oldest_us = [self.ack_pending.oldest_us(), changing.oldest_undelivered_us];
        let is_known = is_subscribed || pending.is_some();
        let lag = is_known.then(|| changing.lag(oldest_us.into_iter().flatten().min()));
        let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
        let counts = self.counts();
        let times = &counts.times;
        HandlerRow {
            role: definition.role,
            kind: definition.kind.name().to_string(),
            server: definition.server.clone(),
            subject: definition.subject.clone(),
            function: definition.function.clone(),
            state: state.to_string(),
            problem,
            messages: counts.messages,
            calls: times.calls,
            errors: counts.errors,
            last_error: counts.last_error.clone(),
            dropped: counts.dropped,
            queued: changing.queue.len() as u64,
            queued_bytes: changing.queue.bytes() as u64,
            pending,
            lag_seconds: lag.map(|lag| lag.as_secs_f64()),
            total_exec_ms: milliseconds(times.total),
            max_exec_ms: milliseconds(times.max),
            exec_time_histogram: times.histogram(),
            reset: counts.since.into(),
            consumer: definition
                .consumer
                .as_ref()
                .map(|consumer| consumer.durable.clone()),
            retrying: definition
                .consumer
                .as_ref()
                .map(|_| self.ack_pending.retrying() as u64),
        }
    }

    /// The state as the views show it, and the problem, if there is one.
    fn shown_state(&self, changing: &Changing) -> (&'static str, Option<String>) {
        let definition = &changing.definition;
        if let Err(error) = &definition.source {
            let is_fenced = error.kind == Kind::Fenced;
            let state = if is_fenced { "fenced" } else { "disabled" };
            return (state, Some(error.to_string()));
        }
        if definition.halted.is_some() {
            return ("disabled", definition.halted.clone());
        }
        let status = self
            .connection
            .as_ref()
            .map(|connection| connection.status.borrow());
        let state = match *self.state.borrow() {
            // A handler that is over is shown until the handler in its place has started.
            HandlerState::Waiting | HandlerState::Stalled | HandlerState::Over => "waiting",
            HandlerState::Live => "live",
            HandlerState::Refused | HandlerState::Disabled => "disabled",
        };
        let needed = definition.consumer.as_ref().zip(status.as_ref());
        let needed = needed.and_then(|(consumer, status)| {
            let key = (definition.subject.clone(), consumer.durable.clone());
            status.refused_consumers.get(&key).copied()
        });
        if let Some(needed) = needed {
            let problem = format!(
                "the NATS server does not let this user publish to {needed}, which the consumer needs"
            );
            return (state, Some(problem));
        }
        let problem = status.and_then(|status| status.error.clone().or_else(|| changing.problem.clone()));
        (state, problem.map(|error| error.to_string()))
    }

    /// Counts messages that are not executed, and logs that now and then.
    pub fn dropped(self: &Arc<Self>, count: usize, why: &'static str) {
        let mut changing = self.lock();
        self.counts().dropped += count as u64;
        changing.untold += count;
        if changing.dropping.pass().is_some() {
            changing.tell_drops(why);
        } else if changing.untold == count {
            // If no more messages are dropped, no later line would tell of these.
            let handler = self.clone();
            tasks::spawn_if_possible("report of dropped messages", async move {
                tokio::time::sleep(flood::INTERVAL).await;
                handler.lock().tell_drops(why);
            });
        }
    }
}
