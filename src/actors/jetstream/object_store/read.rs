//! Reads an object from its store for a session, chunk by chunk. In the actor thread.

use async_nats::jetstream::object_store::ObjectInfo;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use ring::digest::{Context as Digest, SHA256};
use tokio::sync::mpsc;

use super::{Store, WINDOW};
use crate::actors::jetstream::stream_read::{Part, StreamRead};
use crate::channel::message::Reply;
use crate::error::{Error, Kind, Result};

/// Bytes of the largest object that PostgreSQL can hold: its limit for an allocation, less the header of a value.
const MAX_OBJECT: u64 = 0x3fff_ffff - 4;

impl Store {
    /// Sends the size and then the chunks of an object that is no link. Fails with `DigestMismatch` if the chunks are
    /// not what was put, and with `ObjectTooLarge`.
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
        let part = Part {
            subject: self.chunks(&info.nuid),
            is_latest: false,
            headers_only: false,
            window: WINDOW,
        };
        let chunks = StreamRead::begin(&self.api, &self.stream(), part).await?;
        let mut chunks = chunks.ok_or_else(|| self.damaged(name, "Its contents are gone."))?;
        let (mut digest, mut received) = (Digest::new(&SHA256), 0);
        while let Some((chunk, _)) = chunks.next().await? {
            received += chunk.payload.len() as u64;
            digest.update(&chunk.payload);
            if received > size {
                return Err(self.damaged(name, &format!("It goes on after its {size} bytes.")));
            }
            let length = chunk.payload.len();
            send(&parts, Reply::Part, chunk.payload).await?;
            self.progress.add(length);
        }
        if received == 0 && size > 0 {
            return Err(self.damaged(name, "Its contents are gone."));
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
