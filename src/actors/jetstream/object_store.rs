//! The actor of object stores (ADR-20), one for each connection. Objects stream through in both directions: a few
//! chunks are in memory at a time, whatever the object's size. `object_store/put.rs` has the way in,
//! `object_store/read.rs` the way out. In the actor thread.

use actix::prelude::*;
use async_nats::jetstream::object_store::{ObjectInfo, ObjectLink};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::answers::timestamp;
use super::answers::{StoredMessage, StreamInfo};
use super::api::Api;
use super::bucket::ROLLUP;
use super::interface::{InStore, Parts, unless_cancelled};
use crate::actors::base::result_limit::collect;
use crate::actors::base::tasks::{self, Vital};
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::metrics::transfers::TransferProgress;
use crate::channel::message::{Reply, StoreCall};
use crate::error::{Error, Kind, Result};
use crate::nats::names::check_store;
use crate::row::Row;

mod put;
mod read;

/// Chunks under way at a time, in either direction: 2 MiB.
pub(super) const WINDOW: usize = 16;

/// The actor of a connection's object stores.
pub struct ObjectStore {
    status: watch::Receiver<ConnectionStatus>,
    _vital: Vital,
}

impl ObjectStore {
    pub fn new(status: watch::Receiver<ConnectionStatus>) -> Self {
        ObjectStore {
            status,
            _vital: Vital::new("object stores"),
        }
    }
}

impl Actor for ObjectStore {
    type Context = Context<Self>;
}

impl Handler<InStore> for ObjectStore {
    type Result = ResponseFuture<std::result::Result<Result<(Reply, Bytes)>, Parts>>;

