//! One session of the control channel: a backend's requests in, replies out. A task of the actor thread.
//!
//! Publishes are taken one after another, which keeps their order and lets a slow NATS server hold up the sender;
//! everything else runs beside them, so that a session can cancel what it waits for.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;
use async_nats::HeaderMap;
use async_nats::message::OutboundMessage;
use bytes::Bytes;
use futures::future::{AbortHandle, Abortable, LocalBoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{self, Current, Info, Publish, Status, until_up};
use super::gateway::Load;
use super::supervisor::{Handle, Left, MappingsInUse, Open, Reload, Supervisor, stopped};
use crate::channel::frame::Frame;
use crate::channel::message::{Key, PROTOCOL, Reply, Request};
use crate::channel::server::{FrameReader, FrameWriter};
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;

/// Requests of one session that may wait for their reply; a backend has one, an executor a few.
const MAX_CALLS: usize = 64;
/// When the runtime ends, what a session sent before is waited for so long.
const LAST_READ: Duration = Duration::from_millis(20);

/// A reply and its body.
type Answer = (Reply, Bytes);
/// A call's id and outcome; none if it was cancelled.
type Called = (u32, Option<Result<Answer>>);
/// A slot whose link has changed, and where to look; none if the connection is gone.
type Changed = Option<(u16, watch::Receiver<Status>)>;

struct Slot {
    key: Key,
    handle: Handle,
}

/// The state of a session.
pub struct Session {
    writer: FrameWriter,
    supervisor: Addr<Supervisor>,
    load: Load,
    welcome: bool,
    slots: HashMap<u16, Slot>,
    calls: FuturesUnordered<LocalBoxFuture<'static, Called>>,
    cancels: HashMap<u32, AbortHandle>,
    news: FuturesUnordered<LocalBoxFuture<'static, Changed>>,
    /// Why a publish that a `Fence` will ask for could not be taken.
    refused: Option<Error>,
}

impl Session {
    pub fn new(writer: FrameWriter, supervisor: Addr<Supervisor>, load: Load) -> Self {
        Session {
            writer,
            supervisor,
            load,
            welcome: false,
            slots: HashMap::new(),
            calls: FuturesUnordered::new(),
            cancels: HashMap::new(),
            news: FuturesUnordered::new(),
            refused: None,
        }
    }

    /// Serves the session until its end, or the runtime's.
    pub async fn run(mut self, mut reader: FrameReader, mut finish: watch::Receiver<bool>) {
        if let Err(error) = self.serve(&mut reader, &mut finish).await {
            log::debug!("session of the control channel ended: {error}");
        }
        for slot in self.slots.into_values() {
            drop(slot.handle);
            self.supervisor.do_send(Left(slot.key));
        }
        self.load.set(
            self.load
                .get()
                .saturating_sub(u16::try_from(self.calls.len()).unwrap_or(u16::MAX)),
        );
    }

    async fn serve(
        &mut self,
        reader: &mut FrameReader,
        finish: &mut watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                more = reader.next(&mut batch) => {
                    if !more? {
                        return Ok(());
                    }
                    self.take(&mut batch).await?;
                }
                Some((id, outcome)) = self.calls.next() => {
                    self.load.set(self.load.get().saturating_sub(1));
                    self.cancels.remove(&id);
                    if let Some(outcome) = outcome {
                        self.reply(id, outcome).await?;
                    }
                }
                Some(changed) = self.news.next() => {
                    if let Some((slot, mut status)) = changed {
                        let link = status.borrow_and_update().link;
                        self.watch(slot, status);
                        self.reply(0, Ok((Reply::Link { slot, link }, Bytes::new()))).await?;
                    }
                }
                _ = finish.wait_for(|finish| *finish) => {
                    while timeout(LAST_READ, reader.next(&mut batch)).await.is_ok_and(|read| matches!(read, Ok(true))) {
                        self.take(&mut batch).await?;
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn reply(&mut self, id: u32, outcome: Result<Answer>) -> std::io::Result<()> {
        let (reply, body) = outcome.unwrap_or_else(|error| (Reply::Failed(error), Bytes::new()));
        self.writer.send(id, self.load.get(), &reply, &body).await
    }

    /// Handles frames in order; neighbouring publishes go together.
    async fn take(&mut self, batch: &mut Vec<Frame<Request>>) -> std::io::Result<()> {
        let mut run = Run::default();
        for frame in batch.drain(..) {
            if !self.welcome && !matches!(frame.message, Request::Hello { .. }) {
                return Err(std::io::Error::other("the first frame is not a greeting"));
            }
            if let Request::Publish {
                slot,
                subject,
                reply,
                headers,
                wait_ms,
            } = frame.message
            {
                if (run.slot, run.wait_ms) != (slot, wait_ms) {
                    let full = std::mem::replace(
                        &mut run,
                        Run {
                            slot,
                            wait_ms,
                            messages: Vec::new(),
                        },
                    );
                    self.publish(full).await;
                }
                run.messages.push(OutboundMessage {
                    subject: subject.into(),
                    reply: reply.map(Into::into),
                    payload: frame.body,
                    headers: header_map(&headers),
                });
                continue;
            }
            self.publish(std::mem::take(&mut run)).await;
            self.dispatch(frame.id, frame.message, frame.body).await?;
        }
        self.publish(run).await;
        Ok(())
    }

    async fn publish(&mut self, run: Run) {
        if run.messages.is_empty() || (run.wait_ms > 0 && self.refused.is_some()) {
            return;
        }
        let deadline = (run.wait_ms > 0).then(|| Instant::now() + Duration::from_millis(run.wait_ms.into()));
        let outcome = match self.slots.get(&run.slot) {
            Some(slot) => hand_in(&slot.handle, run.messages, deadline).await,
            None => Err(unknown_slot()),
        };
        match outcome {
            Ok(()) => {}
            Err(error) if deadline.is_some() => self.refused = Some(error),
            Err(error) => log::warn!("messages of a session were not published: {error}"),
        }
    }

    async fn dispatch(&mut self, id: u32, request: Request, body: Bytes) -> std::io::Result<()> {
        let done = |reply| Ok((reply, Bytes::new()));
        match request {
            Request::Hello { protocol, .. } => {
                let outcome = if protocol == PROTOCOL {
                    done(Reply::Welcome { protocol })
                } else {
                    Err(other_protocol(protocol))
                };
                self.welcome = outcome.is_ok();
                self.reply(id, outcome).await
            }
            Request::Fence => {
                let outcome = self.refused.take().map_or(done(Reply::Done), Err);
                self.reply(id, outcome).await
            }
            Request::Cancel { request } => {
                if let Some(cancel) = self.cancels.get(&request) {
                    cancel.abort();
                }
                Ok(())
            }
            Request::Use {
                slot,
                target,
                settings,
                wait_ms,
            } => {
                let key = target.key;
                let Ok(handle) = self
                    .supervisor
                    .send(Open {
                        target,
                        settings: *settings,
                    })
                    .await
                else {
                    return self.reply(id, Err(stopped())).await;
                };
                self.watch(slot, handle.status.clone());
                self.slots.insert(
                    slot,
                    Slot {
                        key,
                        handle: handle.clone(),
                    },
                );
                let deadline = Instant::now() + Duration::from_millis(wait_ms.into());
                self.call(id, async move {
                    let mut status = handle.status;
                    let now = status.borrow().clone();
                    // While NATS is away, a new session may fill the buffer like those that were there before.
                    let link = if now.was_up {
                        now.link
                    } else {
                        until_up(&mut status, &handle.connection, deadline).await?
                    };
                    Ok((Reply::Used(link), Bytes::new()))
                })
                .await
            }
            Request::Ask {
                slot,
                subject,
                headers,
                timeout_ms,
                wait_ms,
            } => {
                let Some(slot) = self.slots.get(&slot) else {
                    return self.reply(id, Err(unknown_slot())).await;
                };
                let ask = ask(slot.handle.clone(), subject, headers, body, timeout_ms, wait_ms);
                self.call(id, ask).await
            }
            Request::ServerInfo { slot, wait_ms } => {
                let Some(slot) = self.slots.get(&slot) else {
                    return self.reply(id, Err(unknown_slot())).await;
                };
                let info = server_info(slot.handle.clone(), wait_ms);
                self.call(id, info).await
            }
            Request::MappingsInUse { database, server } => {
                let mappings = self.supervisor.send(MappingsInUse { database, server });
                self.call(id, async move {
                    let mappings = mappings.await.map_err(|_| stopped())?;
                    Ok((Reply::MappingsInUse { mappings }, Bytes::new()))
                })
                .await
            }
            Request::Reload {
                database,
                server,
                settings,
                force,
                wait_ms,
            } => {
                let limit = Duration::from_millis(wait_ms.into());
                let reload = Reload {
                    database,
                    server,
                    settings,
                    force,
                    limit,
                };
                if id == 0 {
                    // The session may end before this is handled, and actix skips what nobody waits for any longer.
                    self.supervisor.do_send(reload);
                    return Ok(());
                }
                let reload = self.supervisor.send(reload);
                self.call(id, async move {
                    reload.await.map_err(|_| stopped())??;
                    Ok((Reply::Done, Bytes::new()))
                })
                .await
            }
            #[cfg(debug_assertions)]
            Request::Panic => {
                self.supervisor.do_send(super::supervisor::Panic);
                Ok(())
            }
            // Taken by `take`.
            Request::Publish { .. } => Ok(()),
        }
    }

    /// Starts a call whose reply is sent when it is there. Calls without an id want no reply.
    async fn call(
        &mut self,
        id: u32,
        call: impl Future<Output = Result<Answer>> + 'static,
    ) -> std::io::Result<()> {
        if self.calls.len() >= MAX_CALLS {
            return self
                .reply(
                    id,
                    Err(Error::new(Kind::Protocol, "too many requests of one session")),
                )
                .await;
        }
        let (cancel, registration) = AbortHandle::new_pair();
        let call = Abortable::new(call, registration);
        self.load.set(self.load.get().saturating_add(1));
        self.calls.push(Box::pin(async move {
            let outcome = call.await.ok();
            (id, outcome.filter(|_| id != 0))
        }));
        self.cancels.insert(id, cancel);
        Ok(())
    }

    /// Sends news of the slot's link when it changes next.
    fn watch(&mut self, slot: u16, mut status: watch::Receiver<Status>) {
        let before = status.borrow_and_update().link;
        self.news.push(Box::pin(async move {
            let changed = status.wait_for(|status| status.link != before).await.is_ok();
            changed.then_some((slot, status))
        }));
    }
}

/// Neighbouring publishes to one slot.
#[derive(Default)]
struct Run {
    slot: u16,
    wait_ms: u32,
    messages: Vec<OutboundMessage>,
}

/// Gives messages to the connection, waiting for room: until the deadline, or as long as it takes.
async fn hand_in(handle: &Handle, messages: Vec<OutboundMessage>, deadline: Option<Instant>) -> Result<()> {
    let (total, mut rest, mut status) = (messages.len(), messages, handle.status.clone());
    loop {
        status.mark_unchanged();
        rest = handle
            .connection
            .send(Publish(rest))
            .await
            .map_err(|_| stopped())?;
        if rest.is_empty() {
            return Ok(());
        }
        let changed = status.changed();
        let waited = match deadline {
            Some(deadline) => timeout_at(deadline, changed).await,
            None => Ok(changed.await),
        };
        match waited {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(stopped()),
            Err(_) => return Err(buffer_full(&status.borrow(), total, rest.len())),
        }
    }
}

fn buffer_full(status: &Status, total: usize, refused: usize) -> Error {
    let why = status.error.as_ref().map_or_else(String::new, |error| {
        let detail = error.detail.as_deref().unwrap_or_default();
        format!(" Last error: {}. {detail}", error.message)
            .trim_end()
            .to_string()
    });
    Error::new(
        Kind::BufferFull,
        "the NATS server is unreachable and the buffer for messages is full",
    )
    .detail(format!(
        "{} of {total} messages were buffered.{why}",
        total - refused
    ))
}

async fn ask(
    handle: Handle,
    subject: String,
    headers: Headers,
    body: Bytes,
    timeout_ms: u32,
    wait_ms: u32,
) -> Result<Answer> {
    let mut status = handle.status;
    let started = Instant::now();
    let limit = started + Duration::from_millis(timeout_ms.into());
    let reach = limit.min(started + Duration::from_millis(wait_ms.into()));
    loop {
        until_up(&mut status, &handle.connection, reach).await?;
        let current = handle.connection.send(Current).await;
        let Some(client) = current.map_err(|_| stopped())? else {
            // A new connection is being put in place of the old one.
            wait_for_change(&mut status, reach).await?;
            continue;
        };
        let mut request = async_nats::Request::new().payload(body);
        if let Some(headers) = header_map(&headers) {
            request = request.headers(headers);
        }
        let timeout = limit.saturating_duration_since(Instant::now());
        return match connection::request(&client, &subject, request, timeout).await {
            Err(error) if error.kind == Kind::Timeout => {
                let message = format!("no reply on subject \"{subject}\" within {timeout_ms} ms");
                Err(Error::new(Kind::Timeout, message))
            }
            answer => answer.and_then(reply_to_sql),
        };
    }
}

async fn wait_for_change(status: &mut watch::Receiver<Status>, deadline: Instant) -> Result<()> {
    match timeout_at(deadline, status.changed()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(stopped()),
        Err(_) => Err(Error::new(
            Kind::Unreachable,
            "the connection to the NATS server is not established yet",
        )),
    }
}

/// A service that failed says so in headers (ADR-32).
fn reply_to_sql(message: async_nats::Message) -> Result<Answer> {
    let headers = message.headers.unwrap_or_default();
    if let Some(error) = headers.get("Nats-Service-Error") {
        let code = headers
            .get("Nats-Service-Error-Code")
            .map_or_else(String::new, |code| format!(" code {}", code.as_str()));
        let error = error.as_str().trim_end_matches('.');
        return Err(
            Error::new(Kind::ServiceError, "the service that was asked reports an error")
                .detail(format!("Error{code}: {error}.")),
        );
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

async fn server_info(handle: Handle, wait_ms: u32) -> Result<Answer> {
    let mut status = handle.status;
    let deadline = Instant::now() + Duration::from_millis(wait_ms.into());
    until_up(&mut status, &handle.connection, deadline).await?;
    let info = handle
        .connection
        .send(Info)
        .await
        .map_err(|_| stopped())?
        .ok_or_else(stopped)?;
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

/// Headers as the client takes them; the session's end has checked names and values already.
fn header_map(headers: &Headers) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (
            name.parse::<async_nats::HeaderName>(),
            value.parse::<async_nats::HeaderValue>(),
        ) {
            map.append(name, value);
        }
    }
    (!map.is_empty()).then_some(map)
}

fn unknown_slot() -> Error {
    Error::new(Kind::Protocol, "unknown slot")
}

fn other_protocol(theirs: u16) -> Error {
    Error::new(
        Kind::Protocol,
        "this session and the litmus_pgnats runtime worker have different versions of the library",
    )
    .detail(format!(
        "The session speaks protocol {theirs}, the runtime worker {PROTOCOL}."
    ))
}
