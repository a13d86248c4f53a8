//! The single way from an SQL function to the control channel and back.
//!
//! A session has one connection to the runtime worker, opened by the first call and again after the worker was
//! restarted. Publishes collect in its buffer and leave together at the end of the statement, or when the buffer is
//! full, or at once where nothing tells the end of the statement.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{on_commit, parameters, server};
use crate::channel::SOCKET_PATH;
use crate::channel::client::{Client, connect};
use crate::channel::frame::Frame;
use crate::channel::message::{JetStreamCall, JetStreamOptions, PROTOCOL, Peer, Reply, Request};
use crate::channel::target::{Key, Link};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;
use crate::pg::{executor, foreign_servers, runtime_worker, wait};
use crate::settings::Settings;

/// Publishes are written when so many bytes have collected.
const FLUSH_SIZE: usize = 32 * 1024;
/// NATS connections that one session may use at a time, as it changes roles and servers.
const MAX_SLOTS: usize = 32;
/// How long the runtime may take to answer beyond the deadline that it was given.
const GRACE: Duration = Duration::from_secs(2);
/// The same for the confirmation of publishes: short, because they had most of the time for themselves.
const FENCE_GRACE: Duration = Duration::from_millis(500);
/// A session looks for news no more often than this.
const NEWS_INTERVAL: Duration = Duration::from_millis(5);
/// Between two attempts to reach a runtime that is starting.
const START_POLL: Duration = Duration::from_millis(5);

/// A NATS connection as this session knows it.
struct Slot {
    number: u16,
    link: Link,
    /// Options that only this transaction sees, and the catalogue's generation when they were last looked at.
    private: Option<(u64, Box<Settings>)>,
}

struct RuntimeSession {
    client: Client<wait::LatchWait>,
    slots: HashMap<Key, Slot>,
    last_slot: u16,
    /// Something was published that a `Fence` has to follow.
    fence: bool,
    /// When news were last looked for.
    looked: Instant,
}

thread_local! {
    static SESSION: RefCell<Option<RuntimeSession>> = const { RefCell::new(None) };
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with this process's session, which is connected if need be.
fn with_session<R>(work: impl FnOnce(&mut RuntimeSession) -> Result<R>) -> Result<R> {
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
        work(session)
    })
}

/// Like [`with_session`], but does nothing if there is none.
fn if_connected(work: impl FnOnce(&mut RuntimeSession)) {
    SESSION.with(|cell| {
        if let Ok(mut session) = cell.try_borrow_mut()
            && let Some(session) = session.as_mut().filter(|session| !session.client.is_broken())
        {
            work(session);
        }
    });
}

/// One message to publish; `subject`, `reply` and `headers` have been checked.
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

/// Publishes through the server that the call means: now, or at the commit.
pub fn publish(message: Outgoing<'_>) -> Result<()> {
    let key = server::choose()?;
    if parameters::publishes_on_commit() {
        with_session(|session| check_size(&message.headers, &message.payload, session.slot(key)?.link))?;
        return on_commit::hold(key, message);
    }
    with_session(|session| {
        let Slot { number, link, .. } = *session.slot(key)?;
        check_size(&message.headers, &message.payload, link)?;
        let wait_ms = if link.up { 0 } else { milliseconds(patience()) };
        session.push(message, number, wait_ms)?;
        session.fence |= !link.up;
        if session.client.unsent() >= FLUSH_SIZE || !executor::called_by_running_query() {
            session.flush()
        } else {
            BUSY.set(true);
            Ok(())
        }
    })
}

