//! What a stream holds under a subject, read once to where it ends now. In the actor thread.
//!
//! It is pulled, a window at a time: a consumer that pushes has up to 32 MiB under way. The consumer is removed as soon as
//! the read is over or given up: NATS limits how many a stream has, and would remember one for seconds.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::api::{Api, code, lost};
use super::consumer;
use super::consumer::PendingPull;
use crate::error::{Error, Kind, Result};
use crate::nats::ack;
use crate::nats::ack::Delivery;

/// NATS forgets a consumer that has asked for nothing for so long; for what ends without a word, as the runtime may.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// After so much silence JetStream is asked whether there is more: what it has counted may have been deleted meanwhile.
const SILENCE: Duration = Duration::from_millis(500);

/// What to read.
pub struct Part {
    pub subject: String,
    /// Of each subject the last message alone; one that comes meanwhile may be read after it. The part is all of the stream.
    pub is_latest: bool,
    /// Without the payloads.
    pub headers_only: bool,
    /// Most messages under way at a time.
    pub window: usize,
}

/// A read under way.
pub struct StreamRead {
    consumer: Temporary,
    inbox: String,
    messages: Subscriber,
    window: usize,
    asked: PendingPull,
    /// Sequence of the stream's last message in the beginning; only where messages may be replaced.
    end: u64,
    /// Messages that there were for this consumer then. They come first, but some may have been deleted or replaced.
    initial: u64,
    received: u64,
    /// Of what was read, where each subject counts once: hashes.
    subjects: Option<HashSet<u64>>,
    hasher: RandomState,
    /// Messages that are still to come, as far as is known. The server takes one that was replaced for one less, whether
    /// it had counted it or not, so that it may say 0 too early.
    pending: u64,
}

impl StreamRead {
    /// `None` if there is no such stream.
    pub async fn begin(api: &Api, stream: &str, part: Part) -> Result<Option<StreamRead>> {
        let ask =
            async |name: String, body: &Value| api.request_unless(code::STREAM_NOT_FOUND, &name, body).await;
        // Of what is read by sequence alone, nothing comes twice and nothing is replaced: the consumer's count will do.
        let info = if part.is_latest {
            let Some(info) = ask(format!("STREAM.INFO.{stream}"), &Value::Null).await? else {
                return Ok(None);
            };
            Some(info)
        } else {
            None
        };
        let inbox = api.client.client().new_inbox();
        let subscribed = api.client.client().subscribe(inbox.clone()).await;
        let messages = subscribed.map_err(|_| lost())?;
        let consumer = Temporary {
            api: api.clone(),
            stream: stream.to_string(),
            name: nuid::next().to_string(),
        };
        let config = json!({
            "name": consumer.name,
            "filter_subject": part.subject,
            "deliver_policy": if part.is_latest { "last_per_subject" } else { "all" },
            "headers_only": part.headers_only,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": u64::try_from(FORGOTTEN_AFTER.as_nanos()).unwrap_or(0),
            "num_replicas": 1,
            "mem_storage": true,
        });
        let body = json!({"stream_name": stream, "config": config});
        let create = format!("CONSUMER.CREATE.{stream}.{}", consumer.name);
        let Some(made) = ask(create, &body).await? else {
            return Ok(None);
        };
        let pending = made.get("num_pending").and_then(Value::as_u64).unwrap_or(0);
        // The consumer may have missed a subject whose message was replaced just then.
        let initial = pending.max(consumer::number(info.as_ref(), "state", "num_subjects"));
        Ok(Some(StreamRead {
            consumer,
            inbox,
            messages,
            window: part.window,
            asked: PendingPull::default(),
            end: info
                .as_ref()
                .map_or(u64::MAX, |info| consumer::number(Some(info), "state", "last_seq")),
            initial,
            received: 0,
            subjects: part.is_latest.then(HashSet::new),
            hasher: RandomState::new(),
            pending: initial,
        }))
    }

