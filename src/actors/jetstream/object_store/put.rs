//! Puts an object from a session into its store, chunk by chunk. In the actor thread.

use std::collections::HashMap;

use async_nats::jetstream::object_store::{ObjectInfo, ObjectOptions};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use futures::{FutureExt, TryFutureExt};
use ring::digest::SHA256_OUTPUT_LEN;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Store, WINDOW, purge};
use crate::actors::base::tasks;
use crate::actors::jetstream::api::Api;
use crate::error::{Error, Kind, Result};

/// Bytes of a chunk, the default of NATS's clients; a chunk is smaller if the server takes only less.
const CHUNK: usize = 128 * 1024;

impl Store {
    /// Puts an object of `size` bytes, into a store that is created if it does not exist. Several chunks at a time wait
    /// for their acknowledgements. The metadata is published last, and makes the object visible.
    pub(super) async fn put(&self, name: &str, size: u64, mut parts: mpsc::Receiver<Bytes>) -> Result<()> {
        self.check_domain().await?;
        if !self.api.has_stream(&self.stream()).await? {
            self.create().await?;
        }
        let before = match self.info(name).await {
            Ok(info) => Some(info.nuid),
            Err(error) if error.kind == Kind::ObjectNotFound => None,
            Err(error) => return Err(error),
        };
        let nuid = nuid::next().to_string();
        let mut upload = Upload {
            api: self.api.clone(),
            stream: self.stream(),
            chunks: self.chunks(&nuid),
            visible: false,
        };
        let (chunks, digest) = self.put_chunks(&upload.chunks, size, &mut parts).await?;
        let info = ObjectInfo {
            name: name.to_string(),
            description: None,
            metadata: HashMap::new(),
            headers: None,
            options: Some(ObjectOptions {
                link: None,
                max_chunk_size: Some(self.chunk_size()),
            }),
            bucket: self.name.clone(),
            nuid,
            size: usize::try_from(size).unwrap_or(usize::MAX),
            chunks,
            modified: Some(async_nats::datetime::now()),
            digest: Some(format!("SHA-256={}", URL_SAFE.encode(digest))),
            deleted: false,
        };
        self.put_info(&info).await?;
        upload.visible = true;
        if let Some(old) = before {
            purge(&self.api, &self.stream(), &self.chunks(&old)).await;
        }
        Ok(())
    }

    fn chunk_size(&self) -> usize {
        CHUNK.min(usize::try_from(self.api.client.info().max_payload).unwrap_or(CHUNK))
    }

    /// Publishes the chunks; returns their number and the object's digest.
    async fn put_chunks(
        &self,
        subject: &str,
        size: u64,
        parts: &mut mpsc::Receiver<Bytes>,
    ) -> Result<(usize, Bytes)> {
        let mut waiting = FuturesOrdered::new();
        let mut outcome = self.send_chunks(subject, size, parts, &mut waiting).await;
        // The acknowledgements are awaited even if the upload is given up: a chunk on its way could come after the
        // removal of the others.
        while let Some(acknowledged) = waiting.next().await {
            if let Err(error) = acknowledged {
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    async fn send_chunks<'a>(
        &'a self,
        subject: &str,
        size: u64,
        parts: &mut mpsc::Receiver<Bytes>,
        waiting: &mut FuturesOrdered<LocalBoxFuture<'a, Result<u64>>>,
    ) -> Result<(usize, Bytes)> {
        self.progress.set_total(size);
        let (mut chunks, mut taken) = (0, 0);
        while taken < size {
            let mut part = self.part(parts).await?;
            taken += part.len() as u64;
            while !part.is_empty() {
                let chunk = part.split_to(part.len().min(self.chunk_size()));
                chunks += 1;
                if waiting.len() >= WINDOW {
                    waiting.next().await.transpose()?;
                }
                let length = chunk.len();
                // In order: a chunk is published before the next one begins.
                let pending = self.api.begin_plain(subject.to_string(), chunk).await?;
                let acknowledged = pending.acknowledged(self.api.timeout);
                let counted = acknowledged.inspect_ok(move |_| self.progress.add(length));
                waiting.push_back(counted.boxed_local());
            }
        }
        let digest = self.part(parts).await?;
        if taken != size || digest.len() != SHA256_OUTPUT_LEN {
            return Err(Error::new(Kind::Protocol, "the upload is not what was announced"));
        }
        Ok((chunks, digest))
    }

    /// The next part of an upload. Fails with `Interrupted` if the part does not come in time.
    async fn part(&self, parts: &mut mpsc::Receiver<Bytes>) -> Result<Bytes> {
        let part = timeout(self.api.timeout, parts.recv()).await;
        part.ok()
            .flatten()
            .ok_or_else(|| Error::new(Kind::Interrupted, "the upload was given up"))
    }
}

/// Chunks whose object is not visible yet. Unless it becomes visible, dropping this removes the chunks.
struct Upload {
    api: Api,
    stream: String,
    chunks: String,
    visible: bool,
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.visible {
            return;
        }
        let (api, stream, chunks) = (self.api.clone(), self.stream.clone(), self.chunks.clone());
        tasks::spawn_if_possible("removal of an unfinished object", async move {
            purge(&api, &stream, &chunks).await;
        });
    }
}
