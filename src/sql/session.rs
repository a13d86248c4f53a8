//! The session of a backend with the runtime worker, and the NATS connections that it uses there. Runs in backends and
//! executors, on the main thread.
//!
//! A process has one session, opened by the first call and again after the runtime worker was restarted. Publishes
//! collect in its buffer and leave together at the end of the statement, or when the buffer is full, or at once where
//! nothing tells the end of the statement.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{parameters, server};
use crate::channel::SOCKET_PATH;
use crate::channel::client::{Client, connect};
use crate::channel::frame::Frame;
use crate::channel::message::{PROTOCOL, Peer, Reply, Request};
use crate::channel::target::{Key, Link};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::{self, Headers};
use crate::pg::report::Level;
use crate::pg::{databases, executor, foreign_servers, report, runtime_worker, wait};
use crate::settings::Settings;

/// Most NATS connections that one session may use at a time; it uses several if it changes roles or servers.
const MAX_SLOTS: usize = 32;
/// A session waits for the answer this much longer than the time that it gave the runtime worker.
pub const GRACE: Duration = Duration::from_secs(2);
/// A session waits for its publishes to be confirmed this much longer than the deadline; short, because the runtime
/// worker lets publishes wait for less than the deadline ([`patience`]).
const BARRIER_GRACE: Duration = Duration::from_millis(500);
/// Shortest time between two reads of news.
const NEWS_INTERVAL: Duration = Duration::from_millis(5);
/// Pause between two attempts to reach a runtime worker that is starting.
const START_POLL: Duration = Duration::from_millis(5);

/// A message to publish; `subject`, `reply` and `headers` have been checked.
pub struct Outgoing<'a> {
    pub subject: String,
    pub reply: Option<String>,
    pub headers: Headers,
    pub payload: Cow<'a, [u8]>,
}

impl Outgoing<'_> {
    pub fn into_owned(self) -> Outgoing<'static> {
        Outgoing {
            payload: Cow::Owned(self.payload.into_owned()),
            ..self
        }
    }
}

/// A NATS connection as this session knows it.
pub struct Slot {
    pub number: u16,
    pub link: Link,
    /// For options that only this transaction sees: the catalogue's generation when they were last read, and the
    /// settings.
    private: Option<(u64, Box<Settings>)>,
}

/// The process's session with the runtime worker.
pub struct RuntimeSession {
    pub client: Client<wait::LatchWait>,
    slots: HashMap<Key, Slot>,
    last_slot: u16,
    /// Whether something was published that a `Barrier` has to follow.
    pub needs_barrier: bool,
    /// When news were last read.
    news_read: Instant,
}

