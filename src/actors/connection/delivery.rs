//! Hands messages and requests to a NATS client, and lets a client deliver what it holds before it ends. In the actor
//! thread.

use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, PublishErrorKind};
use bytes::Bytes;
use tokio::sync::RwLock;
use tokio::time::timeout;

use super::requester::{RequestFailure, Requester};
use crate::error::{Error, Kind, Result};

/// Longest time for a replaced client to deliver what it holds.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Hands messages to the client in order. Returns those that the client did not take because its connection is lost;
/// empty if there are none.
pub async fn send_all(client: &Requester, batch: Vec<OutboundMessage>) -> Vec<OutboundMessage> {
    let mut messages = batch.into_iter();
    while let Some(message) = messages.next() {
        match client.publish(message.clone()).await {
            Ok(()) => {}
            Err(error) if error.kind() == PublishErrorKind::Send => {
                return std::iter::once(message).chain(messages).collect();
            }
            // Sessions check messages before they send them, but the server's limit may have changed since.
            Err(error) => log::warn!(
                "message to subject \"{}\" was not published: {error}",
                message.subject
            ),
        }
    }
    Vec::new()
}

/// Whether a client that ends has delivered all that was handed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retirement {
    /// The NATS server has taken everything in.
    Delivered,
    /// The NATS server has not confirmed that in time: messages may come late, or not at all.
    Unconfirmed,
}

/// Returns when the NATS server has taken in all that was handed to a client, so that nothing sent on another
/// connection overtakes it, or after `limit`. async-nats drops what it has not written when the last clone of a client
/// is dropped.
pub async fn retire(client: &Requester, senders: &RwLock<()>, limit: Duration) -> Retirement {
    let delivered = async {
        let _none_left = senders.write().await;
        // The flush writes everything to the socket; the round trip shows that the server has read it.
        client.client().flush().await.is_ok() && client.round_trip().await.is_ok()
    };
    match timeout(limit, delivered).await {
        Ok(true) => Retirement::Delivered,
        Ok(false) | Err(_) => Retirement::Unconfirmed,
    }
}

/// The error for a subject that the NATS user may not publish to. It has no hint: the kind's own hint is about the
/// rights of PostgreSQL's roles.
pub fn forbidden(subject: &str) -> Error {
    let message = format!("the NATS server does not let this user publish to subject \"{subject}\"");
    Error::new(Kind::PermissionDenied, message).hint("")
}

/// Sends a request and waits for its reply, for `limit` at most.
pub async fn request(
    client: &Requester,
    subject: &str,
    headers: Option<HeaderMap>,
    payload: Bytes,
    limit: Duration,
) -> Result<async_nats::Message> {
    let outcome = client.request(subject.to_string(), headers, payload, limit).await;
    outcome.map_err(|failure| match failure {
        RequestFailure::NoResponders => Error::new(
            Kind::NoResponders,
            format!("no responders are available for subject \"{subject}\""),
        ),
        RequestFailure::TimedOut => {
            let waited = limit.as_millis();
            Error::new(
                Kind::Timeout,
                format!("no reply on subject \"{subject}\" within {waited} ms"),
            )
        }
        RequestFailure::TooLarge(why) => {
            let error = Error::new(
                Kind::PayloadTooLarge,
                "message is larger than the NATS server allows",
            );
            error.cause(&why)
        }
        RequestFailure::InvalidSubject => Error::new(Kind::InvalidSubject, "invalid subject"),
        RequestFailure::Forbidden => forbidden(subject),
        RequestFailure::ClientLost => Error::new(
            Kind::ConnectionLost,
            "the connection to the NATS server was lost while waiting for the reply",
        ),
    })
}
