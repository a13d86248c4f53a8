//! One NATS connection: its client, and the messages held while NATS is away. `lifecycle.rs` has the states and decides
//! what follows; this actor carries it out. `actor/events.rs` handles what the client reports, `actor/reload.rs` takes
//! new settings, `actor/round_trip.rs` measures how long the NATS server takes to answer.
//!
//! Runs in the actor thread. Callers learn the state from a watch channel ([`ConnectionStatus`]) and wait there; the
//! actor itself never waits.

mod events;
mod reload;
mod round_trip;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{RwLock, oneshot, watch};
use tokio::time::{Instant, sleep};

use self::events::Reporter;
use super::delivery::{FLUSH_LIMIT, Retirement, no_inbox, retire, send_all};
use super::held_messages::HeldMessages;
use super::interface::{CONNECT_LIMIT, ConnectNow, FinishConnection, Publish};
use super::lifecycle::{HandoverStep, Lifecycle};
use super::reconnect_policy::ReconnectPolicy;
use super::status::ConnectionStatus;
use crate::actors::base::tasks::{self, Vital};
use crate::actors::client::NatsClient;
use crate::actors::client::connect::connect;
use crate::actors::client::interface::{Candidate, InboxState};
use crate::actors::metrics::connection_stats::SharedStats;
use crate::channel::target::Link;
use crate::error::{Error, Kind, Result};
use crate::findings;
use crate::flood::Flood;
use crate::nats::message::Outbound;
use crate::nats::wire::ServerInfo;
use crate::settings::Settings;
use crate::settings::options::{DEFAULT_PORT, Host, parse_hosts};

/// Pause before a connection is tried again whose place another one has just left.
const ROOM_PAUSE: Duration = Duration::from_millis(50);
const LOST: &str = "connection to the NATS server lost";

/// The outcome of an attempt to connect.
struct Attempt {
    settings: Settings,
    number: u64,
    /// The client and the host that it is connected to, or why there is none.
    client: Result<(NatsClient, Candidate)>,
}

/// The actor of one NATS connection.
pub struct Connection {
    /// The connection's name in NATS's monitoring.
    name: String,
    settings: Settings,
    lifecycle: Lifecycle<NatsClient>,
    held: HeldMessages,
    status: watch::Sender<ConnectionStatus>,
    /// The attempt to connect that is under way. Attempts of a reload, or to leave a server, run beside it.
    connecting: Option<SpawnHandle>,
    /// Read-locked while messages are handed to the current client; write-locked to wait until none is.
    senders: Arc<RwLock<()>>,
    /// Former clients that still deliver what they hold, by generation.
    retiring: HashMap<u64, NatsClient>,
    retry: Option<SpawnHandle>,
    /// Servers that the NATS cluster has announced, and the settings it was reached with. Once hosts, TLS options or
    /// credential change, these servers are no longer used: they may be another cluster's, which must not get the new
    /// credential.
    discovered: Option<(Settings, Vec<Candidate>)>,
    /// The host of the current client.
    current: Option<Candidate>,
    /// Generation of the client whose server is about to stop.
    leaving: Option<u64>,
    reconnect: ReconnectPolicy,
    /// When a forced reload has last begun, and who waits for the end of the one under way.
    forced_at: Option<Instant>,
    forcing: Option<Vec<oneshot::Sender<Result<()>>>>,
    stats: SharedStats,
    /// Limits the log lines about the server's errors, by the error's text.
    server_errors: HashMap<String, Flood>,
    slow_consumer: Flood,
    _vital: Vital,
}

impl Connection {
    /// Starts the actor, which connects at once; the status tells how that goes.
    pub fn start(
        name: String,
        settings: Settings,
        stats: SharedStats,
    ) -> (Addr<Connection>, watch::Receiver<ConnectionStatus>) {
        let (status, watched) = watch::channel(ConnectionStatus {
            domain: settings.domain.clone(),
            ..ConnectionStatus::default()
        });
        let connection = Connection {
            _vital: Vital::new(format!("connection {name}")),
            name,
            settings,
            lifecycle: Lifecycle::default(),
            held: HeldMessages::default(),
            status,
            connecting: None,
            senders: Arc::default(),
            retiring: HashMap::new(),
            retry: None,
            discovered: None,
            current: None,
            leaving: None,
            reconnect: ReconnectPolicy::default(),
            forced_at: None,
            forcing: None,
            stats,
            server_errors: HashMap::new(),
            slow_consumer: Flood::default(),
        };
        (Actor::start(connection), watched)
    }

