//! Object stores (ADR-20). One actor for each connection, in the actor thread. Objects stream through in both
//! directions: a few chunks are in memory at a time, whatever the object's size. `object_read.rs` has the way out.

use std::collections::HashMap;

use actix::prelude::*;
use async_nats::HeaderMap;
use async_nats::jetstream::object_store::{self, ObjectInfo, ObjectLink, ObjectOptions};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use futures::{FutureExt, TryFutureExt, TryStreamExt};
use ring::digest::SHA256_OUTPUT_LEN;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::api::Api;
use super::interface::{InStore, Parts};
use super::key_value::{causes, context, timestamp};
use crate::actors::base::result_limit::collect;
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::metrics::transfers::TransferProgress;
use crate::channel::message::{Reply, StoreCall};
use crate::error::{Error, Kind, Result};
use crate::nats::names::check_store;
use crate::row::Row;

/// Size of a chunk, the clients' default; less where the server takes less.
const CHUNK: usize = 128 * 1024;
/// Chunks under way at a time, in either direction: 2 MiB.
pub(super) const WINDOW: usize = 16;
/// The actor.
pub struct ObjectStore {
    status: watch::Receiver<ConnectionStatus>,
}

impl ObjectStore {
    pub fn new(status: watch::Receiver<ConnectionStatus>) -> Self {
        ObjectStore { status }
    }
}

impl Actor for ObjectStore {
    type Context = Context<Self>;
}

impl Handler<InStore> for ObjectStore {
    type Result = ResponseFuture<std::result::Result<Result<(Reply, Bytes)>, Parts>>;

    fn handle(
        &mut self,
        InStore {
            domain,
            timeout,
            store,
            call,
            parts,
            progress,
        }: InStore,
        _: &mut Self::Context,
    ) -> Self::Result {
        let Some(api) = Api::of(&self.status, domain, timeout) else {
            return Box::pin(std::future::ready(Err(parts)));
        };
        Box::pin(async move {
            let store = Store {
                api,
                name: store,
                progress,
            };
            let reply = store.answer(call, parts).await;
            Ok(reply.map(|reply| (reply, Bytes::new())))
        })
    }
}

/// A store for the time of one call.
pub(super) struct Store {
    pub(super) api: Api,
    pub(super) name: String,
    pub(super) progress: TransferProgress,
}

impl Store {
    async fn answer(&self, call: StoreCall, parts: Parts) -> Result<Reply> {
        match call {
            StoreCall::Put { name, size } => self.put(&name, size, parts.upload).await.map(|()| Reply::Done),
            StoreCall::Get { name } => self.get(&name, parts.download).await.map(|()| Reply::Done),
            StoreCall::Delete { name } => self.delete(&name).await.map(|()| Reply::Done),
            StoreCall::Info { name } => Ok(Reply::Rows(vec![row(&self.info(&name).await?)])),
            StoreCall::List => self.list().await.map(Reply::Rows),
        }
    }

    pub(super) fn stream(&self) -> String {
        format!("OBJ_{}", self.name)
    }

    fn not_created(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        let failed = Error::new(
            Kind::JetStreamRefused,
            format!("could not create object store \"{}\"", self.name),
        );
        self.api.unless_lost(failed.detail(format!("{}.", causes(error))))
    }

    fn missing(&self, name: &str) -> Error {
        Error::new(
            Kind::ObjectNotFound,
            format!(
                "object \"{name}\" does not exist in object store \"{}\"",
                self.name
            ),
        )
    }

    async fn info(&self, name: &str) -> Result<ObjectInfo> {
        match self.read_info(&self.subject(name)).await? {
            Some(info) if !info.deleted => Ok(info),
            _ => Err(self.missing(name)),
        }
    }

