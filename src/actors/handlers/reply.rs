//! Answers the requests of responders. In the actor thread.

use std::sync::Arc;

use bytes::Bytes;

use super::handler::MessageHandler;
use super::queue::Incoming;
use crate::actors::base::tasks;
use crate::actors::connection::interface::Publish;
use crate::nats::headers::{Headers, SERVICE_ERROR, SERVICE_ERROR_CODE};
use crate::nats::message::Outbound;

/// SQLSTATE of the answer to a request that no executor had time for: `too_many_connections`.
const BUSY: &str = "53300";

/// Why replies are dropped.
const NO_ROOM: &str = "there was no room for replies while NATS is away";

/// What a request is answered with.
pub enum ResponderReply {
    Payload(Bytes),
    /// SQLSTATE and message.
    Error(String, String),
}

/// Answers the requests that have a reply subject. A server without headers cannot tell an error from a payload, so no
/// error is sent there, and the requester times out. Replies that the connection has no room for, while NATS is away,
/// count as dropped.
pub fn answer(
    handler: &Arc<MessageHandler>,
    answers: impl Iterator<Item = (Option<String>, ResponderReply)>,
) {
    let Some(connection) = &handler.connection else {
        return;
    };
    let headers = connection.status.borrow().link.headers;
    let messages: Vec<Outbound> = answers
        .filter_map(|(reply, answer)| {
            let (headers, payload) = match answer {
                ResponderReply::Payload(payload) => (Headers::new(), payload),
                ResponderReply::Error(code, message) if headers => {
                    (error_headers(code, &message), Bytes::new())
                }
                ResponderReply::Error(..) => return None,
            };
            Some(Outbound {
                subject: reply?,
                reply: None,
                headers,
                payload,
            })
        })
        .collect();
    if messages.is_empty() {
        return;
    }
    let count = messages.len();
    let publishing = connection.connection.send(Publish(messages));
    let handler = handler.clone();
    tasks::spawn("replies of a responder", async move {
        let refused = publishing.await.map_or(count, |refused| refused.len());
        if refused > 0 {
            handler.dropped(refused, NO_ROOM);
            handler.note_error(NO_ROOM.into());
        }
    });
}

/// The headers by which NATS services report errors (ADR-32).
fn error_headers(code: String, message: &str) -> Headers {
    // The value of a header is one line.
    let message = message.replace(['\r', '\n'], " ");
    vec![(SERVICE_ERROR.into(), message), (SERVICE_ERROR_CODE.into(), code)]
}

/// Tells requesters at once that no executor has time for them, and counts their requests as dropped.
pub fn answer_busy(handler: &Arc<MessageHandler>, requests: Vec<Incoming>) {
    if requests.is_empty() {
        return;
    }
    handler.dropped(requests.len(), "all executors are busy");
    let busy = || ResponderReply::Error(BUSY.into(), "all executors are busy".into());
    answer(
        handler,
        requests.into_iter().map(|request| (request.reply, busy())),
    );
}
