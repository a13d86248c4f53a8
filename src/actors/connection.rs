//! One NATS connection: its client, its state machine, and the messages held while NATS is away.
//!
//! ```text
//!            connected                    all held messages handed over
//!   Down ─────────────────> Handover ───────────────────────────────────> Up
//!    ^                         │ lost                                      │ lost        Up ──reload──> Handover
//!    └─────────────────────────┴───────────────────────────────────────────┘
//! ```
//!
//! Runs in the actor thread. Callers learn the state from a watch channel ([`Status`]) and wait there; the actor
//! itself never waits.

mod events;
mod statistics;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use tokio::sync::{RwLock, watch};
use tokio::time::timeout;

use self::events::Reporter;
pub use self::statistics::{Describe, Reset};
use super::backoff::backoff;
use super::connect::connect;
use super::delivery::{FLUSH_LIMIT, retire, send_all};
use super::requester::Requester;
use super::status::{Status, not_connected};
use super::steadiness::Steadiness;
use super::system::Vital;
use super::tally::Tally;
use crate::channel::message::Link;
use crate::error::{Error, Kind, Result};
use crate::flood::Flood;
use crate::settings::Settings;
use crate::settings::options::Host;

/// Longest time to establish a connection, names resolved and TLS included.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait between two attempts while NATS is away.
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// The same when it is there and refuses the credential, which each time is a line in its log.
const MAX_BACKOFF_REFUSED: Duration = Duration::from_secs(5);

/// Between two attempts to leave a server that is about to stop.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);

/// Publishes in order; answers with what could not be taken because the buffer is full.
#[derive(Message)]
#[rtype(result = "Vec<OutboundMessage>")]
pub struct Publish(pub Vec<OutboundMessage>);

/// Takes over new settings; with `force` on a new connection in any case.
#[derive(Message)]
#[rtype(result = "Result<()>")]
pub struct Reload {
    pub settings: Settings,
    pub force: bool,
    pub limit: Duration,
}

/// Whether the connection has these settings.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct Has(pub Settings);

/// Takes over settings without a reload, if there never was a connection with the present ones.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Correct(pub Settings);

/// Somebody waits for the connection: try now instead of after the backoff.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Nudge;

/// Writes out what is held, as far as `0` allows, and stops.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finish(pub Duration);

enum State {
    Down,
    /// A new client takes the held messages; later ones queue up behind them.
    Handover(Requester),
    Up(Requester),
}

impl State {
    fn client(&self) -> Option<&Requester> {
        match self {
            State::Up(client) | State::Handover(client) => Some(client),
            State::Down => None,
        }
    }
}

/// The outcome of an attempt to connect.
struct Dialled {
    settings: Settings,
    generation: u64,
    /// With the host that it is connected to.
    client: Result<(Requester, Host)>,
}

/// The actor.
pub struct Connection {
    /// What the connection is called in NATS's monitoring.
    name: String,
    settings: Settings,
    state: State,
    held: VecDeque<OutboundMessage>,
    status: watch::Sender<Status>,
    /// Attempts so far; each makes a client of a generation of its own.
    dials: u64,
    /// The attempt of the latest reload that has taken effect; what began earlier is overtaken.
    reloaded: u64,
    /// The attempt of the latest reload that has failed.
    refused_reload: u64,
    /// The latest generation that was reported lost, perhaps before it was installed.
    gone: u64,
    /// The attempt that is under way.
    connecting: Option<SpawnHandle>,
    /// Locked for reading by whoever hands messages to the current client, for writing by whoever ends it.
    senders: Arc<RwLock<()>>,
    /// Replaced clients that have not yet delivered what they hold; until then nothing is handed to the new one.
    retiring: usize,
    /// Held messages are being handed over.
    handing: bool,
    retry: Option<SpawnHandle>,
    /// Servers that the NATS cluster has told of, and the settings it was reached with: they are another cluster's, and get
    /// no other credential, when these change.
    discovered: Option<(Settings, Vec<Host>)>,
    steadiness: Steadiness,
    tally: Tally,
    /// The user may publish to an inbox of his own, as far as is known.
    may_measure: bool,
    /// By what the server has said.
    server_errors: HashMap<String, Flood>,
    slow_consumer: Flood,
    _vital: Vital,
}

