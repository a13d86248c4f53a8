//! What a connection's client reports: that it is lost, and what the NATS server says. A part of the connection actor; in the
//! actor thread.

use actix::prelude::*;
use async_nats::{Event, ServerError};

use super::actor::{Connection, ConnectionState};
use super::connect::Observer;

/// Different errors of a server that are told apart in the log.
const MAX_SERVER_ERRORS: usize = 64;
/// Subjects of subscriptions that a server refuses, which are remembered for the handlers that have them.
const MAX_REFUSED: usize = 10_000;
/// Each is used once.
const INBOXES: &str = "_INBOX.";

/// Brings what a client reports to its connection.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) connection: Addr<Connection>,
    pub(super) generation: u64,
}

impl Observer for Reporter {
    fn lost(&self) {
        self.connection.do_send(ClientLost(self.generation));
    }

    fn event(&self, event: Event) {
        self.connection.do_send(ClientEvent(self.generation, event));
    }
}

/// From the client of this generation: its connection broke.
#[derive(Message)]
#[rtype(result = "()")]
struct ClientLost(u64);

/// From the client of this generation: an event.
#[derive(Message)]
#[rtype(result = "()")]
struct ClientEvent(u64, Event);

impl Handler<ClientLost> for Connection {
    type Result = ();

    fn handle(&mut self, ClientLost(generation): ClientLost, ctx: &mut Self::Context) {
        self.gone = self.gone.max(generation);
        if generation == self.generation() && !matches!(self.state, ConnectionState::Down) {
            self.lost(ctx);
        }
    }
}

impl Handler<ClientEvent> for Connection {
    type Result = ();

    fn handle(&mut self, ClientEvent(generation, event): ClientEvent, ctx: &mut Self::Context) {
        if generation != self.generation() {
            return;
        }
        match event {
            Event::ServerError(ServerError::Other(what)) => {
                if let Some((subject, client)) = forbidden(&what).zip(self.status.borrow().client.as_ref()) {
                    if client.is_inbox(subject) {
                        // Of a measurement, which is not repeated, and nobody else need know of.
                        self.may_measure = false;
                        return;
                    }
                    client.forbidden(subject);
                }
                self.stats.failed(&format!("the NATS server reports: {what}"));
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

/// The subject of a publish that the server forbids, as it says so.
fn forbidden(what: &str) -> Option<&str> {
    let quoted = what.strip_prefix("Permissions Violation for Publish to \"")?;
    quoted.strip_suffix('"')
}

/// The subject of a subscription that the server forbids, as it says so.
fn refused(what: &str) -> Option<&str> {
    let quoted = what.strip_prefix("Permissions Violation for Subscription to \"")?;
    quoted.split('"').next()
}
