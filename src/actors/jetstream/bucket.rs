//! A key-value bucket for the time of one call. Nothing is cached: a value is read by one request and written by one
//! acknowledged publish. In the actor thread.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::datetime::from_nanos;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::answers::StoredMessage;
use super::answers::timestamp;
use super::api::Api;
use super::refusals::refused;
use super::stream_read::{Part, StreamRead};
use crate::actors::base::result_limit::{check_size, collect, row_size};
use crate::actors::client::RequestFailure;
use crate::channel::message::{BucketCall, BucketConfig, Expect, Reply};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::{self, Headers};
use crate::nats::message::{Message, Outbound, status};
use crate::row::Row;

/// Entries that are under way at a time while the history of a key is read.
const ENTRIES_AHEAD: usize = 8;
/// Keys that are under way at a time while keys are listed.
const KEYS_AHEAD: usize = 1024;
/// Time for which a bucket recognises repetitions, unless its values live shorter.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
const OPERATION: &str = "KV-Operation";
const EXPECTED_REVISION: &str = "Nats-Expected-Last-Subject-Sequence";
pub(super) const ROLLUP: &str = "Nats-Rollup";
const MARKER: &str = "Nats-Marker-Reason";
/// Operations, as the header KV-Operation and as SQL have them.
const PUT: &str = "PUT";
const DELETE: &str = "DEL";
const PURGE: &str = "PURGE";

/// A bucket for the time of one call.
pub(super) struct Bucket {
    pub(super) api: Api,
    pub(super) bucket: String,
}

/// The latest entry of a key.
struct Latest {
    revision: u64,
    operation: &'static str,
    value: Bytes,
    /// Time of the entry, as text that PostgreSQL's type timestamptz reads.
    created: String,
}

impl Latest {
    fn is_deleted(&self) -> bool {
        self.operation != PUT
    }
}

impl Bucket {
    pub(super) async fn answer(&self, call: BucketCall, value: Bytes) -> Result<(Reply, Bytes)> {
        let plain = |reply| Ok((reply, Bytes::new()));
        match call {
            BucketCall::Put { key, expect } => plain(Reply::Number(self.put(&key, expect, value).await?)),
            BucketCall::Get { key } => match self.latest(&key).await? {
                Some(latest) if !latest.is_deleted() => Ok((Reply::Found, latest.value)),
                _ => plain(Reply::Absent),
            },
            BucketCall::Delete { key, purge } => {
                self.delete(&key, purge).await?;
                plain(Reply::Done)
            }
            BucketCall::Entries { key, history } => {
                let entries = if history {
                    self.history(&key).await?
                } else {
                    self.entry(&key).await?
                };
                plain(Reply::Rows(entries))
            }
            BucketCall::Keys => plain(Reply::Rows(self.keys().await?)),
            BucketCall::Create(bucket) => {
                self.create(bucket).await?;
                plain(Reply::Done)
            }
            BucketCall::Drop => {
                let name = format!("STREAM.DELETE.{}", self.stream());
                self.api
                    .order(&name, &Value::Null)
                    .await
                    .map_err(|error| self.named(error))?;
                plain(Reply::Done)
            }
        }
    }

