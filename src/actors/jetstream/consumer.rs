//! The durable pull consumer of a durable subscription (ADR-13): finds or creates it, as `consumer/plan.rs` decides,
//! and pulls from it. In the actor thread.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{Config, Info};
use async_nats::message::OutboundMessage;
use async_nats::{Message, PublishError, StatusCode};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::api::Api;
use super::async_nats_api::timestamp;
use super::refusals::MISSING_STREAM;
use crate::channel::work::{Consumer, StreamProgress};
use crate::error::{Error, Kind, Result};
use plan::plan;

mod plan;

/// Seconds after which a pull expires.
const EXPIRES: u64 = 30;
/// Seconds between JetStream's heartbeats while a pull waits for messages.
pub const HEARTBEAT: u64 = 5;
const NANOSECONDS: u64 = 1_000_000_000;

/// What is known of the consumer when pulling begins.
pub struct Found {
    /// Messages that the consumer has still to deliver for the first time.
    pub pending: u64,
    /// When the stream was created, in JetStream's own text.
    pub stream_created: String,
    /// Number of the consumer's last delivery.
    pub consumer_sequence: u64,
    /// Sequence in the stream of the message that was delivered last.
    pub stream_sequence: u64,
    /// All messages up to this sequence in the stream are done with, or are none of the subscription's.
    pub base: u64,
    /// That the consumer is paused; `None` if it is not.
    pub paused: Option<Error>,
}

/// Finds the subscription's consumer, or creates it. `is_first`: the consumer was not found before for this handler, so
/// that `progress` is what a refresh has just read. Fails with `NoStream` if the stream does not exist.
pub async fn find(
    api: &Api,
    stream: &str,
    consumer: &Consumer,
    progress: &StreamProgress,
    is_first: bool,
) -> Result<Found> {
    let Some(stream_info) = api.stream_info(stream).await? else {
        let message = format!("stream \"{stream}\" does not exist");
        return Err(Error::new(Kind::NoStream, message).hint(MISSING_STREAM));
    };
    let durable = &consumer.durable;
    let existing = existing(api, stream, durable).await?;
    let mut plan = plan(consumer, progress, is_first, &stream_info, existing.as_ref())?;
    if let Some((acknowledged, floor)) = plan.lost {
        log::warn!(
            "durable subscription of stream \"{stream}\": messages up to {acknowledged} are acknowledged, but the \
             database has those up to {floor} only; it goes on from there"
        );
    }
    if plan.removes_former {
        delete(api, stream, durable).await?;
    }
    let mut made = create(api, stream, durable, &mut plan.config).await?;
    if plan.is_leftover(&made) {
        delete(api, stream, durable).await?;
        made = create(api, stream, durable, &mut plan.config).await?;
        if plan.is_leftover(&made) {
            let message = format!("consumer \"{durable}\" has a state that is not this subscription's");
            return Err(Error::new(Kind::JetStreamRefused, message));
        }
    }
    let paused = paused(&made);
    let has_delivered = made.delivered.consumer_sequence > 0;
    let begins_after = if has_delivered {
        made.ack_floor
    } else {
        made.delivered
    };
    Ok(Found {
        base: begins_after.stream_sequence,
        pending: made.num_pending,
        stream_created: stream_info.created,
        consumer_sequence: made.delivered.consumer_sequence,
        stream_sequence: made.delivered.stream_sequence,
        paused,
    })
}

/// Creates or updates the consumer. Where the NATS server or the account allows fewer ack pending messages than
/// `config` asks for, `config` leaves their number to the server.
async fn create(api: &Api, stream: &str, durable: &str, config: &mut Config) -> Result<Info> {
    let name = format!("CONSUMER.CREATE.{stream}.{durable}");
    let body = |config: &Config| json!({"stream_name": stream, "config": config});
    let too_many = ErrorCode::CONSUMER_MAX_PENDING_ACK_EXCESS;
    if let Some(made) = api.request_unless(too_many, &name, &body(config)).await? {
        return Ok(made);
    }
    config.max_ack_pending = 0;
    api.request(&name, &body(config)).await
}

async fn existing(api: &Api, stream: &str, durable: &str) -> Result<Option<Info>> {
    let name = format!("CONSUMER.INFO.{stream}.{durable}");
    api.request_unless(ErrorCode::CONSUMER_NOT_FOUND, &name, &Value::Null)
        .await
}

/// What to say of a consumer that is paused, as an administrator may do; `None` if it is not.
pub fn paused(info: &Info) -> Option<Error> {
    let until = info.config.pause_until.filter(|_| info.paused)?;
    let message = format!("consumer \"{}\" is paused until {}", info.name, timestamp(until));
    Some(Error::new(Kind::JetStreamRefused, message))
}

/// The state of a consumer.
pub async fn info(api: &Api, stream: &str, durable: &str) -> Result<Info> {
    let name = format!("CONSUMER.INFO.{stream}.{durable}");
    api.request(&name, &Value::Null).await
}

/// Removes a consumer, if it exists.
pub async fn delete(api: &Api, stream: &str, durable: &str) -> Result<()> {
    let name = format!("CONSUMER.DELETE.{stream}.{durable}");
    let deleted = api.request_unless::<IgnoredAny>(ErrorCode::CONSUMER_NOT_FOUND, &name, &Value::Null);
    deleted.await.map(drop)
}

/// Messages that were pulled and have not come yet.
#[derive(Default)]
pub struct PendingPull(pub usize);

impl PendingPull {
    /// One of the messages has come.
    pub fn came(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    /// Notes a status message of the consumer; `false` if the consumer is of no more use.
    pub fn told(&mut self, status: StatusCode, message: &Message) -> bool {
        if status == StatusCode::IDLE_HEARTBEAT {
            return true;
        }
        // Any other status ends a pull, and its header says how many messages are still missing from that pull.
        let left = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Pending-Messages"))
            .and_then(|left| left.as_str().parse().ok());
        self.0 = self.0.saturating_sub(left.unwrap_or(self.0));
        let is_harmless = status == StatusCode::NOT_FOUND || status == StatusCode::TIMEOUT;
        is_harmless
            || message
                .description
                .as_deref()
                .is_some_and(|text| text.contains("Batch Completed"))
    }
}

/// Pulls up to `count` messages, which go to `inbox`.
pub async fn pull(
    api: &Api,
    stream: &str,
    durable: &str,
    inbox: &str,
    count: usize,
) -> std::result::Result<(), PublishError> {
    let body = json!({
        "batch": count,
        "expires": EXPIRES * NANOSECONDS,
        "idle_heartbeat": HEARTBEAT * NANOSECONDS,
    });
    let message = OutboundMessage {
        subject: format!("{}.CONSUMER.MSG.NEXT.{stream}.{durable}", api.prefix).into(),
        reply: Some(inbox.into()),
        payload: body.to_string().into(),
        headers: None,
    };
    api.client.publish(message).await
}
