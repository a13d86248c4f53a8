//! Hands messages and requests to a NATS client, and lets a client deliver what it holds before it ends. In the actor
//! thread.

use std::time::Duration;

use tokio::sync::RwLock;
use tokio::time::timeout;

use crate::actors::client::interface::InboxState;
use crate::actors::client::{NatsClient, RequestFailure, SendFailure};
use crate::error::{Error, Kind, Result};
use crate::nats::message::{Message, Outbound};

/// Longest time for a replaced client to deliver what it holds.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// Hands messages to the client in order. Returns those that the client did not take because its connection is lost;
/// empty if there are none.
pub async fn send_all(client: &NatsClient, mut batch: Vec<Outbound>) -> Vec<Outbound> {
    for index in 0..batch.len() {
        let Some(message) = batch.get(index) else { break };
        match client.publish(message).await {
            Ok(()) => {}
            Err(SendFailure::Lost) => return batch.split_off(index),
            // Sessions check messages before they send them, but the server's limit may have changed since.
            Err(failure) => log::warn!(
                "message to subject \"{}\" was not published: {}",
                message.subject,
                unsent(client, &message.subject, failure.into())
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
/// connection overtakes it, or after `limit`. A client drops what it has not written when its last clone is dropped.
pub async fn retire(client: &NatsClient, senders: &RwLock<()>, limit: Duration) -> Retirement {
    let delivered = async {
        let _none_left = senders.write().await;
        client.round_trip().await.is_ok()
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

/// The error where no replies to requests can come.
pub fn no_inbox(client: &NatsClient, inbox: InboxState) -> Error {
    let subject = client.inbox_wildcard();
    if inbox == InboxState::TooManySubscriptions {
        return too_many_subscriptions(&subject);
    }
    let message =
        format!("the NATS server does not let this user subscribe to \"{subject}\": no reply can arrive");
    Error::new(Kind::PermissionDenied, message).hint(
        "Allow the NATS user that subject, or name the prefix that it may use in the option \"inbox_prefix\".",
    )
}

/// The error for a subscription that the server refuses because there are too many.
pub fn too_many_subscriptions(subject: &str) -> Error {
    let message = format!("the NATS server takes no more subscriptions: that of \"{subject}\" is refused");
    Error::new(Kind::TooManySubscriptions, message)
}

/// The error for a message to a subject that was not sent, or a request that was not answered.
pub fn unsent(client: &NatsClient, subject: &str, failure: RequestFailure) -> Error {
    match failure {
        RequestFailure::NoResponders => Error::new(
            Kind::NoResponders,
            format!("no responders are available for subject \"{subject}\""),
        ),
        RequestFailure::TimedOut => Error::new(
            Kind::Timeout,
            format!("no reply on subject \"{subject}\" in time"),
        ),
        RequestFailure::TooLarge(limit) => Error::new(
            Kind::PayloadTooLarge,
            "message is larger than the NATS server allows",
        )
        .detail(format!(
            "The limit of the server or the account is {limit} bytes, headers included."
        )),
        RequestFailure::InvalidSubject => Error::new(Kind::InvalidSubject, "invalid subject"),
        RequestFailure::InvalidHeaders => Error::new(Kind::InvalidHeaders, "invalid message headers"),
        RequestFailure::Forbidden => forbidden(subject),
        RequestFailure::NoInbox(inbox) => no_inbox(client, inbox),
        RequestFailure::OtherReply(_) => Error::new(
            Kind::JetStreamRefused,
            format!("what answered on subject \"{subject}\" is not JetStream"),
        ),
        RequestFailure::ClientLost => Error::new(
            Kind::ConnectionLost,
            "the connection to the NATS server was lost while waiting for the reply",
        ),
    }
}

/// Sends a request and waits for its reply, for `limit` at most.
pub async fn request(client: &NatsClient, message: Outbound, limit: Duration) -> Result<Message> {
    let subject = message.subject.clone();
    let outcome = client.request(message, limit).await;
    outcome.map_err(|failure| unsent(client, &subject, failure))
}
