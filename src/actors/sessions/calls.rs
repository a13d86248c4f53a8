//! The calls of a session: requests that wait for an actor or for NATS, one function for each topic. They run beside
//! the session's own loop; in the actor thread.

use std::time::Duration;

use actix::MailboxError;
use bytes::Bytes;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use crate::actors::connection::delivery;
use crate::actors::connection::status::changed;
use crate::actors::connections::interface::{ConnectionHandle, stopped};
use crate::actors::jetstream::interface::{InBucket, InStore, Parts, PublishToStream};
use crate::actors::metrics::transfers::TransferProgress;
use crate::actors::workers::messages::DrainDatabase;
use crate::channel::message::{
    BucketCall, JETSTREAM_ANSWERS, JetStreamCall, JetStreamOptions, Reply, StoreCall,
};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::{self, Headers, SERVICE_ERROR, SERVICE_ERROR_CODE};
use crate::nats::message::{Message, Outbound};

/// A reply, and the body of its frame.
pub type CallReply = (Reply, Bytes);

/// A reply without a body.
pub fn done(reply: Reply) -> Result<CallReply> {
    Ok((reply, Bytes::new()))
}

/// The link of a connection. If the connection has never been up, waits for that, for `wait_ms` at most.
pub async fn link(handle: ConnectionHandle, wait_ms: u32) -> Result<CallReply> {
    let (was_up, link) = {
        let now = handle.status.borrow();
        (now.was_up, now.link)
    };
    // A connection that has been up is not waited for: while NATS is away, a new session may fill the buffer like older
    // ones.
    if was_up {
        return done(Reply::Used(link));
    }
    done(Reply::Used(handle.until_up(after(wait_ms)).await?))
}

fn after(ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(ms.into())
}

/// A NATS request, for `timeout_ms` in all, of which the wait for the connection may take `wait_ms`. The session awaits
/// it, and not an actor, so that the request ends when the session gives it up.
pub async fn ask(
    handle: ConnectionHandle,
    subject: String,
    headers: Headers,
    body: Bytes,
    timeout_ms: u32,
    wait_ms: u32,
) -> Result<CallReply> {
    let limit = after(timeout_ms);
    let reach = limit.min(after(wait_ms));
    let client = handle.client(reach).await?;
    let timeout = limit.saturating_duration_since(Instant::now());
    let request = Outbound {
        subject: subject.clone(),
        reply: None,
        headers,
        payload: body,
    };
    match delivery::request(&client, request, timeout).await {
        // The error names the timeout that was asked for, not what was left of it.
        Err(error) if error.kind == Kind::Timeout => {
            let message = format!("no reply on subject \"{subject}\" within {timeout_ms} ms");
            Err(Error::new(Kind::Timeout, message))
        }
        answer => answer.and_then(|message| reply_to_sql(&subject, message)),
    }
}

/// Turns a NATS message into a reply. A service reports its failure in headers (ADR-32), which becomes an error.
fn reply_to_sql(subject: &str, message: Message) -> Result<CallReply> {
    let headers = message.headers();
    if let Some(error) = headers::first(&headers, SERVICE_ERROR) {
        let error = error.trim_end_matches('.');
        let failed = Error::new(
            Kind::ServiceError,
            format!("service on subject \"{subject}\" failed: {error}"),
        );
        return Err(match headers::first(&headers, SERVICE_ERROR_CODE) {
            Some(code) => failed.detail(format!("Its error code is {code}.")),
            None => failed,
        });
    }
    Ok((Reply::Message { headers }, message.payload))
}

/// What the NATS server said of itself when the connection was made, as JSON.
pub async fn server_info(handle: ConnectionHandle, wait_ms: u32) -> Result<CallReply> {
    let client = handle.client(after(wait_ms)).await?;
    let info = client.info();
    let json = serde_json::json!({
        "server_id": info.server_id, "server_name": info.server_name, "host": info.host, "port": info.port,
        "version": info.version, "auth_required": info.auth_required, "tls_required": info.tls_required,
        "max_payload": info.max_payload, "proto": info.proto, "client_id": info.client_id, "go": info.go,
        "nonce": info.nonce, "connect_urls": info.connect_urls, "client_ip": info.client_ip,
        "headers": info.headers, "lame_duck_mode": info.lame_duck_mode,
    });
    Ok((
        Reply::ServerInfo {
            json: json.to_string(),
        },
        Bytes::new(),
    ))
}

