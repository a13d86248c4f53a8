//! One NATS connection: its client, its state machine, and the messages held while NATS is away.
//!
//! ```text
//!            connected                    all held messages handed over
//!   Down ─────────────────> Handover ───────────────────────────────────> Up
//!    ^                         │ lost                                      │ lost        Up ──reload──> Handover
//!    └─────────────────────────┴───────────────────────────────────────────┘
//! ```
//!
//! Runs in the actor thread. Callers learn the state from a watch channel ([`ConnectionStatus`]) and wait there; the actor
//! itself never waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use tokio::sync::{RwLock, watch};
use tokio::time::timeout;

use super::connect::connect;
use super::delivery::{FLUSH_LIMIT, retire, send_all};
use super::events::Reporter;
use super::interface::{
    CONNECT_LIMIT, ConnectNow, FinishConnection, Publish, ReloadConnection, ReplaceSettings, SettingsMatch,
};
use super::reconnect_policy::ReconnectPolicy;
use super::requester::Requester;
use super::status::{ConnectionStatus, not_connected};
use crate::actors::base::backoff::backoff;
use crate::actors::base::liveness::Vital;
use crate::actors::metrics::connection_stats::ConnectionStats;
use crate::channel::target::Link;
use crate::error::{Error, Kind, Result};
use crate::flood::Flood;
use crate::settings::Settings;
use crate::settings::options::Host;

/// Longest wait between two attempts while NATS is away.
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// The same when it is there and refuses the credential, which each time is a line in its log.
const MAX_BACKOFF_REFUSED: Duration = Duration::from_secs(5);

/// Between two attempts to leave a server that is about to stop.
const LEAVE_PAUSE: Duration = Duration::from_secs(1);

pub(super) enum ConnectionState {
    Down,
    /// A new client takes the held messages; later ones queue up behind them.
    Handover(Requester),
    Up(Requester),
}

