//! Reads once what a stream holds under a subject, up to where the stream ends now. In the actor thread.
//!
//! Messages are pulled, a window at a time: a push consumer would have up to 32 MiB under way. The consumer is removed
//! as soon as the read is over or given up, because NATS limits how many consumers a stream has, and would keep this
//! one for seconds.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, Config, DeliverPolicy, Info, ReplayPolicy};
use futures::StreamExt;
use serde_json::json;
use tokio::time::{Instant, timeout, timeout_at};

use super::api::{Api, lost, no_answer};
use super::consumer::{self, PendingPull};
use crate::actors::base::tasks;
use crate::actors::client::Subscriber;
use crate::actors::connection::delivery::{forbidden, too_many_subscriptions};
use crate::error::{Error, Kind, Result};
use crate::nats::ack;
use crate::nats::ack::Delivery;
use crate::nats::message::Message;

/// NATS removes a consumer that is inactive for this long. That is for reads which end without removing it, as when the
/// runtime worker dies.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// After this long without a message, JetStream is asked how many are left: messages that it counted may be deleted by
/// now.
const SILENCE: Duration = Duration::from_millis(500);

/// What to read.
pub struct Part {
    pub subject: String,
    /// Only the last message of each subject is read; a newer one that comes meanwhile may follow. `subject` has to
    /// match all of the stream's subjects then.
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
    /// Sequence of the stream's last message when the read began; `u64::MAX` unless [`Part::is_latest`], where messages
    /// may be replaced.
    end: u64,
    /// Number of messages for this consumer when the read began. These come first, but some may have been deleted or
    /// replaced.
    initial: u64,
    received: u64,
    /// Hashes of the subjects that were read, where each subject counts once; otherwise `None`.
    subjects: Option<HashSet<u64>>,
    hasher: RandomState,
    /// Messages that are still to come, as far as is known. The server subtracts 1 for a replaced message even if it
    /// had not counted that message, so it may say 0 too early.
    pending: u64,
}

impl StreamRead {
    /// Begins a read; `None` if the stream does not exist.
    pub async fn begin(api: &Api, stream: &str, part: Part) -> Result<Option<StreamRead>> {
        // Where all messages are read, none comes twice and none is replaced: the consumer's count will do.
        let info = if part.is_latest {
            let Some(info) = api.stream_info(stream).await? else {
                return Ok(None);
            };
            Some(info)
        } else {
            None
        };
        let inbox = api.client.new_inbox();
        let before = api.client.refused_for_number();
        let messages = api.client.subscribe(&inbox, None).map_err(|_| lost())?;
        let consumer = Temporary {
            api: api.clone(),
            stream: stream.to_string(),
            name: nuid::next().to_string(),
        };
        let body = json!({"stream_name": stream, "config": configuration(&consumer.name, &part)});
        let create = format!("CONSUMER.CREATE.{stream}.{}", consumer.name);
        let made = api.request_unless::<Info>(ErrorCode::STREAM_NOT_FOUND, &create, &body);
        let Some(made) = made.await? else {
            return Ok(None);
        };
        // By the answer to a later request the server has read the subscription.
        if api.client.refused_for_number() > before {
            return Err(too_many_subscriptions(&inbox));
        }
        // The consumer may have missed a subject whose message was replaced while the consumer was created.
        let subjects = info.as_ref().map_or(0, |info| info.state.num_subjects);
        let initial = made.num_pending.max(subjects);
        Ok(Some(StreamRead {
            consumer,
            inbox,
            messages,
            window: part.window,
            asked: PendingPull::default(),
            end: info.map_or(u64::MAX, |info| info.state.last_seq),
            initial,
            received: 0,
            subjects: part.is_latest.then(HashSet::new),
            hasher: RandomState::new(),
            pending: initial,
        }))
    }