impl Connection {
    /// Starts to connect; the status tells how it goes.
    pub fn start(
        name: String,
        settings: Settings,
        vital: Vital,
    ) -> (Addr<Connection>, watch::Receiver<Status>) {
        let (status, watched) = watch::channel(Status {
            domain: settings.domain.clone(),
            ..Status::default()
        });
        let connection = Connection {
            name,
            settings,
            state: State::Down,
            held: VecDeque::new(),
            status,
            dials: 0,
            gone: 0,
            reloaded: 0,
            refused_reload: 0,
            connecting: None,
            senders: Arc::default(),
            retiring: 0,
            handing: false,
            retry: None,
            discovered: None,
            steadiness: Steadiness::default(),
            tally: Tally::new(),
            may_measure: true,
            server_errors: HashMap::new(),
            slow_consumer: Flood::default(),
            _vital: vital,
        };
        (Actor::start(connection), watched)
    }

    fn generation(&self) -> u64 {
        self.status.borrow().generation
    }

    fn hosts(&self, settings: &Settings) -> Vec<Host> {
        let mut hosts = settings.hosts.clone();
        if let Some((with, discovered)) = &self.discovered
            && !with.needs_reconnect(settings)
        {
            let others = discovered.iter().filter(|host| !settings.hosts.contains(host));
            hosts.extend(others.cloned());
        }
        hosts
    }

    /// Makes a new client, of a generation of its own, for these settings.
    fn dial(
        &mut self,
        settings: Settings,
        limit: Duration,
        ctx: &Context<Self>,
    ) -> impl Future<Output = Dialled> + use<> {
        self.dials += 1;
        let generation = self.dials;
        let observer = Reporter {
            connection: ctx.address(),
            generation,
        };
        let (name, hosts) = (self.name.clone(), self.hosts(&settings));
        async move {
            let client = match connect(&settings, &hosts, &name, limit, observer).await {
                Ok((client, host)) => {
                    let started = Requester::start(client).await.map_err(|_| not_connected());
                    started.map(|client| (client, host))
                }
                Err(error) => Err(error),
            };
            Dialled {
                settings,
                generation,
                client,
            }
        }
    }

    fn attempt(&mut self, ctx: &mut Context<Self>) {
        if let Some(retry) = self.retry.take() {
            ctx.cancel_future(retry);
        }
        if self.connecting.is_some() || !matches!(self.state, State::Down) {
            return;
        }
        let dial = self.dial(self.settings.clone(), CONNECT_LIMIT, ctx);
        let attempt = dial.into_actor(self).map(
            |Dialled {
                 settings,
                 generation,
                 client,
             },
             actor,
             ctx| {
                actor.connecting = None;
                // A reload may have overtaken this attempt.
                match client {
                    Ok(client) if matches!(actor.state, State::Down) && actor.settings == settings => {
                        actor.install(client, generation, ctx);
                    }
                    Err(error) if matches!(actor.state, State::Down) => actor.failed(error, ctx),
                    _ => actor.attempt(ctx),
                }
            },
        );
        self.connecting = Some(ctx.spawn(attempt));
    }

    /// The same with settings that are new: an attempt with the old ones is given up, which may take its time to fail.
    fn attempt_anew(&mut self, ctx: &mut Context<Self>) {
        if let Some(attempt) = self.connecting.take() {
            ctx.cancel_future(attempt);
        }
        self.attempt(ctx);
    }

    fn failed(&mut self, error: Error, ctx: &mut Context<Self>) {
        if self.status.borrow().error.as_ref() != Some(&error) {
            log::warn!("{}: {error}", self.name);
        }
        self.tally.failed(&error.to_string());
        let longest = match error.kind {
            Kind::AuthenticationRefused => MAX_BACKOFF_REFUSED,
            _ => MAX_BACKOFF,
        };
        self.status.send_modify(|status| {
            status.failures += 1;
            status.error = Some(error);
        });
        let failures = u32::try_from(self.status.borrow().failures.min(16)).unwrap_or(16);
        let backoff = backoff(Duration::from_millis(10), longest, failures);
        self.attempt_after(backoff, ctx);
    }