    /// The hosts to try: those of the settings, then others that the cluster announced when it was reached with such
    /// settings.
    fn candidates(&self, settings: &Settings) -> Vec<Candidate> {
        let mut candidates: Vec<_> = settings.hosts.iter().cloned().map(Candidate::from).collect();
        if let Some((with, discovered)) = &self.discovered
            && !with.needs_reconnect(settings)
        {
            let others = discovered
                .iter()
                .filter(|other| !settings.hosts.contains(&other.host));
            candidates.extend(others.cloned());
        }
        candidates
    }

    /// Remembers the servers that the current client's server names. Those that are named by their address have to have
    /// the certificate that the server has which has named them, as with NATS's own clients.
    fn discover(&mut self, info: &ServerInfo) {
        let tls_name = self.current.as_ref().map(|current| current.tls_name.clone());
        let hosts = info.connect_urls.iter().filter_map(|url| parse_url(url));
        let candidates = hosts.map(|host| {
            let is_address = host.name.parse::<IpAddr>().is_ok();
            let learned = tls_name.clone().filter(|_| is_address);
            Candidate {
                tls_name: learned.unwrap_or_else(|| host.name.clone()),
                host,
            }
        });
        self.discovered = Some((self.settings.clone(), candidates.collect()));
    }

    /// Connects a new client with these settings. `waits_for_room`: a former connection has just ended, and its place is
    /// free as soon as the server has noticed.
    fn dial(
        &mut self,
        settings: Settings,
        limit: Duration,
        waits_for_room: bool,
        ctx: &Context<Self>,
    ) -> impl Future<Output = Attempt> + use<> {
        let number = self.lifecycle.begin_attempt();
        let observer = Reporter::new(ctx.address(), number);
        let (name, candidates) = (self.name.clone(), self.candidates(&settings));
        async move {
            let deadline = Instant::now() + limit;
            let client = loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let connecting = connect(&settings, &candidates, &name, left, observer.clone());
                // Whatever a server does to an attempt, the actor goes on.
                let client = tasks::answer("attempt to connect to NATS", connecting).await;
                let lacks_room = matches!(&client, Err(error) if error.kind == Kind::TooManyConnections);
                if !(waits_for_room && lacks_room) || left < ROOM_PAUSE {
                    break client;
                }
                sleep(ROOM_PAUSE).await;
            };
            Attempt {
                settings,
                number,
                client,
            }
        }
    }

    /// Tries to connect if the connection is down and no attempt is under way.
    fn attempt(&mut self, ctx: &mut Context<Self>) {
        if let Some(retry) = self.retry.take() {
            ctx.cancel_future(retry);
        }
        if self.connecting.is_some() || !self.lifecycle.is_down() {
            return;
        }
        let dial = self.dial(self.settings.clone(), CONNECT_LIMIT, false, ctx);
        let attempt = dial.into_actor(self).map(|attempt, actor, ctx| {
            actor.connecting = None;
            actor.attempted(attempt, ctx);
        });
        self.connecting = Some(ctx.spawn(attempt));
    }

    fn attempted(&mut self, attempt: Attempt, ctx: &mut Context<Self>) {
        let is_down = self.lifecycle.is_down();
        match attempt.client {
            Ok(client) if is_down && self.settings == attempt.settings => {
                self.install(client, attempt.number, ctx);
            }
            Err(error) if is_down => self.attempt_failed(error, ctx),
            // A reload has overtaken this attempt; its settings are tried if the connection is still down.
            _ => self.attempt(ctx),
        }
    }

    /// Tries to connect with new settings. An attempt with the old ones is given up, because it may take long to fail.
    fn attempt_anew(&mut self, ctx: &mut Context<Self>) {
        if let Some(attempt) = self.connecting.take() {
            ctx.cancel_future(attempt);
        }
        self.attempt(ctx);
    }

    fn attempt_after(&mut self, pause: Duration, ctx: &mut Context<Self>) {
        self.retry = Some(ctx.run_later(pause, |actor, ctx| {
            actor.retry = None;
            actor.attempt(ctx);
        }));
    }

    fn attempt_failed(&mut self, error: Error, ctx: &mut Context<Self>) {
        if self.status.borrow().error.as_ref() != Some(&error) {
            log::warn!("{}: {error}", self.name);
        }
        self.stats.lock().failed(&error.to_string());
        let pause = self
            .reconnect
            .attempt_failed(error.kind == Kind::AuthenticationRefused);
        self.status.send_modify(|status| {
            status.failures += 1;
            status.error = Some(error);
        });
        self.attempt_after(pause, ctx);
    }

    /// Puts a connected client in the place of the former one, which first delivers what it has taken.
    fn install(&mut self, (client, to): (NatsClient, Candidate), generation: u64, ctx: &mut Context<Self>) {
        let (info, host) = (client.info(), to.host.clone());
        self.current = Some(to);
        self.discover(&info);
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
        if client.inbox() != InboxState::Open {
            let lacks = no_inbox(&client, client.inbox());
            log::warn!("{}: {lacks}", self.name);
            self.stats.lock().failed(&lacks.to_string());
        }
        self.reconnect.connected();
        self.stats
            .lock()
            .connected(host.to_string(), client.traffic().clone());
        self.status.send_modify(|status| {
            status.generation = generation;
            status.client = None;
            status.refused_consumers.clear();
            // Set before the handover is done, because whoever asked for a reload goes on now.
            status.domain = self.settings.domain.clone();
        });
        let former_generation = self.lifecycle.generation();
        let former = self.lifecycle.install(client, generation);
        self.retire(former, former_generation, ctx);
        if self.lifecycle.is_lost() {
            self.lost("it ended at once", ctx);
        }
    }

    /// Lets a former client deliver what it holds, then goes on with the handover.
    fn retire(&mut self, former: Option<NatsClient>, generation: u64, ctx: &mut Context<Self>) {
        let senders = std::mem::take(&mut self.senders);
        if let Some(former) = &former {
            self.retiring.insert(generation, former.clone());
        }
        let retirement = async move {
            let former = former?;
            let outcome = retire(&former, &senders, FLUSH_LIMIT).await;
            Some((former.traffic().clone(), outcome))
        };
        ctx.spawn(retirement.into_actor(self).map(move |retired, actor, ctx| {
            let former = actor.retiring.remove(&generation);
            if let Some((traffic, outcome)) = retired {
                actor.stats.lock().retired(&traffic);
                if outcome == Retirement::Unconfirmed {
                    actor.report_unconfirmed();
                    // Who still hands messages to the former client, and waits for room, gets them back.
                    former.iter().for_each(NatsClient::close);
                }
            }
            actor.lifecycle.retired();
            actor.hand_over(ctx);
        }));
    }

    /// Reports that messages may come late or be lost: their senders are not told in any other way.
    fn report_unconfirmed(&self) {
        let what = "the former NATS server has not confirmed in time that it has taken all messages; \
                    the last ones may come late or be lost";
        log::warn!("{}: {what}", self.name);
        self.stats.lock().failed(what);
    }

    /// Hands the held messages to the new client; when none is left, the connection is up.
    fn hand_over(&mut self, ctx: &mut Context<Self>) {
        match self.lifecycle.next_step(!self.held.is_empty()) {
            HandoverStep::Wait => {}
            HandoverStep::HandOver(client) => {
                let (senders, batch) = (self.senders.clone(), self.held.take());
                self.count_held();
                let handing = async move {
                    let _sender = senders.read().await;
                    send_all(&client, batch).await
                };
                ctx.spawn(handing.into_actor(self).map(|rest, actor, ctx| {
                    actor.lifecycle.handed_over();
                    actor.held.give_back(rest);
                    actor.count_held();
                    actor.hand_over(ctx);
                }));
            }
            HandoverStep::Up(client) => self.is_up(client, ctx),
        }
    }

    fn is_up(&mut self, client: NatsClient, ctx: &mut Context<Self>) {
        let info = client.info();
        self.status.send_modify(|status| {
            status.client = Some(client);
            status.link = Link {
                up: true,
                max_payload: info.max_payload,
                headers: info.headers,
            };
            status.was_up = true;
            status.failures = 0;
            status.error = None;
            status.down_since = None;
        });
        self.measure_soon(ctx);
        // What has come while the connection was in handover.
        self.take_news(ctx);
    }

    /// Moves the connection to another server before this one stops. A server in lame duck mode takes no new
    /// connections, so a new client is connected to another server. Until then the old client is used, as long as its
    /// server serves.
    fn leave(&mut self, generation: u64, ctx: &mut Context<Self>) {
        if generation != self.lifecycle.generation() || self.lifecycle.is_down() {
            return;
        }
        if self.lifecycle.is_in_handover() {
            return Self::leave_later(generation, ctx);
        }
        let dial = self.dial(self.settings.clone(), CONNECT_LIMIT, false, ctx);
        ctx.spawn(dial.into_actor(self).map(move |attempt, actor, ctx| {
            let is_current = generation == actor.lifecycle.generation();
            match attempt.client {
                Ok(client) if is_current && actor.settings == attempt.settings => {
                    actor.install(client, attempt.number, ctx);
                }
                _ => Self::leave_later(generation, ctx),
            }
        }));
    }

    fn leave_later(generation: u64, ctx: &mut Context<Self>) {
        ctx.run_later(ReconnectPolicy::leave_pause(), move |actor, ctx| {
            actor.leave(generation, ctx);
        });
    }

    fn lost(&mut self, reason: &str, ctx: &mut Context<Self>) {
        let lost = Error::new(Kind::Unreachable, LOST).cause(&findings::line(reason));
        let client = self.lifecycle.lose();
        {
            let mut stats = self.stats.lock();
            if let Some(client) = client {
                stats.retired(client.traffic());
            }
            stats.lost();
            stats.failed(&lost.to_string());
        }
        let pause = self.reconnect.lost();
        if let Some(suppressed) = self.reconnect.line() {
            log::warn!("{}: {lost}{suppressed}", self.name);
        }
        self.status.send_modify(|status| {
            status.link.up = false;
            status.client = None;
            status.down_since = Some(Instant::now());
            // Shown until an attempt to connect has a better explanation.
            status.error = Some(lost);
        });
        self.attempt_after(pause, ctx);
    }

    fn count_held(&self) {
        self.stats.lock().set_queued(self.held.len(), self.held.bytes());
    }
}