    fn subject(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.name, URL_SAFE.encode(name))
    }

    /// The latest metadata under a subject, a deleted object's too; `None` where there never was one.
    async fn read_info(&self, subject: &str) -> Result<Option<ObjectInfo>> {
        let name = format!("STREAM.MSG.GET.{}", self.stream());
        let answer = match self.api.request(&name, &json!({ "last_by_subj": subject })).await {
            Ok(answer) => answer,
            Err(error) if error.kind == Kind::ObjectNotFound => return Ok(None),
            Err(error) => return Err(self.named(error)),
        };
        let data = answer.get("message").and_then(|message| message.get("data"));
        let data = STANDARD.decode(data.and_then(Value::as_str).unwrap_or_default());
        let mut info: Value = data
            .ok()
            .and_then(|data| serde_json::from_slice(&data).ok())
            .unwrap_or_default();
        if let Some(fields) = info.as_object_mut() {
            // nats-py deletes an object with an empty time.
            fields.retain(|name, value| !(value.is_null() || name == "mtime" && value == ""));
        }
        serde_json::from_value(info).map(Some).map_err(|error| {
            let message = format!("unintelligible metadata in object store \"{}\"", self.name);
            Error::new(Kind::JetStreamRefused, message).detail(format!("Subject {subject}: {error}."))
        })
    }

    /// Says which store an error is about.
    fn named(&self, error: Error) -> Error {
        match error.kind {
            Kind::BucketNotFound => Error::new(
                error.kind,
                format!("object store \"{}\" does not exist", self.name),
            ),
            _ => error,
        }
    }

    /// Refuses to write to a store of another domain where the connection's own has a store of that name: the subjects
    /// of objects are no domain's, so both would take what is published.
    async fn check_domain(&self) -> Result<()> {
        let Some(domain) = &self.api.domain else {
            return Ok(());
        };
        let own = Api {
            domain: None,
            prefix: "$JS.API".into(),
            ..self.api.clone()
        };
        // Without a JetStream or a store of its own there is nothing to mistake.
        let Ok(found) = own
            .request(&format!("STREAM.INFO.{}", self.stream()), &json!(null))
            .await
        else {
            return Ok(());
        };
        match found.get("domain").and_then(|found| found.as_str()) {
            Some(other) if other != domain => {
                let message = format!("object store \"{}\" exists in two JetStream domains", self.name);
                let detail =
                    format!("Domain \"{other}\" would store what is meant for \"{domain}\" as well.");
                Err(Error::new(Kind::JetStreamRefused, message).detail(detail))
            }
            _ => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<Row>> {
        let subjects = match self.subjects().await {
            // As for a bucket: where there is no store there is nothing to list, and none is made.
            Err(error) if error.kind == Kind::BucketNotFound => return Ok(Vec::new()),
            subjects => subjects?,
        };
        let infos = futures::stream::iter(&subjects)
            .map(|subject| self.read_info(subject))
            .buffered(WINDOW);
        let rows = infos.try_filter_map(async |info| {
            let there = info.filter(|info| !info.deleted);
            Ok(there.map(|info| row(&info)))
        });
        collect(rows).await
    }

    /// The subjects of the objects' metadata.
    async fn subjects(&self) -> Result<Vec<String>> {
        let (name, filter) = (
            format!("STREAM.INFO.{}", self.stream()),
            format!("$O.{}.M.>", self.name),
        );
        let mut all = Vec::new();
        loop {
            let page = json!({ "subjects_filter": filter, "offset": all.len() });
            let page = self.api.request(&name, &page).await?;
            let found = page.get("state").and_then(|state| state.get("subjects"));
            let found = found.and_then(Value::as_object).into_iter().flatten();
            let before = all.len();
            all.extend(found.map(|(subject, _)| subject.clone()));
            let total = page.get("total").and_then(Value::as_u64).unwrap_or(0);
            if all.len() == before || all.len() as u64 >= total {
                return Ok(all);
            }
        }
    }

    /// Chunks are published with a window of acknowledgements; the object becomes visible with its metadata, last.
    async fn put(&self, name: &str, size: u64, mut parts: mpsc::Receiver<Bytes>) -> Result<()> {
        self.check_domain().await?;
        if !self.api.has_stream(&self.stream()).await? {
            let config = object_store::Config {
                bucket: self.name.clone(),
                ..Default::default()
            };
            let created = context(&self.api).create_object_store(config).await;
            created.map_err(|error| self.not_created(&error))?;
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

    /// Puts an object's metadata in place of its last.
    async fn put_info(&self, info: &ObjectInfo) -> Result<()> {
        let subject = self.subject(&info.name);
        let info = serde_json::to_vec(info).map_err(|error| {
            Error::new(Kind::JetStreamRefused, "could not describe the object").detail(format!("{error}."))
        })?;
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_ROLLUP, "sub");
        self.api
            .publish_plain(subject, Some(headers), info.into())
            .await
            .map(|_| ())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.check_domain().await?;
        let info = self.info(name).await?;
        let deleted = ObjectInfo {
            size: 0,
            chunks: 0,
            deleted: true,
            ..info
        };
        self.put_info(&deleted).await?;
        purge(&self.api, &self.stream(), &self.chunks(&deleted.nuid)).await;
        Ok(())
    }

    pub(super) fn chunks(&self, nuid: &str) -> String {
        format!("$O.{}.C.{nuid}", self.name)
    }

    fn chunk_size(&self) -> usize {
        CHUNK.min(self.api.client.client().max_payload())
    }

    /// How many chunks, and the digest of all.
    async fn put_chunks(
        &self,
        subject: &str,
        size: u64,
        parts: &mut mpsc::Receiver<Bytes>,
    ) -> Result<(usize, Bytes)> {
        let mut waiting = FuturesOrdered::new();
        let mut outcome = self.send_chunks(subject, size, parts, &mut waiting).await;
        // Also where the upload is given up: what is on its way could come after the removal of the others.
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
                let published = self.api.publish_plain(subject.to_string(), None, chunk);
                let counted = published.inspect_ok(move |_| self.progress.add(length));
                waiting.push_back(counted.boxed_local());
            }
        }
        let digest = self.part(parts).await?;
        if taken != size || digest.len() != SHA256_OUTPUT_LEN {
            return Err(Error::new(Kind::Protocol, "the upload is not what was announced"));
        }
        Ok((chunks, digest))
    }

    /// The next part of an upload.
    async fn part(&self, parts: &mut mpsc::Receiver<Bytes>) -> Result<Bytes> {
        let part = timeout(self.api.timeout, parts.recv()).await;
        part.ok()
            .flatten()
            .ok_or_else(|| Error::new(Kind::Interrupted, "the upload was given up"))
    }

    async fn get(&self, name: &str, parts: mpsc::Sender<(Reply, Bytes)>) -> Result<()> {
        let info = self.info(name).await?;
        let Some(link) = link_of(&info) else {
            return self.read(&info, parts).await;
        };
        let Some(target) = &link.name else {
            let message = format!("object \"{name}\" is a link to object store \"{}\"", link.bucket);
            return Err(Error::new(Kind::Unsupported, message));
        };
        check_store(&link.bucket)?;
        let store = Store {
            api: self.api.clone(),
            name: link.bucket.clone(),
            progress: self.progress.clone(),
        };
        let info = store.info(target).await?;
        // Clients make no such links; following them could go round in circles.
        if link_of(&info).is_some() {
            let message = format!("object \"{name}\" is a link to another link");
            return Err(Error::new(Kind::Unsupported, message));
        }
        store.read(&info, parts).await
    }
}

