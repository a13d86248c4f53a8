//! Handles what a connection's client reports: that its connection broke, and what the NATS server says. A part of the
//! connection actor; in the actor thread.

use actix::prelude::*;

use super::Connection;
use crate::actors::client::NatsClient;
use crate::actors::client::interface::Observer;
use crate::nats::ack;
use crate::nats::server_error::ServerError;

/// Most errors of a server whose log lines are limited separately.
const MAX_SERVER_ERRORS: usize = 64;
/// Most consumers that are remembered because the user may not pull or acknowledge their messages; views show them with
/// the handlers.
const MAX_REFUSED: usize = 10_000;

/// Passes what a client reports to its connection's actor.
#[derive(Clone)]
pub(super) struct Reporter {
    connection: Addr<Connection>,
    generation: u64,
}

impl Reporter {
    pub(super) fn new(connection: Addr<Connection>, generation: u64) -> Reporter {
        Reporter {
            connection,
            generation,
        }
    }
}

impl Observer for Reporter {
    fn lost(&self, reason: &str) {
        let lost = ClientLost(self.generation, reason.to_string());
        self.connection.do_send(lost);
    }

    fn news(&self) {
        self.connection.do_send(ClientNews(self.generation));
    }
}

/// The client of this generation has lost its connection, for this reason.
#[derive(Message)]
#[rtype(result = "()")]
struct ClientLost(u64, String);

/// The client of this generation has news.
#[derive(Message)]
#[rtype(result = "()")]
struct ClientNews(u64);

impl Handler<ClientLost> for Connection {
    type Result = ();

    fn handle(&mut self, ClientLost(generation, reason): ClientLost, ctx: &mut Self::Context) {
        if self.lifecycle.report_lost(generation) {
            self.take_news(ctx);
            self.lost(&reason, ctx);
        }
    }
}

impl Handler<ClientNews> for Connection {
    type Result = ();

    fn handle(&mut self, ClientNews(generation): ClientNews, ctx: &mut Self::Context) {
        if generation == self.lifecycle.generation() {
            self.take_news(ctx);
        }
    }
}

impl Connection {
    /// Takes what the current client's server has reported.
    pub(super) fn take_news(&mut self, ctx: &mut Context<Self>) {
        let Some(client) = self.lifecycle.client().cloned() else {
            return;
        };
        let news = client.take_news();
        for what in &news.errors {
            self.server_error(what);
        }
        if news.dropped > 0 {
            log::warn!(
                "{}: the NATS server reports {} more errors",
                self.name,
                news.dropped
            );
        }
        if news.is_slow
            && let Some(suppressed) = self.slow_consumer.pass()
        {
            log::warn!(
                "{}: messages came faster than they could be taken{suppressed}",
                self.name
            );
        }
        if news.has_info {
            self.learn(&client, ctx);
        }
    }

    /// The server has sent another INFO.
    fn learn(&mut self, client: &NatsClient, ctx: &mut Context<Self>) {
        let info = client.info();
        self.discover(&info);
        self.status.send_if_modified(|status| {
            let before = status.link;
            if status.link.up {
                status.link.max_payload = info.max_payload;
            }
            status.link != before
        });
        let generation = self.lifecycle.generation();
        if info.lame_duck_mode && self.leaving != Some(generation) {
            self.leaving = Some(generation);
            log::info!("{}: the NATS server is about to shut down", self.name);
            self.leave(generation, ctx);
        }
    }

    fn server_error(&mut self, what: &str) {
        self.stats
            .lock()
            .failed(&format!("the NATS server reports: {what}"));
        if let ServerError::PublishForbidden(subject) = ServerError::of(what)
            && let Some((key, needed)) = refused_consumer(&subject)
        {
            self.status.send_if_modified(|status| {
                let consumers = &mut status.refused_consumers;
                consumers.len() < MAX_REFUSED && consumers.insert(key, needed).is_none()
            });
        }
        if self.server_errors.len() >= MAX_SERVER_ERRORS {
            self.server_errors.clear();
        }
        let flood = self.server_errors.entry(what.to_string()).or_default();
        if let Some(suppressed) = flood.pass() {
            log::warn!("{}: the NATS server reports: {what}{suppressed}", self.name);
        }
    }
}

/// Stream and consumer that a subject is about on which messages are pulled or acknowledged, and what such subjects
/// have in common; `None` for another subject.
fn refused_consumer(subject: &str) -> Option<((String, String), &'static str)> {
    let (consumer, needed) = match subject.split_once(".API.CONSUMER.MSG.NEXT.") {
        Some((_, rest)) => (rest.split_once('.')?, "$JS.API.CONSUMER.MSG.NEXT.>"),
        None => (ack::consumer(subject)?, "$JS.ACK.>"),
    };
    let (stream, consumer) = consumer;
    Some(((stream.to_string(), consumer.to_string()), needed))
}
