//! What a session asks and gets a reply to: one function a topic, run beside the session's own loop. In the actor
//! thread.

use std::time::Duration;

use actix::MailboxError;
use bytes::Bytes;
use tokio::time::Instant;

use super::addresses::Addresses;
use crate::actors::connection::headers::header_map;
use crate::actors::connection::status::until_up;
use crate::actors::connection::{delivery, status};
use crate::actors::connections::interface::{ConnectionHandle, stopped};
use crate::actors::jetstream::interface::{InBucket, InStore, Parts, PublishToStream};
use crate::actors::metrics::transfers::TransferProgress;
use crate::actors::workers::messages::DrainDatabase;
use crate::channel::message::{JetStreamCall, JetStreamOptions, Reply};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::{Headers, SERVICE_ERROR, SERVICE_ERROR_CODE};

/// A reply and its body.
pub type CallReply = (Reply, Bytes);

/// The link, once the connection has been up.
pub async fn link(handle: ConnectionHandle, wait_ms: u32) -> Result<CallReply> {
    let mut status = handle.status;
    let now = status.borrow().clone();
    // While NATS is away, a new session may fill the buffer like those that were there before.
    let link = if now.was_up {
        now.link
    } else {
        until_up(&mut status, &handle.connection, after(wait_ms)).await?
    };
    Ok((Reply::Used(link), Bytes::new()))
}

fn after(ms: u32) -> Instant {
    Instant::now() + Duration::from_millis(ms.into())
}

/// Repeats a call to an actor while a new connection is being put in place of the old one.
async fn once_up<T, F>(handle: &ConnectionHandle, deadline: Instant, mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = std::result::Result<Option<T>, MailboxError>>,
{
    let mut status = handle.status.clone();
    loop {
        until_up(&mut status, &handle.connection, deadline).await?;
        if let Some(answer) = call().await.map_err(|_| stopped())? {
            return Ok(answer);
        }
        status::changed(&mut status, deadline).await?;
    }
}

/// A NATS request. It is awaited here and not in an actor, so that it ends when the session gives it up.
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
    let client = status::client(&mut handle.status.clone(), &handle.connection, reach).await?;
    let timeout = limit.saturating_duration_since(Instant::now());
    match delivery::request(&client, &subject, header_map(&headers), body, timeout).await {
        // In terms of the time that was asked for, not of what was left of it.
        Err(error) if error.kind == Kind::Timeout => {
            let message = format!("no reply on subject \"{subject}\" within {timeout_ms} ms");
            Err(Error::new(Kind::Timeout, message))
        }
        answer => answer.and_then(|message| reply_to_sql(&subject, message)),
    }
}

/// A service that failed says so in headers (ADR-32).
fn reply_to_sql(subject: &str, message: async_nats::Message) -> Result<CallReply> {
    let headers = message.headers.unwrap_or_default();
    if let Some(error) = headers.get(SERVICE_ERROR) {
        let error = error.as_str().trim_end_matches('.');
        let failed = Error::new(
            Kind::ServiceError,
            format!("service on subject \"{subject}\" failed: {error}"),
        );
        return Err(match headers.get(SERVICE_ERROR_CODE) {
            Some(code) => failed.detail(format!("Its error code is {}.", code.as_str())),
            None => failed,
        });
    }
    let pairs = headers.iter().flat_map(|(name, values)| {
        values
            .iter()
            .map(move |v| (name.to_string(), v.as_str().to_string()))
    });
    Ok((
        Reply::Message {
            headers: pairs.collect(),
        },
        message.payload,
    ))
}

/// What the NATS server said of itself when the connection was made.
pub async fn server_info(handle: ConnectionHandle, wait_ms: u32) -> Result<CallReply> {
    let client = status::client(&mut handle.status.clone(), &handle.connection, after(wait_ms)).await?;
    let info = client.client().server_info();
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

/// Has the executors leave a database.
pub async fn drain_database(actors: Addresses, database: u32) -> Result<CallReply> {
    actors
        .dispatcher
        .send(DrainDatabase(database))
        .await
        .map_err(|_| stopped())?;
    Ok((Reply::Done, Bytes::new()))
}

/// A call of JetStream, of a bucket or of a store.
pub async fn jetstream(
    handle: ConnectionHandle,
    api: JetStreamOptions,
    call: JetStreamCall,
    body: Bytes,
    parts: Parts,
    progress: TransferProgress,
) -> Result<CallReply> {
    let JetStreamOptions {
        domain,
        timeout_ms,
        wait_ms,
    } = api;
    let (timeout, deadline) = (Duration::from_millis(timeout_ms.into()), after(wait_ms));
    match call {
        JetStreamCall::Publish { subject, headers } => {
            once_up(&handle, deadline, || {
                let (domain, subject, headers) = (domain.clone(), subject.clone(), headers.clone());
                handle.jetstream.send(PublishToStream {
                    domain,
                    timeout,
                    subject,
                    headers,
                    payload: body.clone(),
                })
            })
            .await?
        }
        JetStreamCall::Bucket { bucket, call } => {
            once_up(&handle, deadline, || {
                let (domain, bucket, call) = (domain.clone(), bucket.clone(), call.clone());
                handle.key_value.send(InBucket {
                    domain,
                    timeout,
                    bucket,
                    call,
                    value: body.clone(),
                })
            })
            .await?
        }
        JetStreamCall::Store { store, call } => {
            // As `once_up`, but an object's parts can be handed over once only: they come back if nothing was done.
            let (mut status, mut parts) = (handle.status.clone(), parts);
            loop {
                until_up(&mut status, &handle.connection, deadline).await?;
                let (domain, store, call) = (domain.clone(), store.clone(), call.clone());
                let call = InStore {
                    domain,
                    timeout,
                    store,
                    call,
                    parts,
                    progress: progress.clone(),
                };
                match handle.object_store.send(call).await.map_err(|_| stopped())? {
                    Ok(answer) => return answer,
                    Err(back) => parts = back,
                }
                status::changed(&mut status, deadline).await?;
            }
        }
    }
}