    fn stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }

    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket)
    }

    fn missing(&self) -> Error {
        let message = format!("key-value bucket \"{}\" does not exist", self.bucket);
        Error::new(Kind::BucketNotFound, message)
    }

    /// Turns an error about the bucket's missing stream into one about the bucket.
    fn named(&self, error: Error) -> Error {
        match error.kind {
            Kind::NoStream => self.missing(),
            _ => error,
        }
    }

    async fn put(&self, key: &str, expect: Expect, value: Bytes) -> Result<u64> {
        let mut outcome = self.write(key, expect, value.clone()).await;
        if outcome.as_ref().is_err_and(|error| error.kind == Kind::NoStream) {
            if matches!(expect, Expect::Revision(_)) {
                return Err(self.missing());
            }
            self.create_for_put().await?;
            outcome = self.write(key, expect, value.clone()).await;
        }
        match outcome {
            Err(error) if error.kind == Kind::ExpectationFailed && expect == Expect::Absent => {
                self.put_after_delete(key, value).await
            }
            Err(error) if error.kind == Kind::ExpectationFailed => {
                let message = format!("key \"{key}\" of bucket \"{}\" has another revision", self.bucket);
                let detail = error.detail.unwrap_or_default();
                Err(Error::new(error.kind, message).detail(detail))
            }
            other => other,
        }
    }

    /// Puts a key that must be absent, but has an entry: a deleted key counts as absent, though its marker has a
    /// revision.
    async fn put_after_delete(&self, key: &str, value: Bytes) -> Result<u64> {
        let exists = || {
            let message = format!("key \"{key}\" exists already in bucket \"{}\"", self.bucket);
            Err(Error::new(Kind::KeyExists, message))
        };
        match self.latest(key).await? {
            Some(latest) if latest.is_deleted() => {
                match self.write(key, Expect::Revision(latest.revision), value).await {
                    Err(error) if error.kind == Kind::ExpectationFailed => exists(),
                    other => other,
                }
            }
            _ => exists(),
        }
    }

    async fn write(&self, key: &str, expect: Expect, value: Bytes) -> Result<u64> {
        let expected = match expect {
            Expect::Anything => None,
            Expect::Absent => Some(0),
            Expect::Revision(revision) => Some(revision),
        };
        let headers = expected.map(|revision| (EXPECTED_REVISION.into(), revision.to_string()));
        self.publish(key, headers.into_iter().collect(), value).await
    }

    async fn publish(&self, key: &str, headers: Headers, value: Bytes) -> Result<u64> {
        // Between domains, NATS does not report that there are no responders.
        if self.api.domain.is_some() && !self.api.has_stream(&self.stream()).await? {
            return Err(Error::new(Kind::NoStream, "no such bucket"));
        }
        let subject = self.api.own_subject(&self.subject(key));
        self.api.publish(subject, headers, value).await
    }

    async fn delete(&self, key: &str, purge: bool) -> Result<()> {
        let operation = if purge { PURGE } else { DELETE };
        let mut headers: Headers = vec![(OPERATION.into(), operation.into())];
        if purge {
            headers.push((ROLLUP.into(), "sub".into()));
        }
        match self.publish(key, headers, Bytes::new()).await {
            Ok(_) => Ok(()),
            // Without a bucket there is nothing to delete.
            Err(error) if error.kind == Kind::NoStream => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The latest entry of a key, a deletion's marker included; `None` if there never was one, or no bucket.
    async fn latest(&self, key: &str) -> Result<Option<Latest>> {
        self.api.check_server()?;
        let subject = format!(
            "{}.DIRECT.GET.{}.{}",
            self.api.prefix,
            self.stream(),
            self.subject(key)
        );
        let request = Outbound {
            subject: subject.clone(),
            ..Outbound::default()
        };
        match self.api.client.request(request, self.api.timeout).await {
            Ok(answer) if answer.status == Some(status::NOT_FOUND) => Ok(None),
            Ok(answer) => {
                let headers = answer.headers();
                let text = |name: &str| headers::first(&headers, name).unwrap_or_default();
                let revision = text("Nats-Sequence")
                    .parse()
                    .map_err(|_| Error::new(Kind::JetStreamRefused, "unintelligible answer of JetStream"))?;
                Ok(Some(Latest {
                    revision,
                    operation: operation(text(OPERATION), text(MARKER)),
                    value: answer.payload,
                    created: text("Nats-Time-Stamp").into(),
                }))
            }
            // There is no bucket, or the bucket does not allow direct access.
            Err(RequestFailure::NoResponders | RequestFailure::TimedOut) => {
                self.latest_from_leader(key).await
            }
            Err(failure) => Err(self.api.unanswered(&subject, failure)),
        }
    }

    /// The latest entry of a key as the stream's leader knows it, for a bucket that does not allow direct access.
    async fn latest_from_leader(&self, key: &str) -> Result<Option<Latest>> {
        let name = format!("STREAM.MSG.GET.{}", self.stream());
        let body = json!({ "last_by_subj": self.subject(key) });
        let stored = match self.api.request::<StoredMessage>(&name, &body).await {
            Ok(stored) => stored,
            Err(error) if matches!(error.kind, Kind::NoStream | Kind::ObjectNotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let message = StreamMessage::try_from(stored.message).map_err(|error| {
            Error::new(Kind::JetStreamRefused, "unintelligible answer of JetStream")
                .detail(format!("{error}."))
        })?;
        let header = |name: &str| message.headers.get(name).map_or("", |value| value.as_str());
        Ok(Some(Latest {
            revision: message.sequence,
            operation: operation(header(OPERATION), header(MARKER)),
            created: timestamp(message.time),
            value: message.payload,
        }))
    }

    /// Creates a bucket with the defaults of NATS's clients, unless another session was faster.
    async fn create_for_put(&self) -> Result<()> {
        let created = self.create(BucketConfig {
            history: 1,
            ttl_ms: 0,
            replicas: 1,
            memory: false,
        });
        match created.await {
            Err(error) if error.kind == Kind::JetStreamRefused => {
                match self.api.has_stream(&self.stream()).await? {
                    true => Ok(()),
                    false => Err(error),
                }
            }
            other => other,
        }
    }

    async fn create(&self, bucket: BucketConfig) -> Result<()> {
        self.api.check_server()?;
        let ttl = Duration::from_millis(bucket.ttl_ms);
        let window = if ttl.is_zero() {
            DUPLICATE_WINDOW
        } else {
            ttl.min(DUPLICATE_WINDOW)
        };
        let config = json!({
            "name": self.stream(),
            "subjects": [format!("$KV.{}.>", self.bucket)],
            "max_msgs_per_subject": bucket.history,
            "max_age": ttl.as_nanos() as u64,
            "duplicate_window": window.as_nanos() as u64,
            "storage": if bucket.memory { "memory" } else { "file" },
            "num_replicas": bucket.replicas,
            "discard": "new",
            "allow_rollup_hdrs": true,
            "deny_delete": true,
            "allow_direct": true,
            "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1, "max_consumers": -1,
        });
        let name = format!("STREAM.CREATE.{}", self.stream());
        let Err(error) = self.api.ask::<IgnoredAny>(&name, &config).await? else {
            return Ok(());
        };
        let failed = |message: String| Error::new(Kind::JetStreamRefused, message).detail(error.detail());
        Err(match error.err_code {
            ErrorCode::STREAM_NAME_EXIST => failed(format!(
                "key-value bucket \"{}\" exists with other settings",
                self.bucket
            ))
            .hint("nats_delete_bucket deletes a bucket with all that is in it."),
            _ => {
                let refused = refused(self.api.domain.as_deref(), &error);
                if refused.kind == Kind::JetStreamRefused {
                    failed(format!("could not create key-value bucket \"{}\"", self.bucket))
                } else {
                    refused
                }
            }
        })
    }

    async fn keys(&self) -> Result<Vec<Row>> {
        let prefix = self.subject("");
        let part = Part {
            subject: self.subject(">"),
            is_latest: true,
            headers_only: true,
            window: KEYS_AHEAD,
        };
        let Some(mut reading) = StreamRead::begin(&self.api, &self.stream(), part).await? else {
            return Ok(Vec::new());
        };
        // A key that is written meanwhile comes twice.
        let (mut keys, mut size) = (BTreeMap::new(), 0);
        while let Some((message, _)) = reading.next().await? {
            let Some(key) = message.subject.strip_prefix(&prefix) else {
                continue;
            };
            let is_there = stored_operation(&message) == PUT;
            if keys.insert(key.to_string(), is_there).is_none() {
                size += row_size(key.len());
                check_size(size)?;
            }
        }
        let there = keys.into_iter().filter(|(_, is_there)| *is_there);
        Ok(there.map(|(key, _)| vec![Some(key)]).collect())
    }

    async fn entry(&self, key: &str) -> Result<Vec<Row>> {
        let latest = self.latest(key).await?;
        let row =
            latest.map(|entry| entry_row(entry.revision, entry.operation, &entry.value, Some(entry.created)));
        Ok(row.into_iter().collect())
    }

    async fn history(&self, key: &str) -> Result<Vec<Row>> {
        let part = Part {
            subject: self.subject(key),
            is_latest: false,
            headers_only: false,
            window: ENTRIES_AHEAD,
        };
        let Some(reading) = StreamRead::begin(&self.api, &self.stream(), part).await? else {
            return Ok(Vec::new());
        };
        let rows = futures::stream::try_unfold(reading, async |mut reading| {
            let Some((message, delivery)) = reading.next().await? else {
                return Ok(None);
            };
            let operation = stored_operation(&message);
            let created = from_nanos(delivery.time_ns.into()).ok().map(timestamp);
            let row = entry_row(delivery.sequence, operation, &message.payload, created);
            Ok(Some((row, reading)))
        });
        collect(rows).await
    }
}

/// A row of revision, operation, value and time.
fn entry_row(revision: u64, operation: &str, value: &[u8], created: Option<String>) -> Row {
    vec![
        Some(revision.to_string()),
        Some(operation.into()),
        (operation == PUT).then(|| hex(value)),
        created,
    ]
}

fn stored_operation(message: &Message) -> &'static str {
    let headers = message.headers();
    let text = |name: &str| headers::first(&headers, name).unwrap_or_default();
    operation(text(OPERATION), text(MARKER))
}

/// The operation of an entry. A marker that the server itself writes, for an expired or removed value, has a reason
/// instead.
fn operation(stored: &str, marker: &str) -> &'static str {
    match (stored, marker) {
        (PURGE, _) | (_, "MaxAge" | "Purge") => PURGE,
        (DELETE, _) | (_, "Remove") => DELETE,
        _ => PUT,
    }
}

/// Bytes as text that PostgreSQL's type bytea reads.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::from("\\x"), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