impl Actor for Connection {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.attempt(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        // Watchers keep the status beyond the actor's end, and the client in it would keep the connection to NATS open.
        self.status.send_modify(|status| status.client = None);
    }
}

impl Handler<Publish> for Connection {
    type Result = ResponseFuture<Vec<Outbound>>;

    fn handle(&mut self, Publish(batch): Publish, _: &mut Self::Context) -> Self::Result {
        if let Some(client) = self.lifecycle.up()
            && let Ok(sender) = self.senders.clone().try_read_owned()
        {
            let client = client.clone();
            return Box::pin(async move {
                let _sender = sender;
                send_all(&client, batch).await
            });
        }
        let rest = self.held.hold(batch, self.settings.capacity);
        self.count_held();
        Box::pin(std::future::ready(rest))
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
        let client = self.lifecycle.client().cloned();
        let senders = self.senders.clone();
        let flush = async move {
            match client {
                Some(client) => retire(&client, &senders, limit).await,
                None => Retirement::Delivered,
            }
        };
        Box::pin(flush.into_actor(self).map(|outcome, actor, ctx| {
            if outcome == Retirement::Unconfirmed {
                actor.report_unconfirmed();
            }
            if !actor.held.is_empty() {
                log::warn!(
                    "{}: {} messages for an unreachable NATS server are dropped",
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
    parse_hosts(bare, DEFAULT_PORT).ok()?.into_iter().next()
}
