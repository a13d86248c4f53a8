//! The actor that keeps the responders of every database, and how they answer. In the actor thread.

use std::sync::Arc;

use actix::Addr;
use async_nats::HeaderMap;
use async_nats::message::OutboundMessage;
use bytes::Bytes;

use super::connection::Publish;
use super::dispatcher::{Dispatcher, Ready};
use super::handler::Handler;
use super::pump::Inlet;
use super::queue::Incoming;
use super::registry::Registry;
use crate::nats::headers::{SERVICE_ERROR, SERVICE_ERROR_CODE};

/// SQLSTATE of an answer to a request that there was no time for: `too_many_connections`.
const BUSY: &str = "53300";

/// What a request is answered with.
pub enum Answer {
    Payload(Bytes),
    /// SQLSTATE and message.
    Error(String, String),
}

/// Answers requests, those that want an answer. A server without headers cannot tell an error from a payload: there
/// the requester waits.
pub fn answer(handler: &Handler, answers: impl Iterator<Item = (Option<String>, Answer)>) {
    let Some(connection) = &handler.connection else {
        return;
    };
    let headers = connection.status.borrow().link.headers;
    let messages: Vec<OutboundMessage> = answers
        .filter_map(|(reply, answer)| {
            let (headers, payload) = match answer {
                Answer::Payload(payload) => (None, payload),
                Answer::Error(code, message) if headers => {
                    (Some(error_headers(&code, &message)?), Bytes::new())
                }
                Answer::Error(..) => return None,
            };
            Some(OutboundMessage {
                subject: reply?.into(),
                reply: None,
                payload,
                headers,
            })
        })
        .collect();
    if !messages.is_empty() {
        connection.connection.do_send(Publish(messages));
    }
}

/// As services of NATS report errors (ADR-32).
fn error_headers(code: &str, message: &str) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    // A header is one line.
    let message = message.replace(['\r', '\n'], " ");
    headers.insert(SERVICE_ERROR, message.parse::<async_nats::HeaderValue>().ok()?);
    headers.insert(SERVICE_ERROR_CODE, code.parse::<async_nats::HeaderValue>().ok()?);
    Some(headers)
}

/// Tells requesters at once that nobody has time for them.
pub fn answer_busy(handler: &Arc<Handler>, requests: Vec<Incoming>) {
    if requests.is_empty() {
        return;
    }
    handler.dropped(requests.len(), "all executors are busy");
    let busy = || Answer::Error(BUSY.into(), "all executors are busy".into());
    answer(
        handler,
        requests.into_iter().map(|request| (request.reply, busy())),
    );
}

/// The actor.
pub type ResponderRegistry = Registry<Requests>;

/// What becomes of a responder's requests.
#[derive(Clone)]
pub struct Requests(pub Addr<Dispatcher>);

impl Inlet for Requests {
    fn ready(&self, handler: &Arc<Handler>) {
        self.0.do_send(Ready(handler.clone()));
    }

    fn refused(&self, handler: &Arc<Handler>, request: Incoming) {
        answer_busy(handler, vec![request]);
    }
}
