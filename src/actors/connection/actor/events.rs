//! Handles what a connection's client reports: that its connection broke, and what the NATS server says. A part of the
//! connection actor; in the actor thread.

use actix::prelude::*;
use async_nats::{Event, ServerError};

use super::Connection;
use crate::actors::connection::connect::Observer;
use crate::actors::connection::requester::Requester;
use crate::nats::ack;

/// Most errors of a server whose log lines are limited separately.
const MAX_SERVER_ERRORS: usize = 64;
/// Most subjects that are remembered because the server refused to let the user subscribe; views show them with the
/// handlers.
const MAX_REFUSED: usize = 10_000;
/// Prefix of inboxes. A refused inbox is not remembered, because each is used only once.
const INBOXES: &str = "_INBOX.";

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
    fn lost(&self) {
        self.connection.do_send(ClientLost(self.generation));
    }

    fn event(&self, event: Event) {
        self.connection.do_send(ClientEvent(self.generation, event));
    }
}

/// The client of this generation has lost its connection.
#[derive(Message)]
#[rtype(result = "()")]
struct ClientLost(u64);

/// The client of this generation reports an event.
#[derive(Message)]
#[rtype(result = "()")]
struct ClientEvent(u64, Event);

impl Handler<ClientLost> for Connection {
    type Result = ();

    fn handle(&mut self, ClientLost(generation): ClientLost, ctx: &mut Self::Context) {
        if self.lifecycle.report_lost(generation) {
            self.lost(ctx);
        }
    }
}

impl Handler<ClientEvent> for Connection {
    type Result = ();

    fn handle(&mut self, ClientEvent(generation, event): ClientEvent, ctx: &mut Self::Context) {
        if let Some(former) = self.retiring.get(&generation)
            && let Event::ServerError(ServerError::Other(what)) = &event
        {
            tell_waiting(former, what);
        }
        if generation != self.lifecycle.generation() {
            return;
        }
        match event {
            Event::ServerError(ServerError::Other(what)) => {
                if let Some(client) = self.lifecycle.client()
                    && tell_waiting(client, &what)
                {
                    // A refusal that answers a round trip ends the measurements, and is not reported.
                    self.may_measure = false;
                    return;
                }
                self.stats
                    .lock()
                    .failed(&format!("the NATS server reports: {what}"));
                if let Some((key, needed)) = forbidden(&what).and_then(refused_consumer) {
                    self.status.send_if_modified(|status| {
                        let consumers = &mut status.refused_consumers;
                        consumers.len() < MAX_REFUSED && consumers.insert(key, needed).is_none()
                    });
                }
                if let Some(subject) = refused(&what).filter(|subject| !subject.starts_with(INBOXES)) {
                    self.status.send_if_modified(|status| {
                        status.refused.len() < MAX_REFUSED && status.refused.insert(subject.to_string())
                    });
                }
                if self.server_errors.len() >= MAX_SERVER_ERRORS {
                    self.server_errors.clear();
                }
                let flood = self.server_errors.entry(what.clone()).or_default();
                if let Some(suppressed) = flood.pass() {
                    log::warn!("{}: the NATS server reports: {what}{suppressed}", self.name);
                }
            }
            Event::SlowConsumer(_) => {
                if let Some(suppressed) = self.slow_consumer.pass() {
                    log::warn!(
                        "{}: messages came faster than they could be taken{suppressed}",
                        self.name
                    );
                }
            }
            Event::LameDuckMode => {
                log::info!("{}: the NATS server is about to shut down", self.name);
                self.leave(generation, ctx);
            }
            _ => {}
        }
    }
}

/// Tells the client's waiting requests what the server has refused. `true` if that was a part of a round trip, which
/// the refusal answers as well.
fn tell_waiting(client: &Requester, what: &str) -> bool {
    if let Some(subject) = forbidden(what) {
        client.forbidden(subject);
        return client.is_inbox(subject);
    }
    refused(what).is_some_and(|subject| {
        client.subscription_refused(subject);
        client.is_inbox(subject) && !subject.ends_with('*')
    })
}

/// The subject in the server's error for a forbidden publish; `None` for another error.
fn forbidden(what: &str) -> Option<&str> {
    let quoted = what.strip_prefix("Permissions Violation for Publish to \"")?;
    quoted.strip_suffix('"')
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

/// The subject in the server's error for a forbidden subscription; `None` for another error.
fn refused(what: &str) -> Option<&str> {
    let quoted = what.strip_prefix("Permissions Violation for Subscription to \"")?;
    quoted.split('"').next()
}
