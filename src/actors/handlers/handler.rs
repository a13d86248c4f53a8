//! A handler as the actors hold it: its definition, the messages that wait for it, and what is counted. Shared by the
//! registry that subscribes for it and the dispatcher that has it executed. In the actor thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::ack_pending::AckPending;
use super::queue::{Incoming, Pushed, Queue};
use crate::actors::base::queue_limits::Limits;
use crate::actors::base::text::{milliseconds, seconds};
use crate::actors::connections::interface::ConnectionHandle;
use crate::actors::metrics::exec_times::ExecTimes;
use crate::channel::work::{Definition, HandlerKind};
use crate::channel::worker_id::WorkerId;
use crate::error::{Error, Kind};
use crate::flood::Flood;
use crate::row::Row;

/// Whether a handler gets messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandlerState {
    /// Its subscription waits for the connection to NATS.
    Waiting,
    Live,
    /// Something has to be put right first.
    Disabled,
    /// It was taken away.
    Over,
}

/// What is counted, since the handler was found or the last reset.
#[derive(Clone, Debug)]
pub struct HandlerCounts {
    pub since: SystemTime,
    /// Messages that were executed, failures among them.
    pub messages: u64,
    pub errors: u64,
    /// Messages that were not executed, for want of room, of time, or of an executor that lives.
    pub dropped: u64,
    pub last_error: Option<(String, SystemTime)>,
    /// What calls of the function took.
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

/// What changes of a handler.
pub struct Changing {
    pub definition: Arc<Definition>,
    pub queue: Queue,
    /// It stands in the line for an executor.
    pub lined_up: bool,
    /// Executors that have messages of it, by worker, and the time of the first message that each has (as
    /// [`Incoming::time_us`]): one executor at most for a subscription, which keeps their order.
    pub at_work: HashMap<WorkerId, i64>,
    /// Of a durable subscription: messages that JetStream had still to deliver, when it delivered the last one.
    pub undelivered: u64,
    /// What a message takes, lately.
    pub mean: Option<Duration>,
    /// Somebody will look after requests that have waited for too long.
    pub watched: bool,
    /// Its messages wait until then: the first one has failed and is tried again.
    pub held_until: Option<Instant>,
    /// Why a durable subscription gets no messages.
    pub trouble: Option<Error>,
    dropping: Flood,
    /// Dropped messages that the log does not tell of yet.
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

    /// How long ago the oldest message that waits, is at work, or is in hand, arrived, or was taken by its stream.
    fn lag(&self, ack_pending_us: Option<i64>) -> Duration {
        let oldest = self.at_work.values().copied().chain(self.queue.oldest_us());
        let oldest = oldest.chain(ack_pending_us).min();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or(0));
        oldest.map_or(Duration::ZERO, |oldest| now.saturating_sub(since(oldest)))
    }
}

/// A handler.
pub struct MessageHandler {
    pub database: u32,
    /// Whom its function runs as.
    pub role: u32,
    /// The connection that its messages come from; none if it is disabled.
    pub connection: Option<ConnectionHandle>,
    pub state: watch::Sender<HandlerState>,
    /// What a durable subscription has not acknowledged yet.
    pub ack_pending: AckPending,
    /// When it was taken away.
    over: OnceLock<Instant>,
    /// Shared with the handler that takes its place, since what it has begun ends later.
    pub counts: Arc<Mutex<HandlerCounts>>,
    inner: Mutex<Changing>,
}