    /// The next message and where it stands; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<(Message, Delivery)>> {
        let deadline = Instant::now() + self.consumer.api.timeout;
        while self.pending > 0 {
            self.ask_for_more().await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(Kind::AckTimeout, "JetStream did not answer in time"));
            }
            match timeout(SILENCE.min(left), self.messages.next()).await {
                Ok(Some(message)) => {
                    if let Some(delivery) = self.take(&message)? {
                        return Ok(Some((message, delivery)));
                    }
                }
                Ok(None) => return Err(lost()),
                Err(_) => self.look(left).await?,
            }
        }
        Ok(None)
    }

    async fn ask_for_more(&mut self) -> Result<()> {
        if self.asked.0 > self.window / 2 {
            return Ok(());
        }
        let (consumer, room) = (&self.consumer, self.window - self.asked.0);
        let pulled = consumer::pull(&consumer.api, &consumer.stream, &consumer.name, &self.inbox, room).await;
        pulled.map_err(|_| lost())?;
        self.asked.0 += room;
        Ok(())
    }

    /// Where a message stands; `None` if it is what JetStream says besides messages.
    fn take(&mut self, message: &Message) -> Result<Option<Delivery>> {
        if let Some(status) = message.status {
            if self.asked.told(status, message) {
                return Ok(None);
            }
            return Err(ended(status, message.description.as_deref()));
        }
        let Some(delivery) = message.reply.as_deref().and_then(ack::parse) else {
            return Ok(None);
        };
        self.asked.came();
        self.received += 1;
        // What was under way when the connection broke does not come again.
        if delivery.consumer_sequence != self.received {
            return Err(lost());
        }
        // Those of the beginning are all there, whatever has come since; or some of them were replaced or deleted.
        let got = match &mut self.subjects {
            Some(subjects) => {
                subjects.insert(self.hasher.hash_one(&*message.subject));
                subjects.len() as u64
            }
            None => self.received,
        };
        let is_complete = delivery.sequence <= self.end && got == self.initial;
        self.pending = match delivery.pending {
            _ if is_complete => 0,
            0 if got < self.initial => 1,
            pending => pending,
        };
        Ok(Some(delivery))
    }

    /// Has JetStream say how many messages are still to come.
    async fn look(&mut self, time: Duration) -> Result<()> {
        let consumer = &self.consumer;
        let api = Api {
            timeout: time,
            ..consumer.api.clone()
        };
        let info = consumer::info(&api, &consumer.stream, &consumer.name).await?;
        self.pending = info.pending + info.delivered.saturating_sub(self.received);
        Ok(())
    }
}

/// Why a read ends before its last message.
fn ended(status: StatusCode, why: Option<&str>) -> Error {
    let why = why.unwrap_or("no description");
    // Whoever had the consumer goes; what a client hears of first, this or the end of the connection, is chance.
    if matches!(why, "Server Shutdown" | "Leadership Change") {
        return lost();
    }
    let detail = format!("JetStream says {status}: {}.", crate::findings::line(why));
    Error::new(Kind::JetStreamRefused, "JetStream refused the request").detail(detail)
}

/// A consumer that is removed when this is dropped, also while it is being made.
struct Temporary {
    api: Api,
    stream: String,
    name: String,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Without a runtime, which is about to end then, NATS forgets it by itself.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (api, stream, name) = (
            self.api.clone(),
            std::mem::take(&mut self.stream),
            std::mem::take(&mut self.name),
        );
        runtime.spawn(async move {
            if let Err(error) = consumer::delete(&api, &stream, &name).await {
                log::debug!("could not remove consumer {name}: {error}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stops_is_a_lost_connection() {
        let conflict = StatusCode::from_u16(409).expect("a status");
        for why in ["Server Shutdown", "Leadership Change"] {
            assert_eq!(ended(conflict, Some(why)).kind, lost().kind, "{why}");
        }
        let refused = ended(conflict, Some("Exceeded MaxWaiting"));
        assert_eq!(refused.kind, Kind::JetStreamRefused);
        assert_eq!(
            refused.detail.as_deref(),
            Some("JetStream says 409: Exceeded MaxWaiting.")
        );
    }
}
