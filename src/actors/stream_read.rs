//! What a stream holds under a subject, read once to where it ends now. In the actor thread.
//!
//! It is pulled, a window at a time: a consumer that pushes has up to 32 MiB under way. The consumer is removed as soon as
//! the read is over or given up: NATS limits how many a stream has, and would remember one for seconds.

use std::error::Error as Cause;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull::{self, Config};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::stream::Stream;
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::jetstream::{Api, lost};
use super::key_value::{causes, context};
use crate::error::Error;

/// NATS forgets a consumer that has asked for nothing for so long; for what ends without a word, as the runtime may.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);
/// After so much silence JetStream is asked whether there is more: what it has counted may have been deleted meanwhile.
const SILENCE: Duration = Duration::from_millis(500);

/// What to read.
pub struct Part {
    pub subject: String,
    /// Of each subject the last message alone.
    pub is_latest: bool,
    /// Without the payloads.
    pub headers_only: bool,
    /// Most messages under way at a time.
    pub window: usize,
}

/// Why there is no next message.
pub enum Unread {
    /// JetStream said nothing for the time that it has for an answer.
    Late,
    /// The connection broke in between.
    Lost,
    Failed(async_nats::Error),
}

impl Unread {
    /// As the caller has it, who knows what it was that was read.
    pub fn error(
        self,
        late: impl FnOnce() -> Error,
        failed: impl FnOnce(&(dyn Cause + 'static)) -> Error,
    ) -> Error {
        match self {
            Unread::Late => late(),
            Unread::Lost => lost(),
            Unread::Failed(error) => failed(&*error),
        }
    }
}

impl<E: Into<async_nats::Error>> From<E> for Unread {
    fn from(error: E) -> Self {
        Unread::Failed(error.into())
    }
}

/// A read under way.
pub struct StreamRead {
    /// For the next message.
    limit: Duration,
    messages: pull::Stream,
    consumer: Temporary,
    received: u64,
    /// Messages that are still to come, as far as is known.
    pending: u64,
}

impl StreamRead {
    pub async fn begin(api: &Api, stream: &str, part: Part) -> Result<StreamRead, Unread> {
        let stream = context(api).get_stream_no_info(stream).await?;
        let config = Config {
            name: Some(nuid::next().to_string()),
            filter_subject: part.subject,
            deliver_policy: if part.is_latest {
                DeliverPolicy::LastPerSubject
            } else {
                DeliverPolicy::All
            },
            headers_only: part.headers_only,
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN_AFTER,
            num_replicas: 1,
            memory_storage: true,
            ..Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let consumer = Temporary { stream, consumer };
        let messages = consumer.consumer.stream().max_messages_per_batch(part.window);
        Ok(StreamRead {
            limit: api.timeout,
            messages: messages.messages().await?,
            received: 0,
            pending: consumer.consumer.cached_info().num_pending,
            consumer,
        })
    }

    /// The next message; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Message>, Unread> {
        let deadline = Instant::now() + self.limit;
        while self.pending > 0 {
            let wait = SILENCE.min(deadline.saturating_duration_since(Instant::now()));
            let Ok(message) = timeout(wait, self.messages.next()).await else {
                if Instant::now() >= deadline {
                    return Err(Unread::Late);
                }
                self.ask().await?;
                continue;
            };
            let message = message.ok_or("reading has ended early")??;
            let info = message.info()?;
            self.received += 1;
            // What was under way when the connection broke does not come again.
            if info.consumer_sequence != self.received {
                return Err(Unread::Lost);
            }
            self.pending = info.pending;
            return Ok(Some(message));
        }
        Ok(None)
    }

    /// Has JetStream say how many messages are still to come.
    async fn ask(&mut self) -> Result<(), Unread> {
        let info = self.consumer.consumer.get_info().await?;
        let under_way = info.delivered.consumer_sequence.saturating_sub(self.received);
        self.pending = info.num_pending + under_way;
        Ok(())
    }
}

/// A consumer that is removed when it is dropped.
struct Temporary {
    stream: Stream<()>,
    consumer: Consumer<Config>,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Without a runtime, which is about to end then, NATS forgets it by itself.
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (stream, name) = (self.stream.clone(), self.consumer.cached_info().name.clone());
        runtime.spawn(async move {
            if let Err(error) = stream.delete_consumer(&name).await {
                log::debug!("could not remove consumer {name}: {}", causes(&error));
            }
        });
    }
}