/// Gives the runtime messages that it holds until a `Release`; returns when it has them all.
pub fn hand_over(messages: Vec<(Key, Outgoing<'static>)>) -> Result<()> {
    with_session(|session| {
        for (key, _) in &messages {
            session.slot(*key)?;
        }
        session.fence_off()?;
        session.client.push(&Request::Hold, b"")?;
        for (key, message) in messages {
            // One that was opened may have taken the place of another.
            let slot = session.slots.get(&key).map(|slot| slot.number).ok_or_else(|| {
                Error::new(
                    Kind::Unsupported,
                    "cannot publish at the commit by several servers whose options the transaction has changed",
                )
            })?;
            // The runtime takes them in any case once they are released: no error could be raised then.
            session.push(message, slot, 0)?;
            if session.client.unsent() >= FLUSH_SIZE {
                session.flush()?;
            }
        }
        session.call(&Request::Barrier, b"", parameters::connect_timeout())?;
        Ok(())
    })
}

/// Sends a request that has a reply through the server that the call means. `request` gets the slot's number and the
/// time in milliseconds for reaching NATS; `time` is what the runtime may take otherwise.
pub fn ask(
    headers: &Headers,
    payload: &[u8],
    time: Duration,
    request: impl FnOnce(u16, u32) -> Request,
) -> Result<Frame<Reply>> {
    let key = server::choose()?;
    with_session(|session| {
        let Slot { number, link, .. } = *session.slot(key)?;
        check_size(headers, payload, link)?;
        session.fence_off()?;
        let wait = parameters::connect_timeout();
        session.call(&request(number, milliseconds(wait)), payload, wait.max(time))
    })
}

/// Asks JetStream. The value is checked against the server's limit; an object is not, it travels in parts.
pub fn jetstream(domain: Option<String>, call: JetStreamCall, body: &[u8]) -> Result<Frame<Reply>> {
    let headers = match &call {
        JetStreamCall::Publish { headers, .. } => headers.clone(),
        _ => Headers::new(),
    };
    // Some calls take several answers of JetStream; each has the time-out.
    let time = parameters::jetstream_timeout() * 4;
    ask(&headers, body, time, |slot, wait_ms| Request::JetStream {
        slot,
        api: api(domain, wait_ms),
        call,
    })
}

/// Puts or gets an object.
pub fn stream(
    domain: Option<String>,
    call: JetStreamCall,
    upload: Option<&[u8]>,
    download: impl FnMut(Frame<Reply>) -> Result<()>,
) -> Result<Frame<Reply>> {
    let key = server::choose()?;
    with_session(|session| {
        let slot = session.slot(key)?.number;
        session.flush()?;
        let wait = parameters::connect_timeout();
        let idle = wait + parameters::jetstream_timeout() * 4 + GRACE;
        let request = Request::JetStream {
            slot,
            api: api(domain, milliseconds(wait)),
            call,
        };
        session.client.stream(&request, upload, idle, download)
    })
}

fn api(domain: Option<String>, wait_ms: u32) -> JetStreamOptions {
    JetStreamOptions {
        domain,
        timeout_ms: milliseconds(parameters::jetstream_timeout()),
        wait_ms,
    }
}

/// Connects to the runtime, which is started if need be.
pub fn ensure_runtime() -> Result<()> {
    with_session(|_| Ok(()))
}

/// Connects to the runtime if there is one; starts none. `false` if the session has no connection to it then.
pub fn join_runtime_if_running() -> bool {
    let is_connected = SESSION.with(|cell| cell.try_borrow().is_ok_and(|session| session.is_some()));
    // An interrupt is served when the statement goes on.
    (is_connected || connect(Path::new(SOCKET_PATH)).is_ok()) && ensure_runtime().is_ok()
}

/// Sends a request that concerns no slot.
pub fn tell(request: &Request, time: Duration) -> Result<Frame<Reply>> {
    with_session(|session| session.call(request, b"", time))
}

/// Sends without waiting for anything; for the end of a transaction, where no error may be raised.
/// `false` if that cannot have arrived.
pub fn post(request: &Request) -> bool {
    let mut posted = false;
    if_connected(|session| {
        posted = session.client.push(request, b"").is_ok() && session.client.try_flush().is_ok();
    });
    posted
}

/// As [`post`]; and a runtime that runs gets it even if this session does not know it yet: it may have been started, or
/// have taken another's place, in the middle of the transaction, and have looked before that committed.
pub fn announce(request: &Request) {
    if post(request) {
        return;
    }
    // What it is sent it reads, though nobody stays for the answers.
    if let Ok(socket) = connect(Path::new(SOCKET_PATH))
        && let Ok(mut client) = Client::new(socket, wait::LatchWait::new(wait::Event::Reply))
    {
        let sent = client
            .push(&hello(), b"")
            .and_then(|()| client.push(request, b""));
        let _ = sent.and_then(|()| client.try_flush());
    }
}

fn hello() -> Request {
    Request::Hello {
        protocol: PROTOCOL,
        pid: std::process::id(),
        peer: Peer::Session,
    }
}

/// Whether something published waits to be written, or to be confirmed.
pub fn is_busy() -> bool {
    BUSY.get()
}

/// At the end of a run of the executor: nothing that was published waits any longer.
pub fn flush() -> Result<()> {
    BUSY.set(false);
    SESSION.with(|cell| match cell.try_borrow_mut() {
        Ok(mut session) => match session.as_mut() {
            Some(session) if !session.client.is_broken() => session.flush(),
            _ => Ok(()),
        },
        Err(_) => Ok(()),
    })
}

/// After a failure: what was published before it is sent as far as that needs no waiting.
pub fn flush_now() {
    if_connected(|session| {
        let _ = session.client.try_flush();
    });
}

/// After a rollback: no later statement waits for what was published before it, or gets its error.
pub fn give_up() {
    BUSY.set(false);
    if_connected(|session| {
        if std::mem::take(&mut session.fence) {
            // Without an id: the runtime forgets what it refused, and its answer is ignored.
            let _ = session.client.push(&Request::Barrier, b"");
        }
        let _ = session.client.try_flush();
    });
}

/// The transaction has ended, and what it alone could see of options with it.
pub fn leave_private() {
    if_connected(|session| {
        if session.leave(|key, _| key.private_to != 0) {
            let _ = session.client.try_flush();
        }
    });
}

impl RuntimeSession {
    fn connect() -> Result<Self> {
        executor::hook_exit();
        let deadline = Instant::now() + parameters::connect_timeout();
        let mut start = runtime_worker::Starter::default();
        let socket = loop {
            match connect(Path::new(SOCKET_PATH)) {
                Ok(socket) => break socket,
                // Its backlog is full.
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
            fence: false,
            looked: Instant::now(),
        };
        session
            .client
            .call(&hello(), b"", deadline + GRACE, Duration::ZERO)?;
        Ok(session)
    }

    /// Has a message written with what else is.
    fn push(&mut self, message: Outgoing<'_>, slot: u16, wait_ms: u32) -> Result<()> {
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

    /// Takes in news. `true` if the runtime is gone; fails if that concerns what this session has published.
    fn is_over(&mut self) -> Result<bool> {
        if self.client.is_broken() {
            return Ok(true);
        }
        // The look is a system call, which shows where statements are short. What happened since the last one might
        // as well have happened just after this one.
        let now = Instant::now();
        if self.client.unsent() > 0 || now.duration_since(self.looked) < NEWS_INTERVAL {
            return Ok(false);
        }
        self.looked = now;
        let unconfirmed = self.fence || BUSY.get();
        match self.client.read_news() {
            Ok(()) => Ok(false),
            // Between two calls it may come and go.
            Err(error) if error.kind == Kind::RuntimeLost && error.detail.is_none() && !unconfirmed => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The slot for a key; opens the NATS connection the first time.
    fn slot(&mut self, key: Key) -> Result<&Slot> {
        self.take_news();
        let generation = foreign_servers::generation();
        let slot = self.slots.get_mut(&key);
        if let Some((looked, settings)) = slot.and_then(|slot| slot.private.as_mut())
            && *looked != generation
        {
            // The transaction may have changed them once more, or have taken a change back.
            if server::read_settings(key)?.is_some_and(|now| now == **settings) {
                *looked = generation;
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

    fn take_news(&mut self) {
        for (number, link) in self.client.take_news() {
            if let Some(slot) = self.slots.values_mut().find(|slot| slot.number == number) {
                slot.link = link;
            }
        }
    }

    /// Gives up slots, of which the runtime hears with what is sent next. `true` if there were any.
    fn leave(&mut self, is_over: impl Fn(&Key, &Slot) -> bool) -> bool {
        let before = self.slots.len();
        for (_, slot) in self.slots.extract_if(|key, slot| is_over(key, slot)) {
            let _ = self.client.push(&Request::Leave { slot: slot.number }, b"");
        }
        self.slots.len() < before
    }

    /// Gives up slots that nobody can mean any more: of dropped user mappings, and of a transaction that has ended.
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
            // The runtime has the slot all the same.
            let left = self.client.push(&Request::Leave { slot: number }, b"");
            let _ = left.and_then(|()| self.client.try_flush());
        }
        link.map(|link| Slot {
            number,
            link,
            private,
        })
    }

    fn call(&mut self, request: &Request, body: &[u8], time: Duration) -> Result<Frame<Reply>> {
        self.client.call(
            request,
            body,
            Instant::now() + time + GRACE,
            parameters::busy_poll(),
        )
    }

    /// Writes what was published, and waits until it was taken if the link was down.
    fn flush(&mut self) -> Result<()> {
        if self.fence {
            return self.fence_off();
        }
        let outcome = self.client.flush(Instant::now() + parameters::connect_timeout());
        outcome.map_err(|error| self.explain(error))
    }

    fn fence_off(&mut self) -> Result<()> {
        if std::mem::take(&mut self.fence) {
            let deadline = Instant::now() + parameters::connect_timeout() + FENCE_GRACE;
            let fence = self.client.call(&Request::Barrier, b"", deadline, Duration::ZERO);
            fence.map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// A runtime that takes no more while NATS is away has a full buffer.
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

/// How long the runtime lets messages wait for room: less than the session waits for the answer.
fn patience() -> Duration {
    parameters::connect_timeout() * 9 / 10
}

fn check_size(headers: &Headers, payload: &[u8], link: Link) -> Result<()> {
    if !headers.is_empty() && !link.headers {
        return Err(Error::new(
            Kind::Unsupported,
            "the NATS server does not support message headers",
        ));
    }
    let size = (crate::nats::headers::wire_len(headers) + payload.len()) as u64;
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

/// For a reply of another type than the request asks for.
pub fn unexpected_reply() -> Error {
    Error::new(
        Kind::Protocol,
        "unexpected answer of the litmus_pgnats runtime worker",
    )
}

/// A time as the channel carries it.
pub fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
