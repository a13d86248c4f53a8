//! Messages on their way to a NATS client, requests, and the end of a client. In the actor thread.

use std::time::Duration;

use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, PublishErrorKind};
use bytes::Bytes;
use tokio::sync::RwLock;
use tokio::time::timeout;

use super::requester::{RequestFailure, Requester};
use crate::error::{Error, Kind, Result};

/// Longest time for a client to deliver what it holds when another replaces it.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Hands messages to the client in order; answers with those that it did not take because it is lost.
pub async fn send_all(client: &Client, batch: Vec<OutboundMessage>) -> Vec<OutboundMessage> {
    let mut messages = batch.into_iter();
    while let Some(message) = messages.next() {
        match client.publish_message(message.clone()).await {
            Ok(()) => {}
            Err(error) if error.kind() == PublishErrorKind::Send => {
                return std::iter::once(message).chain(messages).collect();
            }
            // Sessions check before they send; the limit may have changed in between.
            Err(error) => log::warn!(
                "message to subject \"{}\" was not published: {error}",
                message.subject
            ),
        }
    }
    Vec::new()
}

/// Returns when the NATS server has taken in all that was handed to a client, so that what follows on another
/// connection does not overtake it. async-nats drops what it has not written when the last clone of a client goes.
pub async fn retire(client: &Requester, senders: &RwLock<()>) {
    let _none_left = senders.write().await;
    let _ = client.client().flush().await;
    // All has left for the socket; now the server has to read it.
    let _ = timeout(FLUSH_LIMIT, client.round_trip()).await;
}

/// NATS's permissions are the user's, not the role's.
pub fn forbidden(subject: &str) -> Error {
    let message = format!("the NATS server does not let this user publish to subject \"{subject}\"");
    Error::new(Kind::PermissionDenied, message).hint("")
}

/// Sends a request and waits for its reply.
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
