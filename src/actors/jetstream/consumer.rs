//! The durable pull consumer of a durable subscription (ADR-13): finds or creates it, as `consumer/plan.rs` decides,
//! and pulls from it. `consumer/incarnation.rs` says which of the streams that had the name is there. In the actor
//! thread.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{Config, Info};
use async_nats::jetstream::stream::RetentionPolicy;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::answers::timestamp;
use super::api::Api;
use super::refusals::{MISSING_STREAM, refused};
use crate::actors::client::SendFailure;
use crate::channel::progress::{Incarnation, StreamProgress};
use crate::channel::work::Consumer;
use crate::error::{Error, Kind, Result};
use crate::findings;
use crate::nats::message::{Message, Outbound, status};
use crate::nats::names::OWN_CONSUMER;
use incarnation::{first_time, identify};
pub use ownership::taken;
use plan::{Done, plan};

mod incarnation;
pub mod ownership;
mod plan;
mod recognise;

/// Seconds after which a pull expires.
const EXPIRES: u64 = 30;
/// Seconds between JetStream's heartbeats while a pull waits for messages.
pub const HEARTBEAT: u64 = 5;
const NANOSECONDS: u64 = 1_000_000_000;

/// What is known of the consumer when pulling begins.
pub struct Found {
    /// Messages that the consumer has still to deliver for the first time.
    pub pending: u64,
    /// Which incarnation the stream is.
    pub incarnation: Incarnation,
    /// Number of the consumer's last delivery.
    pub consumer_sequence: u64,
    /// Sequence in the stream of the message that was delivered last.
    pub stream_sequence: u64,
    /// All messages up to this sequence in the stream are done with, or are none of the subscription's.
    pub base: u64,
    /// That the consumer is paused; `None` if it is not.
    pub paused: Option<Error>,
    /// Whether the stream keeps messages that are acknowledged.
    pub keeps_messages: bool,
}

/// Who looks for a consumer, and what it knows.
pub struct Seeker<'a> {
    pub stream: &'a str,
    pub consumer: &'a Consumer,
    pub progress: &'a StreamProgress,
    /// Number of the database, which tells the subscriptions of one runtime worker apart.
    pub database: u32,
    /// Names for the consumer's description and metadata.
    pub database_name: &'a str,
    pub function: &'a str,
    /// Token of the incarnation that the consumer was found in before; `None` if the consumer was not found before for
    /// this handler, so that `progress` is what a refresh has just read.
    pub former: Option<&'a str>,
    /// Whether the consumer has acknowledged messages that were not delivered here.
    pub is_behind: bool,
}

/// Finds the subscription's consumer, or creates it. Fails with `NoStream` if the stream does not exist, and with
/// `Stopped` if another server has taken the consumer, or if it cannot be told which messages are done with.
pub async fn find(api: &Api, seeker: &Seeker<'_>) -> Result<Found> {
    let Seeker {
        stream,
        consumer,
        progress,
        ..
    } = seeker;
    let Some(stream_info) = api.stream_info(stream).await? else {
        let message = format!("stream \"{stream}\" does not exist");
        return Err(Error::new(Kind::NoStream, message).hint(MISSING_STREAM));
    };
    let durable = &consumer.durable;
    let existing = existing(api, stream, durable).await?;
    if seeker.former.is_some()
        && let Some(problem) = existing
            .as_ref()
            .and_then(|existing| taken(existing, seeker.database))
    {
        return Err(problem);
    }
    let last = progress.positions.first().map(|position| position.token.as_str());
    let has_own = durable.starts_with(OWN_CONSUMER)
        && existing
            .as_ref()
            .is_some_and(|existing| ownership::is_of_incarnation(existing, last));
    let incarnation = identify(api, stream, &stream_info, progress, has_own).await?;
    let is_first = seeker.former != Some(incarnation.token.as_str());
    // A consumer that a former subscription has left says nothing of where this one begins.
    let is_former = existing
        .as_ref()
        .is_some_and(|existing| ownership::is_of_other(existing, &consumer.id));
    let begins = is_first && progress.positions.is_empty();
    let done = Done {
        floor: progress.ack_floor(&incarnation),
        is_sought: begins && (progress.is_sought || is_former),
        is_read: is_first || seeker.is_behind,
        is_own: existing
            .as_ref()
            .is_some_and(|existing| ownership::is_of(existing, &consumer.id)),
    };
    let mut plan = plan(consumer, done, &stream_info, existing.as_ref())?;
    if plan.removes_former {
        match delete(api, stream, durable).await {
            // Without the right to remove the consumer, it is used as it is where that is no worse than slower.
            Err(error) if error.kind == Kind::PermissionDenied => {
                let done = Done {
                    is_read: false,
                    ..done
                };
                plan = plan::plan(consumer, done, &stream_info, existing.as_ref())?;
                if plan.removes_former {
                    return Err(error);
                }
            }
            deleted => deleted?,
        }
    }
    plan.config.description = Some(format!(
        "litmus_pgnats: calls {} in database {}",
        seeker.function, seeker.database_name
    ));
    plan.config.metadata = ownership::metadata(seeker, &incarnation.token);
    if let Some((acknowledged, floor)) = plan.lost {
        log::warn!(
            "durable subscription of stream \"{stream}\": messages up to {acknowledged} are acknowledged, but the \
             database has those up to {floor} only; it goes on from there"
        );
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
        incarnation,
        consumer_sequence: made.delivered.consumer_sequence,
        stream_sequence: made.delivered.stream_sequence,
        paused,
        keeps_messages: stream_info.config.retention == RetentionPolicy::Limits,
    })
}