    /// Puts a connected client in the place of what was there; the old one first delivers what it has taken.
    fn install(&mut self, (client, host): (Requester, Host), generation: u64, ctx: &mut Context<Self>) {
        let info = client.client().server_info();
        // Of this user, which may be another than before.
        self.may_measure = true;
        let urls = info.connect_urls.iter().filter_map(|url| parse_url(url));
        self.discovered = Some((self.settings.clone(), urls.collect()));
        let level = if self.steadiness.is_unsteady() {
            log::Level::Debug
        } else {
            log::Level::Info
        };
        log::log!(
            level,
            "{}: connected to NATS server {} {host}, version {}",
            self.name,
            info.server_name,
            info.version
        );
        self.steadiness.connected();
        self.tally
            .connected(host.to_string(), client.client().statistics());
        self.status.send_modify(|status| {
            status.generation = generation;
            status.client = None;
            status.refused.clear();
            // Already now: whoever asked for a reload goes on before the handover is done.
            status.domain = self.settings.domain.clone();
        });
        let old = std::mem::replace(&mut self.state, State::Handover(client));
        let senders = std::mem::take(&mut self.senders);
        self.retiring += 1;
        let retirement = async move {
            let old = old.client()?;
            let _ = timeout(FLUSH_LIMIT, retire(old, &senders)).await;
            Some(old.client().statistics())
        };
        ctx.spawn(retirement.into_actor(self).map(|retired, actor, ctx| {
            if let Some(retired) = retired {
                actor.tally.retired(&retired);
            }
            actor.retiring = actor.retiring.saturating_sub(1);
            actor.hand_over(ctx);
        }));
        if self.gone >= generation {
            self.lost(ctx);
        }
    }

    /// Hands the held messages to the new client; when none is left, the connection is up.
    fn hand_over(&mut self, ctx: &mut Context<Self>) {
        let State::Handover(client) = &self.state else {
            return;
        };
        if self.handing || self.retiring > 0 {
            return;
        }
        let client = client.clone();
        if !self.held.is_empty() {
            self.handing = true;
            let (senders, batch) = (self.senders.clone(), self.held.drain(..).collect());
            let handing = async move {
                let _sender = senders.read().await;
                send_all(client.client(), batch).await
            };
            ctx.spawn(handing.into_actor(self).map(|rest, actor, ctx| {
                actor.handing = false;
                rest.into_iter()
                    .rev()
                    .for_each(|message| actor.held.push_front(message));
                actor.hand_over(ctx);
            }));
            return;
        }
        let info = client.client().server_info();
        self.state = State::Up(client.clone());
        self.status.send_modify(|status| {
            status.client = Some(client);
            status.link = Link {
                up: true,
                max_payload: info.max_payload as u64,
                headers: info.headers,
            };
            status.was_up = true;
            status.failures = 0;
            status.error = None;
        });
        self.measure_soon(ctx);
    }

    /// Leaves a server before it stops. It takes no new connections, so one that is made is to another server; until
    /// there is one, and as long as it serves, the old connection is kept.
    fn leave(&mut self, generation: u64, ctx: &mut Context<Self>) {
        if generation != self.generation() || matches!(self.state, State::Down) {
            return;
        }
        if matches!(self.state, State::Handover(_)) {
            return self.leave_later(generation, ctx);
        }
        let dial = self.dial(self.settings.clone(), CONNECT_LIMIT, ctx);
        ctx.spawn(
            dial.into_actor(self)
                .map(move |dialled, actor, ctx| match dialled.client {
                    Ok(client) if generation == actor.generation() && actor.settings == dialled.settings => {
                        actor.install(client, dialled.generation, ctx);
                    }
                    _ => actor.leave_later(generation, ctx),
                }),
        );
    }

    fn leave_later(&self, generation: u64, ctx: &mut Context<Self>) {
        ctx.run_later(LEAVE_PAUSE, move |actor, ctx| actor.leave(generation, ctx));
    }

    fn lost(&mut self, ctx: &mut Context<Self>) {
        if let Some(client) = self.state.client() {
            self.tally.retired(&client.client().statistics());
        }
        self.state = State::Down;
        self.tally.lost();
        self.tally.failed("connection to the NATS server lost");
        let pause = self.steadiness.lost();
        if let Some(suppressed) = self.steadiness.line() {
            log::warn!("{}: connection to the NATS server lost{suppressed}", self.name);
        }
        self.status.send_modify(|status| {
            status.link.up = false;
            status.client = None;
        });
        if pause.is_zero() {
            self.attempt(ctx);
        } else {
            self.attempt_after(pause, ctx);
        }
    }

    fn attempt_after(&mut self, pause: Duration, ctx: &mut Context<Self>) {
        self.retry = Some(ctx.run_later(pause, |actor, ctx| {
            actor.retry = None;
            actor.attempt(ctx);
        }));
    }
}

impl Actor for Connection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.attempt(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        // The status outlives the actor wherever it is watched; the connection to NATS must not.
        self.status.send_modify(|status| status.client = None);
    }
}

