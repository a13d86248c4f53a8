//! An object's way from its store to a session, chunk by chunk. In the actor thread.
//!
//! The chunks are pulled, a window at a time: a consumer that pushes has up to 32 MiB under way.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::jetstream::stream::Stream;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures::StreamExt;
use ring::digest::{Context as Digest, SHA256};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::key_value::{causes, context};
use super::object_store::{Store, WINDOW};
use crate::channel::message::Reply;
use crate::error::{Error, Kind, Result};

/// Largest object that PostgreSQL can hold: its limit for an allocation, less the header of a value.
const MAX_OBJECT: u64 = 0x3fff_ffff - 4;
/// NATS forgets a consumer that has asked for nothing for so long; for reads that were given up.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10);

impl Store {
    /// Streams an object that is no link: its size, its chunks, and an error if they are not what was put.
    pub(super) async fn read(&self, info: &ObjectInfo, parts: mpsc::Sender<(Reply, Bytes)>) -> Result<()> {
        let (name, size) = (&info.name, info.size as u64);
        if size > MAX_OBJECT {
            return Err(Error::new(
                Kind::ObjectTooLarge,
                format!("object \"{name}\" is larger than PostgreSQL can hold"),
            )
            .detail(format!("It has {size} bytes, the limit is {MAX_OBJECT}.")));
        }
        self.progress.set_total(size);
        send(&parts, Reply::Size(size), Bytes::new()).await?;
        let stream = context(&self.api).get_stream_no_info(self.stream()).await;
        let stream = stream.map_err(|error| self.failed("open", &error))?;
        let consumer = pull::Config {
            name: Some(nuid::next().to_string()),
            filter_subject: self.chunks(&info.nuid),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN_AFTER,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer = stream
            .create_consumer(consumer)
            .await
            .map_err(|error| self.failed("read from", &error))?;
        let outcome = match consumer.cached_info().num_pending {
            0 if size > 0 => Err(self.damaged(name, "Its contents are gone.")),
            0 => Ok(()),
            _ => self.pull(&consumer, info, &parts).await,
        };
        forget(&stream, &consumer.cached_info().name).await;
        outcome
    }

    async fn pull(
        &self,
        consumer: &async_nats::jetstream::consumer::Consumer<pull::Config>,
        info: &ObjectInfo,
        parts: &mpsc::Sender<(Reply, Bytes)>,
    ) -> Result<()> {
        let (name, size) = (&info.name, info.size as u64);
        let chunks = consumer.stream().max_messages_per_batch(WINDOW).messages().await;
        let mut chunks = chunks.map_err(|error| self.failed("read from", &error))?;
        let (mut digest, mut received) = (Digest::new(&SHA256), 0);
        loop {
            let late = || Error::new(Kind::AckTimeout, format!("no part of object \"{name}\" in time"));
            let chunk = match timeout(self.api.timeout, chunks.next())
                .await
                .map_err(|_| late())?
            {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Err(self.failed("read from", &error)),
                None => return Err(late()),
            };
            let pending = chunk.info().map_or(0, |info| info.pending);
            received += chunk.payload.len() as u64;
            digest.update(&chunk.payload);
            if received > size {
                return Err(self.damaged(name, &format!("It goes on after its {size} bytes.")));
            }
            let length = chunk.payload.len();
            send(parts, Reply::Part, chunk.message.payload).await?;
            self.progress.add(length);
            if pending == 0 {
                break;
            }
        }
        if received < size {
            return Err(self.damaged(name, &format!("It ends after {received} of {size} bytes.")));
        }
        let digest = format!("SHA-256={}", URL_SAFE.encode(digest.finish()));
        if info.digest.as_ref().is_some_and(|stored| *stored != digest) {
            return Err(self.damaged(
                name,
                "Its contents do not have the digest that was stored with it.",
            ));
        }
        Ok(())
    }

    fn damaged(&self, name: &str, why: &str) -> Error {
        let message = format!("object \"{name}\" of object store \"{}\" is damaged", self.name);
        Error::new(Kind::DigestMismatch, message).detail(why)
    }
}

async fn send(parts: &mpsc::Sender<(Reply, Bytes)>, reply: Reply, part: Bytes) -> Result<()> {
    let sent = parts.send((reply, part)).await;
    sent.map_err(|_| Error::new(Kind::Interrupted, "the download was given up"))
}

/// Removes a consumer at once rather than after its time.
async fn forget(stream: &Stream<()>, consumer: &str) {
    if let Err(error) = stream.delete_consumer(consumer).await {
        log::debug!("could not remove consumer {consumer}: {}", causes(&error));
    }
}