    /// The next message and its place in the stream; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<(Message, Delivery)>> {
        let deadline = Instant::now() + self.consumer.api.timeout;
        while self.pending > 0 {
            let asked = timeout_at(deadline, self.ask_for_more()).await;
            asked.map_err(|_| no_answer())??;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(no_answer());
            }
            match timeout(SILENCE.min(left), self.messages.next()).await {
                Ok(Some(message)) => {
                    if let Some(delivery) = self.take(&message)? {
                        return Ok(Some((message, delivery)));
                    }
                }
                Ok(None) => return Err(lost()),
                Err(_) => self.ask_pending(left).await?,
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
        if self.received == 0 {
            // A pull that the user may not send has no answer. The first messages take a round trip as well.
            let client = &consumer.api.client;
            let next = consumer::next_subject(&consumer.api, &consumer.stream, &consumer.name);
            client.round_trip().await.map_err(|_| lost())?;
            if client.is_forbidden(&next) {
                return Err(forbidden(&next));
            }
        }
        Ok(())
    }

    /// The place of a message in the stream; `None` for a status message of JetStream.
    fn take(&mut self, message: &Message) -> Result<Option<Delivery>> {
        let place = message.reply.as_deref().and_then(ack::parse);
        // A stored message may have a status in its headers, which is not the server's.
        if let Some(status) = message.status.filter(|_| place.is_none()) {
            if self.asked.told(status, message) {
                return Ok(None);
            }
            return Err(ended(status, &message.description()));
        }
        let Some(delivery) = place else {
            return Ok(None);
        };
        self.asked.came();
        self.received += 1;
        // A gap means that messages were lost with a connection that broke; they do not come again.
        if delivery.consumer_sequence != self.received {
            return Err(lost());
        }
        // The read is complete when all initial messages have come, whatever was published since. If some were replaced
        // or deleted, the server's count decides.
        let got = match &mut self.subjects {
            Some(subjects) => {
                subjects.insert(self.hasher.hash_one(&message.subject));
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

    /// Asks JetStream how many messages are still to come.
    async fn ask_pending(&mut self, time: Duration) -> Result<()> {
        let consumer = &self.consumer;
        let api = Api {
            timeout: time,
            ..consumer.api.clone()
        };
        let info = consumer::info(&api, &consumer.stream, &consumer.name).await?;
        let delivered = info.delivered.consumer_sequence;
        self.pending = info.num_pending + delivered.saturating_sub(self.received);
        Ok(())
    }
}

/// An ephemeral consumer that acknowledges nothing.
fn configuration(name: &str, part: &Part) -> Config {
    Config {
        name: Some(name.to_string()),
        filter_subject: part.subject.clone(),
        deliver_policy: if part.is_latest {
            DeliverPolicy::LastPerSubject
        } else {
            DeliverPolicy::All
        },
        headers_only: part.headers_only,
        ack_policy: AckPolicy::None,
        replay_policy: ReplayPolicy::Instant,
        inactive_threshold: FORGOTTEN_AFTER,
        num_replicas: 1,
        memory_storage: true,
        ..Config::default()
    }
}

/// The error for a read that ends before its last message.
fn ended(status: u16, why: &str) -> Error {
    // The server that had the consumer stops. The client hears of this or of the connection's end first, by chance, so
    // both give one error.
    if matches!(why, "Server Shutdown" | "Leadership Change") {
        return lost();
    }
    let detail = format!("JetStream says {status}: {}.", crate::findings::line(why));
    Error::new(Kind::JetStreamRefused, "JetStream refused the request").detail(detail)
}

/// A consumer that is removed when this is dropped, also while the consumer is being created.
struct Temporary {
    api: Api,
    stream: String,
    name: String,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let (api, stream, name) = (
            self.api.clone(),
            std::mem::take(&mut self.stream),
            std::mem::take(&mut self.name),
        );
        // At the end of the runtime worker nothing can be started, and NATS removes the consumer by itself.
        tasks::spawn_if_possible("removal of a temporary consumer", async move {
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
        for why in ["Server Shutdown", "Leadership Change"] {
            assert_eq!(ended(409, why).kind, lost().kind, "{why}");
        }
        let refused = ended(409, "Exceeded MaxWaiting");
        assert_eq!(refused.kind, Kind::JetStreamRefused);
        assert_eq!(
            refused.detail.as_deref(),
            Some("JetStream says 409: Exceeded MaxWaiting.")
        );
    }
}