impl Handler<Publish> for Connection {
    type Result = ResponseFuture<Vec<OutboundMessage>>;

    fn handle(&mut self, Publish(mut batch): Publish, _: &mut Self::Context) -> Self::Result {
        if let State::Up(client) = &self.state
            && let Ok(sender) = self.senders.clone().try_read_owned()
        {
            let client = client.clone();
            return Box::pin(async move {
                let _sender = sender;
                send_all(client.client(), batch).await
            });
        }
        let room = self
            .settings
            .capacity
            .saturating_sub(self.held.len())
            .min(batch.len());
        let rest = batch.split_off(room);
        // Copied, because a payload is a slice of all that was read from the socket with it.
        self.held.extend(batch.into_iter().map(|m| OutboundMessage {
            payload: Bytes::copy_from_slice(&m.payload),
            ..m
        }));
        Box::pin(std::future::ready(rest))
    }
}

impl Handler<Reload> for Connection {
    type Result = ResponseActFuture<Self, Result<()>>;

    fn handle(
        &mut self,
        Reload {
            settings,
            force,
            limit,
        }: Reload,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        if !force && !self.settings.needs_reconnect(&settings) {
            self.settings = settings;
            self.dials += 1;
            self.reloaded = self.dials;
            // Callers that wait for room may find it now.
            self.status
                .send_modify(|status| status.domain = self.settings.domain.clone());
            return Box::pin(fut::ready(Ok(())));
        }
        // The old connection serves on until the new one stands; if that fails, it stays.
        let dial = self.dial(settings, limit.min(CONNECT_LIMIT), ctx);
        Box::pin(dial.into_actor(self).map(
            |Dialled {
                 settings,
                 generation,
                 client,
             },
             actor,
             ctx| match client {
                Ok(_) if generation < actor.reloaded => Ok(()),
                Ok(client) => {
                    actor.reloaded = generation;
                    actor.settings = settings;
                    actor.install(client, generation, ctx);
                    Ok(())
                }
                Err(error) => {
                    // After a commit nobody waits for the outcome.
                    log::warn!("{}: could not connect with the new options: {error}", actor.name);
                    let is_latest = generation > actor.reloaded.max(actor.refused_reload);
                    if is_latest {
                        actor.refused_reload = generation;
                    }
                    if is_latest && matches!(actor.state, State::Down) && actor.settings != settings {
                        actor.reloaded = generation;
                        actor.settings = settings;
                        actor.attempt_anew(ctx);
                    }
                    Err(error)
                }
            },
        ))
    }
}

impl Handler<Correct> for Connection {
    type Result = ();

    fn handle(&mut self, Correct(settings): Correct, ctx: &mut Self::Context) {
        if self.settings != settings && !self.status.borrow().was_up {
            self.settings = settings;
            self.status
                .send_modify(|status| status.domain = self.settings.domain.clone());
            self.attempt_anew(ctx);
        }
    }
}

impl Handler<Has> for Connection {
    type Result = bool;

    fn handle(&mut self, Has(settings): Has, _: &mut Self::Context) -> Self::Result {
        self.settings == settings
    }
}

impl Handler<Nudge> for Connection {
    type Result = ();

    fn handle(&mut self, _: Nudge, ctx: &mut Self::Context) {
        if !self.steadiness.is_unsteady() {
            self.attempt(ctx);
        }
    }
}

impl Handler<Finish> for Connection {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, Finish(limit): Finish, _: &mut Self::Context) -> Self::Result {
        let client = self.state.client().cloned();
        let senders = self.senders.clone();
        let flush = async move {
            if let Some(client) = client {
                let _ = timeout(limit, retire(&client, &senders)).await;
            }
        };
        Box::pin(flush.into_actor(self).map(|(), actor, ctx| {
            if !actor.held.is_empty() {
                log::warn!(
                    "{}: {} messages for an unreachable NATS server are given up",
                    actor.name,
                    actor.held.len()
                );
            }
            // Whoever still watches the status must not keep the client alive.
            actor.status.send_modify(|status| {
                status.link.up = false;
                status.client = None;
            });
            ctx.stop();
        }))
    }
}

fn parse_url(url: &str) -> Option<Host> {
    let bare = url.rsplit_once("://").map_or(url, |(_, rest)| rest);
    crate::settings::options::parse_hosts(bare, crate::settings::options::DEFAULT_PORT)
        .ok()?
        .into_iter()
        .next()
}