thread_local! {
    static SESSION: RefCell<Option<RuntimeSession>> = const { RefCell::new(None) };
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Whether published messages wait to be written or to be confirmed.
pub fn is_busy() -> bool {
    BUSY.get()
}

/// Notes whether published messages wait.
pub fn set_busy(is_busy: bool) {
    BUSY.set(is_busy);
}

/// Whether the process has a session.
pub fn is_connected() -> bool {
    SESSION.with(|cell| cell.try_borrow().is_ok_and(|session| session.is_some()))
}

/// Runs `work` with this process's session, which is connected if need be. Fails if the runtime worker cannot be
/// reached.
pub fn with_session<R>(work: impl FnOnce(&mut RuntimeSession) -> Result<R>) -> Result<R> {
    SESSION.with(|cell| {
        let mut session = cell
            .try_borrow_mut()
            .map_err(|_| Error::new(Kind::Protocol, "the session is busy"))?;
        if let Some(open) = &mut *session
            && open.is_over()?
        {
            *session = None;
        }
        let session = match &mut *session {
            Some(session) => session,
            empty => empty.insert(RuntimeSession::connect()?),
        };
        let outcome = work(session);
        session.warn_of_late_refreshes();
        outcome
    })
}

/// Like [`with_session`], but does nothing if the process has no session, or one that is broken.
pub fn if_connected(work: impl FnOnce(&mut RuntimeSession)) {
    SESSION.with(|cell| {
        if let Ok(mut session) = cell.try_borrow_mut()
            && let Some(session) = session.as_mut().filter(|session| !session.client.is_broken())
        {
            work(session);
        }
    });
}

/// The first frame of a session.
pub fn hello() -> Request {
    Request::Hello {
        protocol: PROTOCOL,
        pid: std::process::id(),
        peer: Peer::Session,
    }
}

impl RuntimeSession {
    fn connect() -> Result<Self> {
        executor::hook_exit();
        let deadline = Instant::now() + parameters::connect_timeout();
        let mut start = runtime_worker::Starter::default();
        let socket = loop {
            match connect(Path::new(SOCKET_PATH)) {
                Ok(socket) => break socket,
                // The backlog of the runtime worker's socket is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => start.ensure()?,
            }
            if Instant::now() >= deadline {
                return Err(Error::new(
                    Kind::RuntimeUnavailable,
                    "the litmus_pgnats runtime worker is not running",
                ));
            }
            wait::sleep(START_POLL)?;
        };
        let client = Client::new(socket, wait::LatchWait::new(wait::Event::Reply)).map_err(|error| {
            Error::new(
                Kind::RuntimeUnavailable,
                format!("could not use the control channel: {error}"),
            )
        })?;
        let mut session = RuntimeSession {
            client,
            slots: HashMap::new(),
            last_slot: 0,
            needs_barrier: false,
            news_read: Instant::now(),
        };
        session
            .client
            .call(&hello(), b"", deadline + GRACE, Duration::ZERO)?;
        Ok(session)
    }

    /// Adds a message to the frames that will be written.
    pub fn push(&mut self, message: Outgoing<'_>, slot: u16, wait_ms: u32) -> Result<()> {
        let Outgoing {
            subject,
            reply,
            headers,
            payload,
        } = message;
        let request = Request::Publish {
            slot,
            subject,
            reply,
            headers,
            wait_ms,
        };
        self.client.push(&request, &payload)
    }

    /// Reads news. `true` if the runtime worker is gone; fails if messages that this session has published may be lost
    /// with it.
    fn is_over(&mut self) -> Result<bool> {
        if self.client.is_broken() {
            return Ok(true);
        }
        // Reading is a system call, whose cost shows where statements are short. News since the last read might as well
        // have come just after a read now.
        let now = Instant::now();
        if self.client.unsent() > 0 || now.duration_since(self.news_read) < NEWS_INTERVAL {
            return Ok(false);
        }
        self.news_read = now;
        let unconfirmed = self.needs_barrier || BUSY.get();
        match self.client.read_news() {
            Ok(()) => Ok(false),
            // Between two calls, the runtime worker may end and another one start.
            Err(error) if error.kind == Kind::RuntimeLost && error.detail.is_none() && !unconfirmed => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The slot for a key; opens the NATS connection the first time.
    pub fn slot(&mut self, key: Key) -> Result<&Slot> {
        self.take_news();
        let generation = foreign_servers::generation();
        let slot = self.slots.get_mut(&key);
        if let Some((read_at, settings)) = slot.and_then(|slot| slot.private.as_mut())
            && *read_at != generation
        {
            // The transaction may have changed the options once more, or rolled a change back.
            if server::read_settings(key)?.is_some_and(|now| now == **settings) {
                *read_at = generation;
            } else {
                self.leave(|other, _| *other == key);
            }
        }
        if !self.slots.contains_key(&key) {
            let slot = self.open(key)?;
            self.slots.insert(key, slot);
        }
        self.slots
            .get(&key)
            .ok_or_else(|| Error::new(Kind::Protocol, "unknown slot"))
    }

    /// The number of the slot for a key, if the slot is open.
    pub fn number(&self, key: &Key) -> Option<u16> {
        self.slots.get(key).map(|slot| slot.number)
    }

    /// Warns if handlers that this session has changed have not taken effect, although its last request waited for
    /// that.
    fn warn_of_late_refreshes(&mut self) {
        let own = databases::database_oid();
        // Nothing is said of another database, which this session may have dropped, for example.
        if self.client.take_late_refreshes().contains(&own) {
            let text = "changed subscriptions and responders have not taken effect yet";
            let hint =
                "The views litmus_pgnats.handlers and litmus_pgnats.executors show what they wait for.";
            report::message(Level::Warning, text, "", hint);
        }
    }

    fn take_news(&mut self) {
        for (number, link) in self.client.take_news() {
            if let Some(slot) = self.slots.values_mut().find(|slot| slot.number == number) {
                slot.link = link;
            }
        }
    }

    /// Gives up the slots for which `is_over` is true; the runtime worker hears of it with the next frames that are
    /// written. `true` if there were any.
    pub fn leave(&mut self, is_over: impl Fn(&Key, &Slot) -> bool) -> bool {
        let before = self.slots.len();
        for (_, slot) in self.slots.extract_if(|key, slot| is_over(key, slot)) {
            // Fails only if the connection is broken, and with it the runtime worker has given up all slots.
            let _ = self.client.push(&Request::CloseSlot { slot: slot.number }, b"");
        }
        self.slots.len() < before
    }

    /// Gives up the slots of dropped user mappings and all private slots, but for that of `key`.
    fn prune(&mut self, key: Key) {
        self.leave(|other, _| {
            let is_dropped =
                || other.mapping != 0 && foreign_servers::mapping_options(other.mapping).is_none();
            *other != key && (other.private_to != 0 || is_dropped())
        });
    }

    /// A number that no slot has.
    fn next_slot(&mut self) -> u16 {
        loop {
            self.last_slot = self.last_slot.wrapping_add(1);
            if self.slots.values().all(|slot| slot.number != self.last_slot) {
                return self.last_slot;
            }
        }
    }

    fn open(&mut self, key: Key) -> Result<Slot> {
        self.prune(key);
        if self.slots.len() >= MAX_SLOTS {
            return Err(Error::new(
                Kind::TooManyConnections,
                "too many NATS connections in one session",
            )
            .detail(format!("The limit is {MAX_SLOTS}.")));
        }
        let target = server::target(key)?;
        let gone = || Error::new(Kind::NoServer, "the foreign server was dropped");
        let generation = foreign_servers::generation();
        let settings = Box::new(server::read_settings(key)?.ok_or_else(gone)?);
        let private = (key.private_to != 0).then(|| (generation, settings.clone()));
        let number = self.next_slot();
        let wait = parameters::connect_timeout();
        let request = Request::Use {
            slot: number,
            target,
            settings,
            wait_ms: milliseconds(wait),
        };
        let link = match self.call(&request, b"", wait).map(|frame| frame.message) {
            Ok(Reply::Used(link)) => Ok(link),
            Ok(_) => Err(unexpected_reply()),
            Err(error) => Err(error),
        };
        if link.is_err() && !self.client.is_broken() {
            // The runtime worker may have the slot all the same. If the connection breaks now, the slot ends with it.
            let left = self.client.push(&Request::CloseSlot { slot: number }, b"");
            let _ = left.and_then(|()| self.client.try_flush());
        }
        link.map(|link| Slot {
            number,
            link,
            private,
        })
    }

    /// Sends a request and returns its reply; fails if none comes within `time` and [`GRACE`].
    pub fn call(&mut self, request: &Request, body: &[u8], time: Duration) -> Result<Frame<Reply>> {
        self.client.call(
            request,
            body,
            Instant::now() + time + GRACE,
            parameters::busy_poll(),
        )
    }

    /// Writes what was published; if a link was down, waits until the runtime worker has taken it.
    pub fn flush(&mut self) -> Result<()> {
        if self.needs_barrier {
            return self.barrier();
        }
        let outcome = self.client.flush(Instant::now() + parameters::connect_timeout());
        outcome.map_err(|error| self.explain(error))
    }

    /// If a link was down, waits until the runtime worker has taken what was published; fails if it could not.
    pub fn barrier(&mut self) -> Result<()> {
        if std::mem::take(&mut self.needs_barrier) {
            let deadline = Instant::now() + parameters::connect_timeout() + BARRIER_GRACE;
            let barrier = self.client.call(&Request::Barrier, b"", deadline, Duration::ZERO);
            barrier.map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// If the runtime worker takes no more messages while NATS is away, its buffer is full, and the error says so.
    fn explain(&mut self, error: Error) -> Error {
        self.take_news();
        if error.kind != Kind::RuntimeUnavailable || self.slots.values().all(|slot| slot.link.up) {
            return error;
        }
        Error::new(
            Kind::BufferFull,
            "the NATS server is unreachable and the buffer for messages is full",
        )
        .detail("A part of what the statement published may have been buffered.")
    }
}

/// How long the runtime worker lets messages wait for room in its buffer: less than the session waits for the answer.
pub fn patience() -> Duration {
    parameters::connect_timeout() * 9 / 10
}

/// Fails if the NATS server would not accept the headers, or headers and payload of this size.
pub fn check_size(headers: &Headers, payload: &[u8], link: Link) -> Result<()> {
    if !headers.is_empty() && !link.headers {
        return Err(Error::new(
            Kind::Unsupported,
            "the NATS server does not support message headers",
        ));
    }
    let size = (headers::wire_len(headers) + payload.len()) as u64;
    if size > link.max_payload {
        return Err(Error::new(
            Kind::PayloadTooLarge,
            "message is larger than the NATS server allows",
        )
        .detail(format!(
            "Headers and payload have {size} bytes, max_payload of the server is {}.",
            link.max_payload
        )));
    }
    Ok(())
}

/// The error for a reply of another type than the request asks for.
pub fn unexpected_reply() -> Error {
    Error::new(
        Kind::Protocol,
        "unexpected answer of the litmus_pgnats runtime worker",
    )
}

/// A time in milliseconds, as the control channel carries it.
pub fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