fn link_of(info: &ObjectInfo) -> Option<&ObjectLink> {
    info.options.as_ref()?.link.as_ref()
}

/// Chunks without an object yet; removed if they do not become one.
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
        // Not at the runtime's end, when there is nothing left to run it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (api, stream, chunks) = (self.api.clone(), self.stream.clone(), self.chunks.clone());
            runtime.spawn(async move { purge(&api, &stream, &chunks).await });
        }
    }
}

async fn purge(api: &Api, stream: &str, subject: &str) {
    if let Err(error) = api
        .request(&format!("STREAM.PURGE.{stream}"), &json!({ "filter": subject }))
        .await
    {
        log::warn!("could not remove unused chunks from stream {stream}: {error}");
    }
}

/// The columns of `nats_get_file_info`.
fn row(info: &ObjectInfo) -> Row {
    let headers = info.headers.as_ref().map(|headers| {
        let values = headers.iter().map(|(name, values)| {
            let values = values.iter().map(|value| value.as_str()).collect::<Vec<_>>();
            (name.to_string(), json!(values))
        });
        serde_json::Value::Object(values.collect()).to_string()
    });
    vec![
        Some(info.name.clone()),
        info.description.clone(),
        Some(json!(info.metadata).to_string()),
        headers,
        info.options
            .as_ref()
            .and_then(|options| serde_json::to_string(options).ok()),
        Some(info.bucket.clone()),
        Some(info.nuid.clone()),
        Some(info.size.to_string()),
        Some(info.chunks.to_string()),
        info.modified.map(timestamp),
        info.digest.clone(),
        Some(info.deleted.to_string()),
    ]
}