/// Drains a database; returns when its workers are gone.
pub async fn drain_database(actors: Addresses, database: u32) -> Result<CallReply> {
    let drained = actors.dispatcher.send(DrainDatabase(database)).await;
    drained.map_err(|_| stopped())?;
    done(Reply::Done)
}

/// What a call of JetStream, of a bucket or of a store needs besides the call itself.
pub struct JetStreamRequest {
    pub handle: ConnectionHandle,
    pub options: JetStreamOptions,
    /// The payload or the value.
    pub body: Bytes,
    pub progress: TransferProgress,
    /// Cancelled when the session gives the call up.
    pub cancel: CancellationToken,
}

impl JetStreamRequest {
    pub async fn call(self, call: JetStreamCall, parts: Parts) -> Result<CallReply> {
        match call {
            JetStreamCall::Publish { subject, headers } => self.publish(subject, headers).await,
            JetStreamCall::Bucket { bucket, call } => self.in_bucket(bucket, call).await,
            JetStreamCall::Store { store, call } => self.in_store(store, call, parts).await,
        }
    }

    /// Runs a call of an actor for as long as the session waits; a call that reads much may need many answers.
    async fn in_time<T>(
        &self,
        call: impl Future<Output = std::result::Result<T, MailboxError>>,
    ) -> Result<T> {
        match timeout(self.timeout() * JETSTREAM_ANSWERS, call).await {
            Ok(answer) => answer.map_err(|_| stopped()),
            Err(_) => Err(
                Error::new(Kind::AckTimeout, "JetStream did not answer in time").detail(format!(
                    "The whole call took longer than {JETSTREAM_ANSWERS} times litmus_pgnats.jetstream_timeout."
                )),
            ),
        }
    }

    async fn publish(self, subject: String, headers: Headers) -> Result<CallReply> {
        self.once_up(|| {
            self.handle.jetstream.send(PublishToStream {
                domain: self.options.domain.clone(),
                timeout: self.timeout(),
                subject: subject.clone(),
                headers: headers.clone(),
                payload: self.body.clone(),
                cancel: self.cancel.clone(),
            })
        })
        .await?
    }

    async fn in_bucket(self, bucket: String, call: BucketCall) -> Result<CallReply> {
        self.once_up(|| {
            self.handle.key_value.send(InBucket {
                domain: self.options.domain.clone(),
                timeout: self.timeout(),
                bucket: bucket.clone(),
                call: call.clone(),
                value: self.body.clone(),
                cancel: self.cancel.clone(),
            })
        })
        .await?
    }

    /// Like [`JetStreamRequest::once_up`], but an object's parts cannot be sent twice: the actor returns them if it has
    /// done nothing.
    async fn in_store(self, store: String, call: StoreCall, mut parts: Parts) -> Result<CallReply> {
        let deadline = after(self.options.wait_ms);
        let mut status = self.handle.status.clone();
        loop {
            self.handle.until_up(deadline).await?;
            let call = InStore {
                domain: self.options.domain.clone(),
                timeout: self.timeout(),
                store: store.clone(),
                call: call.clone(),
                parts,
                progress: self.progress.clone(),
                cancel: self.cancel.clone(),
            };
            let is_transfer = matches!(call.call, StoreCall::Put { .. } | StoreCall::Get { .. });
            let answer = self.handle.object_store.send(call);
            // A transfer has a limit for each part instead.
            let answer = if is_transfer {
                answer.await.map_err(|_| stopped())?
            } else {
                self.in_time(answer).await?
            };
            match answer {
                Ok(answer) => return answer,
                Err(back) => parts = back,
            }
            changed(&mut status, deadline).await?;
        }
    }

    /// Repeats a call to an actor that answers `None` while the connection is not up, for `wait_ms` at most.
    async fn once_up<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Option<T>, MailboxError>>,
    {
        let deadline = after(self.options.wait_ms);
        let mut status = self.handle.status.clone();
        loop {
            self.handle.until_up(deadline).await?;
            if let Some(answer) = self.in_time(call()).await? {
                return Ok(answer);
            }
            changed(&mut status, deadline).await?;
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.options.timeout_ms.into())
    }
}