impl MessageHandler {
    pub fn new(
        database: u32,
        definition: Definition,
        connection: Option<ConnectionHandle>,
        limits: Arc<Limits>,
        counts: Arc<Mutex<HandlerCounts>>,
    ) -> Arc<MessageHandler> {
        let state = if definition.source.is_ok() {
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
            inner: Mutex::new(Changing {
                definition: Arc::new(definition),
                queue: Queue::new(limits),
                lined_up: false,
                at_work: HashMap::new(),
                undelivered: 0,
                mean: None,
                watched: false,
                held_until: None,
                trouble: None,
                dropping: Flood::default(),
                untold: 0,
            }),
        })
    }

    /// Held for a moment, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Changing> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes to a state, unless the handler is over.
    pub fn set_state(&self, state: HandlerState) {
        self.state.send_if_modified(|now| {
            let changes = *now != state && *now != HandlerState::Over;
            if changes {
                *now = state;
            }
            changes
        });
    }

    /// Takes it away: nobody has its messages any more.
    pub fn end(&self) {
        self.set_state(HandlerState::Over);
        let _ = self.over.set(Instant::now());
        self.lock().queue.clear();
    }

    /// For how long it has been taken away, if it was.
    pub fn over_for(&self) -> Option<Duration> {
        self.over.get().map(Instant::elapsed)
    }

    pub fn is_responder(&self) -> bool {
        self.lock().definition.kind == HandlerKind::Responder
    }

    /// How long a request may take, and wait; the responder's own option.
    pub fn responder_timeout(&self) -> Duration {
        let definition = self.definition();
        let settings = definition.source.as_ref().map(|source| &source.settings);
        Duration::from_millis(settings.map_or(0, |settings| settings.responder_timeout_ms.into()))
    }

    pub fn definition(&self) -> Arc<Definition> {
        self.lock().definition.clone()
    }

    /// Has a message wait, unless the handler is over.
    pub fn push(&self, message: Incoming) -> Pushed {
        if *self.state.borrow() == HandlerState::Over {
            return Pushed::Behind;
        }
        self.lock().queue.push(message)
    }

    /// Largest message that the NATS server takes, in bytes.
    pub fn max_payload(&self) -> u64 {
        let link = self
            .connection
            .as_ref()
            .map(|connection| connection.status.borrow().link);
        link.filter(|link| link.up)
            .map_or(u64::MAX, |link| link.max_payload)
    }

    pub fn counts(&self) -> MutexGuard<'_, HandlerCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a message that was executed and failed.
    pub fn failed(&self, sqlstate: &str, message: &str) {
        let mut counts = self.counts();
        counts.errors += 1;
        counts.last_error = Some((format!("{sqlstate}: {message}"), SystemTime::now()));
    }

    /// Its row in the views.
    pub fn row(&self) -> Row {
        let state = *self.state.borrow();
        let inner = self.lock();
        let definition = &inner.definition;
        // A durable subscription has a stream in the subject's place, and subscribes to an inbox.
        let is_refused = definition.consumer.is_none()
            && self
                .connection
                .as_ref()
                .is_some_and(|connection| connection.status.borrow().refused.contains(&definition.subject));
        let state = match (state, &definition.source) {
            (_, Err(error)) if error.kind == Kind::Fenced => "fenced",
            // What is over is shown until the handler in its place is there.
            (HandlerState::Waiting | HandlerState::Over, _) => "waiting",
            (HandlerState::Live, _) if is_refused => "disabled",
            (HandlerState::Live, _) => "live",
            (HandlerState::Disabled, _) => "disabled",
        };
        let problem = match (&definition.source, &self.connection) {
            (Ok(_), Some(_)) if is_refused => {
                Some("the NATS server does not let this user subscribe to the subject".to_string())
            }
            (Err(error), _) => Some(error.to_string()),
            (Ok(_), Some(connection)) => {
                let error = connection.status.borrow().error.clone();
                error
                    .or_else(|| inner.trouble.clone())
                    .map(|error| error.to_string())
            }
            (Ok(_), None) => None,
        };
        let counts = self.counts();
        let times = &counts.times;
        let last = counts.last_error.as_ref();
        // What a handler without a subscription misses is not known.
        let is_subscribed = state != "disabled" && state != "fenced";
        let pending = (definition.consumer.is_some() && is_subscribed)
            .then(|| inner.undelivered.saturating_add(self.ack_pending.undone() as u64))
            // As bigint has it, whatever NATS says.
            .map(|pending| pending.min(i64::MAX as u64));
        let lag = is_subscribed.then(|| inner.lag(self.ack_pending.oldest_us()));
        vec![
            Some(definition.kind.name().to_string()),
            Some(definition.server.clone()),
            Some(definition.subject.clone()),
            Some(definition.function.clone()),
            Some(state.to_string()),
            problem,
            Some(counts.messages.to_string()),
            Some(times.calls.to_string()),
            Some(counts.errors.to_string()),
            last.map(|(what, _)| what.clone()),
            last.map(|(_, when)| seconds(*when)),
            Some(counts.dropped.to_string()),
            Some(inner.queue.len().to_string()),
            Some(inner.queue.bytes().to_string()),
            pending.map(|pending| pending.to_string()),
            lag.map(|lag| lag.as_secs_f64().to_string()),
            Some(milliseconds(times.total)),
            Some(milliseconds(times.max)),
            Some(times.histogram()),
            Some(seconds(counts.since)),
        ]
    }

    /// Counts messages that are not executed, and says so in the log now and then.
    pub fn dropped(self: &Arc<Self>, count: usize, why: &'static str) {
        let mut inner = self.lock();
        self.counts().dropped += count as u64;
        inner.untold += count;
        if inner.dropping.pass().is_some() {
            inner.tell_drops(why);
        } else if inner.untold == count
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // Perhaps no other ones follow, which would tell of these.
            let handler = self.clone();
            runtime.spawn(async move {
                tokio::time::sleep(crate::flood::INTERVAL).await;
                handler.lock().tell_drops(why);
            });
        }
    }
}
