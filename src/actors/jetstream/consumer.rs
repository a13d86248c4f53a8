//! The durable pull consumer of a subscription, as JetStream keeps it (ADR-13): made if it is not there, made anew where
//! it knows of more than the database does. In the actor thread.

use async_nats::{Client, Message, StatusCode};
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::api::{Api, code};
use crate::channel::work::{Consumer, DeliverFrom, StreamProgress};
use crate::error::{Error, Kind, Result};
use crate::nats::names::OWN_CONSUMER;

/// Messages that JetStream lets wait for their acknowledgement: those in hand, and those that wait to be tried again.
const MAX_ACK_PENDING: u64 = 65_536;
/// A pull ends after so many seconds; JetStream says that it is there every so many.
const EXPIRES: u64 = 30;
pub const HEARTBEAT: u64 = 5;
const NANO: u64 = 1_000_000_000;

/// What is known of the consumer when pulling begins.
pub struct Found {
    /// Messages that the consumer has still to deliver for the first time.
    pub pending: u64,
    /// When the stream was created.
    pub stream_created: String,
    /// The last delivery's number, and its message's sequence in the stream.
    pub consumer_sequence: u64,
    pub stream_sequence: u64,
    /// Up to this sequence there is nothing to do.
    pub base: u64,
}

/// Finds the subscription's consumer, or makes it. `is_first`: the progress was read just now, so that a consumer which
/// is further has acknowledgements of what the database has lost, in a failover say.
pub async fn find(
    api: &Api,
    stream: &str,
    consumer: &Consumer,
    progress: &StreamProgress,
    is_first: bool,
) -> Result<Found> {
    let info = api
        .request_unless(
            code::STREAM_NOT_FOUND,
            &format!("STREAM.INFO.{stream}"),
            &Value::Null,
        )
        .await?
        .ok_or_else(|| Error::new(Kind::NoStream, format!("stream \"{stream}\" does not exist")))?;
    let stream_created = text(&info, "created");
    let retention = info
        .get("config")
        .map_or_else(String::new, |config| text(config, "retention"));
    // Another stream of that name begins anew, and all of it is new.
    let is_other = progress
        .stream_created
        .as_ref()
        .is_some_and(|created| *created != stream_created);
    let floor = if is_other { Some(0) } else { progress.floor };
    let durable = &consumer.durable;
    let existing = api
        .request_unless(
            code::CONSUMER_NOT_FOUND,
            &format!("CONSUMER.INFO.{stream}.{durable}"),
            &Value::Null,
        )
        .await?;
    let acknowledged = number(existing.as_ref(), "ack_floor", "stream_seq");
    let has_lost = is_first && floor.is_some_and(|floor| floor > 0 && acknowledged > floor);
    // What a runtime had that is gone comes at once, and in order, from a new consumer; the former one would wait for it
    // to be acknowledged. One that the user has named may be used by others too.
    let is_own = consumer.durable.starts_with(OWN_CONSUMER);
    // Without a consumer, such a stream forgets what is not acknowledged.
    let keeps_consumer = retention == "interest";
    // Where it would begin has to be known.
    let begins_anew = existing.is_some()
        && floor.is_some()
        && !keeps_consumer
        && (consumer.stop_on_failure || has_lost || (is_first && is_own));
    if has_lost && begins_anew {
        log::warn!(
            "durable subscription of stream \"{stream}\": messages up to {acknowledged} are acknowledged, but the \
             database has those up to {} only; it goes on from there",
            floor.unwrap_or(0)
        );
    }
    if begins_anew {
        delete(api, stream, durable).await?;
    }
    let former = existing.as_ref().filter(|_| !begins_anew);
    let mut config = configuration(consumer);
    // All that a work queue still has is not acknowledged; its consumers cannot begin elsewhere.
    let floor = if retention == "workqueue" { Some(0) } else { floor };
    config.extend(begin(consumer, floor, former));
    let body = json!({"stream_name": stream, "config": config});
    let create = format!("CONSUMER.CREATE.{stream}.{durable}");
    let mut made = api.request(&create, &body).await?;
    let has_delivered = |made: &Value| number(Some(made), "delivered", "consumer_seq") > 0;
    // A nats-server that is killed while it removes a consumer leaves its state behind, which the next one of that name
    // takes up: what it had in hand, and acknowledgements of what the database has lost. Where others use the consumer it
    // may be they who have made it, just now; on a work queue, what they have acknowledged is not this database's.
    let is_ahead = |made: &Value| {
        retention == "limits"
            && floor.is_some_and(|floor| number(Some(made), "ack_floor", "stream_seq") > floor)
    };
    let is_leftover = |made: &Value| has_delivered(made) && (is_own || is_ahead(made));
    if former.is_none() && !keeps_consumer && is_leftover(&made) {
        delete(api, stream, durable).await?;
        made = api.request(&create, &body).await?;
        if is_leftover(&made) {
            let message = format!("consumer \"{durable}\" has a state that is not this subscription's");
            return Err(Error::new(Kind::JetStreamRefused, message));
        }
    }
    let begins_after = if has_delivered(&made) {
        "ack_floor"
    } else {
        "delivered"
    };
    Ok(Found {
        base: number(Some(&made), begins_after, "stream_seq"),
        pending: made.get("num_pending").and_then(Value::as_u64).unwrap_or(0),
        stream_created,
        consumer_sequence: number(Some(&made), "delivered", "consumer_seq"),
        stream_sequence: number(Some(&made), "delivered", "stream_seq"),
    })
}