    fn handle(&mut self, asked: InStore, _: &mut Self::Context) -> Self::Result {
        let InStore {
            domain,
            timeout,
            store,
            call,
            parts,
            progress,
            cancel,
        } = asked;
        let Some(api) = Api::of(&self.status, domain, timeout) else {
            return Box::pin(std::future::ready(Err(parts)));
        };
        Box::pin(async move {
            let store = Store {
                api,
                name: store,
                progress,
            };
            // A put or delete that is cut short would leave chunks behind that belong to no object, so neither is
            // cancelled: a put ends at the next part when the session gives it up, and a delete is two requests.
            let cancel = match call {
                StoreCall::Put { .. } | StoreCall::Delete { .. } => CancellationToken::new(),
                _ => cancel,
            };
            let answer = unless_cancelled(&cancel, store.answer(call, parts));
            let reply = tasks::answer("call of an object store", answer).await;
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

    /// Creates the store, with the settings that NATS's clients give it.
    pub(super) async fn create(&self) -> Result<()> {
        let config = json!({
            "name": self.stream(),
            "subjects": [format!("$O.{}.C.>", self.name), format!("$O.{}.M.>", self.name)],
            "storage": "file",
            "num_replicas": 1,
            "discard": "new",
            "allow_rollup_hdrs": true,
            "allow_direct": true,
            "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1, "max_consumers": -1, "max_msgs_per_subject": -1,
        });
        let name = format!("STREAM.CREATE.{}", self.stream());
        self.api
            .order(&name, &config)
            .await
            .map_err(|error| match error.kind {
                Kind::JetStreamRefused => {
                    let message = format!("could not create object store \"{}\"", self.name);
                    Error { message, ..error }
                }
                _ => error,
            })
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        Error::new(
            Kind::ObjectNotFound,
            format!(
                "object \"{name}\" does not exist in object store \"{}\"",
                self.name
            ),
        )
    }

    pub(super) async fn info(&self, name: &str) -> Result<ObjectInfo> {
        match self.read_info(&self.subject(name)).await? {
            Some(info) if !info.deleted => Ok(info),
            _ => Err(self.missing(name)),
        }
    }

    pub(super) fn subject(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.name, URL_SAFE.encode(name))
    }

    /// The latest metadata under a subject, a deleted object's too; `None` if there never was any.
    async fn read_info(&self, subject: &str) -> Result<Option<ObjectInfo>> {
        let name = format!("STREAM.MSG.GET.{}", self.stream());
        let body = json!({ "last_by_subj": subject });
        let stored = match self.api.request::<StoredMessage>(&name, &body).await {
            Ok(stored) => stored,
            Err(error) if error.kind == Kind::ObjectNotFound => return Ok(None),
            Err(error) => return Err(self.named(error)),
        };
        let unintelligible = |why: String| {
            let message = format!("unintelligible metadata in object store \"{}\"", self.name);
            Error::new(Kind::JetStreamRefused, message).detail(format!("Subject {subject}: {why}."))
        };
        let data = STANDARD.decode(&stored.message.payload);
        let data = data.map_err(|error| unintelligible(error.to_string()))?;
        let info = serde_json::from_slice::<Value>(&data);
        let mut info = info.map_err(|error| unintelligible(error.to_string()))?;
        if let Some(fields) = info.as_object_mut() {
            // nats-py writes an empty time when it deletes an object.
            fields.retain(|name, value| !(value.is_null() || name == "mtime" && value == ""));
        }
        let info = serde_json::from_value(info).map_err(|error| unintelligible(error.to_string()))?;
        Ok(Some(info))
    }

    /// Turns an error about the store's missing stream into one about the store.
    pub(super) fn named(&self, error: Error) -> Error {
        match error.kind {
            Kind::NoStream => {
                let message = format!("object store \"{}\" does not exist", self.name);
                Error::new(Kind::BucketNotFound, message)
            }
            _ => error,
        }
    }

    /// Fails if the store to write to is in another domain, and the connection's own domain has a store of that name:
    /// the subjects of objects are the same in every domain, so both stores would take what is published.
    pub(super) async fn check_domain(&self) -> Result<()> {
        let Some(domain) = &self.api.domain else {
            return Ok(());
        };
        let own = Api {
            domain: None,
            prefix: "$JS.API".into(),
            ..self.api.clone()
        };
        // Without such a store in the connection's own domain, nothing can be mixed up.
        let Ok(Some(found)) = own.stream_info(&self.stream()).await else {
            return Ok(());
        };
        match found.domain {
            Some(other) if other != *domain => {
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
            // As with a bucket, a store that does not exist has nothing to list, and is not created.
            Err(error) if error.kind == Kind::NoStream => return Ok(Vec::new()),
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
            let page: StreamInfo = self.api.request(&name, &page).await?;
            let Some(total) = page.total else {
                let message = "JetStream does not say how many objects there are";
                return Err(Error::new(Kind::JetStreamRefused, message));
            };
            let before = all.len();
            all.extend(page.state.subjects.into_keys());
            if all.len() == before || all.len() as u64 >= total {
                return Ok(all);
            }
        }
    }

    /// Publishes an object's metadata in place of its former metadata.
    pub(super) async fn put_info(&self, info: &ObjectInfo) -> Result<()> {
        let subject = self.subject(&info.name);
        let info = serde_json::to_vec(info).map_err(|error| {
            Error::new(Kind::JetStreamRefused, "could not describe the object").detail(format!("{error}."))
        })?;
        let headers = vec![(ROLLUP.into(), "sub".into())];
        self.api
            .publish_plain(subject, headers, info.into())
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
        // NATS's clients make no links to links, and following them could go round in circles.
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

/// Removes chunks that belong to no object; a failure is logged.
pub(super) async fn purge(api: &Api, stream: &str, subject: &str) {
    let name = format!("STREAM.PURGE.{stream}");
    if let Err(error) = api.order(&name, &json!({ "filter": subject })).await {
        log::warn!("could not remove unused chunks from stream {stream}: {error}");
    }
}

/// A row with the columns of `nats_get_file_info`.
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
        // The options are numbers and names, so their JSON cannot fail.
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