/// Creates or updates the consumer. Where the NATS server or the account allows fewer ack pending messages than
/// `config` asks for, `config` leaves their number to the server.
async fn create(api: &Api, stream: &str, durable: &str, config: &mut Config) -> Result<Info> {
    /// A work queue gives each message to one consumer.
    const IN_THE_WAY: [ErrorCode; 2] = [
        ErrorCode::CONSUMER_WQ_MULTIPLE_UNFILTERED,
        ErrorCode::CONSUMER_WQ_CONSUMER_NOT_UNIQUE,
    ];
    let name = format!("CONSUMER.CREATE.{stream}.{durable}");
    let body = |config: &Config| json!({"stream_name": stream, "config": config});
    match api.ask(&name, &body(config)).await? {
        Ok(made) => Ok(made),
        Err(error) if error.err_code == ErrorCode::CONSUMER_MAX_PENDING_ACK_EXCESS => {
            config.max_ack_pending = 0;
            api.request(&name, &body(config)).await
        }
        Err(error) if IN_THE_WAY.contains(&error.err_code) => Err(in_the_way(api, stream, durable).await),
        Err(error) => Err(refused(api.domain.as_deref(), &error)),
    }
}

/// What to say where the other consumers of a work queue take messages that are asked for.
async fn in_the_way(api: &Api, stream: &str, durable: &str) -> Error {
    #[derive(Deserialize)]
    struct Consumers {
        consumers: Vec<Info>,
    }
    let name = format!("CONSUMER.LIST.{stream}");
    let text = format!("work-queue stream \"{stream}\" has another consumer for these messages");
    let found = api.request::<Consumers>(&name, &json!({"offset": 0})).await;
    // Without the right to list consumers, the reason alone is said.
    let Ok(answer) = found else {
        let error = Error::new(Kind::JetStreamRefused, text);
        return error.detail("nats consumer ls names it. Remove it if nobody uses it any more.");
    };
    let others = answer.consumers.into_iter().filter(|other| other.name != durable);
    let names = others.map(|other| match other.config.description {
        Some(description) => format!("\"{}\" ({})", other.name, findings::line(&description)),
        None => format!("\"{}\"", other.name),
    });
    let names: Vec<String> = names.take(5).collect();
    Error::new(Kind::JetStreamRefused, text).detail(format!(
        "Its consumers are {}. Remove the one that nobody uses any more: nats consumer rm {stream} NAME.",
        names.join(", ")
    ))
}

/// The state of a consumer; `None` if it does not exist.
pub async fn existing(api: &Api, stream: &str, durable: &str) -> Result<Option<Info>> {
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

/// Messages that a subscription which takes none has still to come, and when the stream took the first of these, in
/// microseconds since 1970; `None` if there is no consumer.
pub async fn left_over(api: &Api, stream: &str, durable: &str) -> Result<Option<(u64, Option<i64>)>> {
    let Some(info) = existing(api, stream, durable).await? else {
        return Ok(None);
    };
    let left = info.num_pending.saturating_add(info.num_ack_pending as u64);
    if left == 0 {
        return Ok(Some((0, None)));
    }
    let mut filters = info.config.filter_subjects;
    filters.extend(Some(info.config.filter_subject).filter(|filter| !filter.is_empty()));
    if filters.is_empty() {
        filters.push(">".into());
    }
    let mut oldest = None;
    for filter in &filters {
        let first = first_time(api, stream, info.ack_floor.stream_sequence + 1, filter).await;
        // Without the right to read messages, their number is still worth something.
        let first = first.unwrap_or_default();
        oldest = [oldest, first].into_iter().flatten().min();
    }
    Ok(Some((left, oldest)))
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
    pub fn told(&mut self, status: u16, message: &Message) -> bool {
        if status == status::IDLE_HEARTBEAT {
            return true;
        }
        // Any other status ends a pull, and its header says how many messages are still missing from that pull.
        let left = message
            .header("Nats-Pending-Messages")
            .and_then(|left| left.parse().ok());
        self.0 = self.0.saturating_sub(left.unwrap_or(self.0));
        let is_harmless = matches!(status, status::NOT_FOUND | status::TIMEOUT);
        is_harmless || message.description().contains("Batch Completed")
    }
}

/// The subject on which messages of a consumer are asked for.
pub fn next_subject(api: &Api, stream: &str, durable: &str) -> String {
    format!("{}.CONSUMER.MSG.NEXT.{stream}.{durable}", api.prefix)
}

/// Pulls up to `count` messages, which go to `inbox`.
pub async fn pull(
    api: &Api,
    stream: &str,
    durable: &str,
    inbox: &str,
    count: usize,
) -> std::result::Result<(), SendFailure> {
    let body = json!({
        "batch": count,
        "expires": EXPIRES * NANOSECONDS,
        "idle_heartbeat": HEARTBEAT * NANOSECONDS,
    });
    let message = Outbound {
        subject: next_subject(api, stream, durable),
        reply: Some(inbox.into()),
        payload: body.to_string().into(),
        ..Outbound::default()
    };
    api.client.publish(&message).await
}