/// Removes a consumer, if it is there.
pub async fn delete(api: &Api, stream: &str, durable: &str) -> Result<()> {
    let name = format!("CONSUMER.DELETE.{stream}.{durable}");
    let deleted = api.request_unless(code::CONSUMER_NOT_FOUND, &name, &Value::Null);
    deleted.await.map(|_| ())
}

fn configuration(consumer: &Consumer) -> Map<String, Value> {
    let filter = match consumer.filter_subjects.as_slice() {
        [] => None,
        [one] => Some(("filter_subject", json!(one))),
        many => Some(("filter_subjects", json!(many))),
    };
    let settings = [
        ("name", json!(consumer.durable)),
        ("durable_name", json!(consumer.durable)),
        ("ack_policy", json!("explicit")),
        ("ack_wait", json!(consumer.ack_wait_ms * 1_000_000)),
        // Who gives up is the subscription, which keeps what it gives up.
        ("max_deliver", json!(-1)),
        ("max_ack_pending", json!(MAX_ACK_PENDING)),
        ("replay_policy", json!("instant")),
    ];
    let settings = settings.into_iter().chain(filter);
    settings.map(|(name, value)| (name.to_string(), value)).collect()
}

/// Where the consumer begins; one that exists cannot be told otherwise.
fn begin(consumer: &Consumer, floor: Option<u64>, former: Option<&Value>) -> Vec<(String, Value)> {
    if let Some(former) = former.and_then(|former| former.get("config")) {
        let names = ["deliver_policy", "opt_start_seq", "opt_start_time"];
        let former = names.into_iter().map(|name| (name, former.get(name)));
        return former
            .filter_map(|(name, value)| Some((name.to_string(), value?.clone())))
            .collect();
    }
    let sequence = |sequence: u64| ("by_start_sequence", Some(("opt_start_seq", json!(sequence))));
    let (policy, from) = match (floor, &consumer.start) {
        (Some(0), _) | (None, DeliverFrom::All) => ("all", None),
        (Some(floor), _) => sequence(floor + 1),
        (None, DeliverFrom::New) => ("new", None),
        (None, DeliverFrom::Sequence(start)) => sequence(*start),
        (None, DeliverFrom::Time(time)) => ("by_start_time", Some(("opt_start_time", json!(time)))),
    };
    let settings = [("deliver_policy", json!(policy))].into_iter().chain(from);
    settings.map(|(name, value)| (name.to_string(), value)).collect()
}

/// How far a consumer is.
pub struct ConsumerInfo {
    /// Messages that it has still to deliver for the first time.
    pub pending: u64,
    /// Number of the last delivery.
    pub delivered: u64,
    /// Up to this sequence all is acknowledged, or gone from the stream.
    pub ack_floor: u64,
}

pub async fn info(api: &Api, stream: &str, durable: &str) -> Result<ConsumerInfo> {
    let name = format!("CONSUMER.INFO.{stream}.{durable}");
    let info = api.request(&name, &Value::Null).await?;
    Ok(ConsumerInfo {
        pending: info.get("num_pending").and_then(Value::as_u64).unwrap_or(0),
        delivered: number(Some(&info), "delivered", "consumer_seq"),
        ack_floor: number(Some(&info), "ack_floor", "stream_seq"),
    })
}

/// Messages that were asked for and have not come.
#[derive(Default)]
pub struct PendingPull(pub usize);

impl PendingPull {
    /// One of them.
    pub fn came(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    /// What the consumer says besides messages; `false` if it is of no more use.
    pub fn told(&mut self, status: StatusCode, message: &Message) -> bool {
        if status == StatusCode::IDLE_HEARTBEAT {
            return true;
        }
        // A pull has ended.
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

/// Asks the consumer for messages, which go to `inbox`.
pub async fn pull(
    api: &Api,
    stream: &str,
    durable: &str,
    inbox: &str,
    count: usize,
) -> std::result::Result<(), async_nats::PublishError> {
    let client: &Client = api.client.client();
    let subject = format!("{}.CONSUMER.MSG.NEXT.{stream}.{durable}", api.prefix);
    let body = json!({"batch": count, "expires": EXPIRES * NANO, "idle_heartbeat": HEARTBEAT * NANO});
    client
        .publish_with_reply(subject, inbox.to_string(), Bytes::from(body.to_string()))
        .await
}

fn text(value: &Value, name: &str) -> String {
    value
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_string()
}

/// A number in an object of an answer; 0 if there is none.
pub fn number(value: Option<&Value>, object: &str, name: &str) -> u64 {
    value
        .and_then(|value| value.get(object))
        .and_then(|object| object.get(name))
        .and_then(Value::as_u64)
        .unwrap_or(0)
}