impl ConnectionState {
    fn client(&self) -> Option<&Requester> {
        match self {
            ConnectionState::Up(client) | ConnectionState::Handover(client) => Some(client),
            ConnectionState::Down => None,
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
    pub(super) name: String,
    pub(super) settings: Settings,
    pub(super) state: ConnectionState,
    pub(super) held: VecDeque<OutboundMessage>,
    pub(super) status: watch::Sender<ConnectionStatus>,
    /// Attempts so far; each makes a client of a generation of its own.
    pub(super) dials: u64,
    /// The attempt of the latest reload that has taken effect; what began earlier is overtaken.
    pub(super) reloaded: u64,
    /// The attempt of the latest reload that has failed.
    pub(super) refused_reload: u64,
    /// The latest generation that was reported lost, perhaps before it was installed.
    pub(super) gone: u64,
    /// The attempt that is under way.
    pub(super) connecting: Option<SpawnHandle>,
    /// Locked for reading by whoever hands messages to the current client, for writing by whoever ends it.
    pub(super) senders: Arc<RwLock<()>>,
    /// Replaced clients that have not yet delivered what they hold; until then nothing is handed to the new one.
    pub(super) retiring: usize,
    /// Held messages are being handed over.
    pub(super) handing: bool,
    pub(super) retry: Option<SpawnHandle>,
    /// Servers that the NATS cluster has told of, and the settings it was reached with: they are another cluster's, and get
    /// no other credential, when these change.
    pub(super) discovered: Option<(Settings, Vec<Host>)>,
    pub(super) reconnect: ReconnectPolicy,
    pub(super) stats: ConnectionStats,
    /// The user may publish to an inbox of his own, as far as is known.
    pub(super) may_measure: bool,
    /// By what the server has said.
    pub(super) server_errors: HashMap<String, Flood>,
    pub(super) slow_consumer: Flood,
    pub(super) _vital: Vital,
}

impl Connection {
    /// Starts to connect; the status tells how it goes.
    pub fn start(
        name: String,
        settings: Settings,
        vital: Vital,
    ) -> (Addr<Connection>, watch::Receiver<ConnectionStatus>) {
        let (status, watched) = watch::channel(ConnectionStatus {
            domain: settings.domain.clone(),
            ..ConnectionStatus::default()
        });
        let connection = Connection {
            name,
            settings,
            state: ConnectionState::Down,
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
            reconnect: ReconnectPolicy::default(),
            stats: ConnectionStats::new(),
            may_measure: true,
            server_errors: HashMap::new(),
            slow_consumer: Flood::default(),
            _vital: vital,
        };
        (Actor::start(connection), watched)
    }

    pub(super) fn generation(&self) -> u64 {
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
        if self.connecting.is_some() || !matches!(self.state, ConnectionState::Down) {
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
                    Ok(client)
                        if matches!(actor.state, ConnectionState::Down) && actor.settings == settings =>
                    {
                        actor.install(client, generation, ctx);
                    }
                    Err(error) if matches!(actor.state, ConnectionState::Down) => actor.failed(error, ctx),
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
        self.stats.failed(&error.to_string());
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
        let level = if self.reconnect.is_unsteady() {
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
        self.reconnect.connected();
        self.stats
            .connected(host.to_string(), client.client().statistics());
        self.status.send_modify(|status| {
            status.generation = generation;
            status.client = None;
            status.refused.clear();
            // Already now: whoever asked for a reload goes on before the handover is done.
            status.domain = self.settings.domain.clone();
        });
        let old = std::mem::replace(&mut self.state, ConnectionState::Handover(client));
        let senders = std::mem::take(&mut self.senders);
        self.retiring += 1;
        let retirement = async move {
            let old = old.client()?;
            let _ = timeout(FLUSH_LIMIT, retire(old, &senders)).await;
            Some(old.client().statistics())
        };
        ctx.spawn(retirement.into_actor(self).map(|retired, actor, ctx| {
            if let Some(retired) = retired {
                actor.stats.retired(&retired);
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
        let ConnectionState::Handover(client) = &self.state else {
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
        self.state = ConnectionState::Up(client.clone());
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
    pub(super) fn leave(&mut self, generation: u64, ctx: &mut Context<Self>) {
        if generation != self.generation() || matches!(self.state, ConnectionState::Down) {
            return;
        }
        if matches!(self.state, ConnectionState::Handover(_)) {
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

    pub(super) fn lost(&mut self, ctx: &mut Context<Self>) {
        if let Some(client) = self.state.client() {
            self.stats.retired(&client.client().statistics());
        }
        self.state = ConnectionState::Down;
        self.stats.lost();
        self.stats.failed("connection to the NATS server lost");
        let pause = self.reconnect.lost();
        if let Some(suppressed) = self.reconnect.line() {
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
        if let ConnectionState::Up(client) = &self.state
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

impl Handler<ReloadConnection> for Connection {
    type Result = ResponseActFuture<Self, Result<()>>;

    fn handle(
        &mut self,
        ReloadConnection {
            settings,
            force,
            limit,
        }: ReloadConnection,
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
                    if is_latest && matches!(actor.state, ConnectionState::Down) && actor.settings != settings
                    {
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

impl Handler<ReplaceSettings> for Connection {
    type Result = ();

    fn handle(&mut self, ReplaceSettings(settings): ReplaceSettings, ctx: &mut Self::Context) {
        if self.settings != settings && !self.status.borrow().was_up {
            self.settings = settings;
            self.status
                .send_modify(|status| status.domain = self.settings.domain.clone());
            self.attempt_anew(ctx);
        }
    }
}

impl Handler<SettingsMatch> for Connection {
    type Result = bool;

    fn handle(&mut self, SettingsMatch(settings): SettingsMatch, _: &mut Self::Context) -> Self::Result {
        self.settings == settings
    }
}

impl Handler<ConnectNow> for Connection {
    type Result = ();

    fn handle(&mut self, _: ConnectNow, ctx: &mut Self::Context) {
        if !self.reconnect.is_unsteady() {
            self.attempt(ctx);
        }
    }
}

impl Handler<FinishConnection> for Connection {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, FinishConnection(limit): FinishConnection, _: &mut Self::Context) -> Self::Result {
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
