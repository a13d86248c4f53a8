//! One session of the control channel: a backend's requests in, replies out. A task of the actor thread.
//!
//! Publishes are taken one after another, which keeps their order and lets a slow NATS server hold up the sender;
//! everything else runs beside them, so that a session can cancel what it waits for.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::message::OutboundMessage;
use bytes::Bytes;
use futures::future::{AbortHandle, Abortable, LocalBoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::{StreamMap, wrappers::ReceiverStream};

use super::calls::{self, Answer, header_map};
use super::connection::Publish;
use super::dispatcher::{Look, Met, Promoted, Release};
use super::examine::examine;
use super::executor_session;
use super::gateway::Actors;
use super::load::Load;
use super::object_store::Parts;
use super::outbox::{Wake, is_courier};
use super::pace::Pace;
use super::statistics;
use super::status::Status;
use super::supervisor::{Compare, Handle, Left, MappingsInUse, Open, Reload, Seat, stopped};
use super::transfers::{Transfer, Underway};
use crate::channel::frame::Frame;
use crate::channel::message::{JetStreamCall, Key, PROTOCOL, Peer, Reply, Request, StoreCall};
use crate::channel::server::{FrameReader, FrameWriter};
use crate::error::{Error, Kind, Result};

/// Requests of one session that may wait for their reply; a backend has one, an executor a few.
const MAX_CALLS: usize = 64;
/// Parts of an object that wait between a session and the object store.
const PARTS: usize = 4;
/// PostgreSQL's invalidations of a transaction are sent so soon after its commit.
const CACHES: Duration = Duration::from_millis(3);
/// Longest wait for changed handlers to take effect.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// When the runtime ends, what a session sent before is waited for so long.
const LAST_READ: Duration = Duration::from_millis(20);

/// A call's id and outcome; none if it was cancelled.
type Called = (u32, Option<Result<Answer>>);
/// A slot whose link has changed, and where to look; none if the connection is gone.
type Changed = Option<(u16, watch::Receiver<Status>)>;

struct Slot {
    key: Key,
    server_name: String,
    handle: Handle,
    _seat: Seat,
}

/// The state of a session.
pub struct Session {
    writer: FrameWriter,
    actors: Actors,
    load: Load,
    pace: Pace,
    /// For `pace`.
    seen: u64,
    welcome: bool,
    /// The process at the other end.
    pid: u32,
    /// Ticket of an executor, which is served elsewhere.
    executor: Option<u32>,
    /// Databases that the session has had vacated.
    vacated: Vec<u32>,
    slots: HashMap<u16, Slot>,
    calls: FuturesUnordered<LocalBoxFuture<'static, Called>>,
    cancels: HashMap<u32, AbortHandle>,
    news: FuturesUnordered<LocalBoxFuture<'static, Changed>>,
    /// Objects that are being put, and got, by the call's id.
    uploads: HashMap<u32, mpsc::Sender<Bytes>>,
    downloads: StreamMap<u32, ReceiverStream<Answer>>,
    /// Publishes that wait for the session's commit.
    held: Option<Vec<Run>>,
    /// Why a publish that a `Fence` will ask for could not be taken.
    refused: Option<Error>,
    /// A reply could not be written.
    peer_is_gone: bool,
}

impl Session {
    pub fn new(writer: FrameWriter, actors: Actors, load: Load, pace: Pace) -> Self {
        Session {
            writer,
            actors,
            load,
            pace,
            seen: 0,
            welcome: false,
            pid: 0,
            executor: None,
            vacated: Vec::new(),
            slots: HashMap::new(),
            calls: FuturesUnordered::new(),
            cancels: HashMap::new(),
            news: FuturesUnordered::new(),
            uploads: HashMap::new(),
            downloads: StreamMap::new(),
            held: None,
            refused: None,
            peer_is_gone: false,
        }
    }

    /// Serves the session until its end, or the runtime's.
    pub async fn run(mut self, mut reader: FrameReader, mut finish: watch::Receiver<bool>) {
        if let Err(error) = self.serve(&mut reader, &mut finish).await {
            log::debug!("session of the control channel ended: {error}");
        }
        for slot in std::mem::take(&mut self.slots).into_values() {
            self.leave(slot);
        }
        for database in std::mem::take(&mut self.vacated) {
            self.actors.dispatcher.do_send(Release(database));
        }
        if let Some(ticket) = self.executor {
            let pid = self.pid;
            let Actors {
                dispatcher, outbox, ..
            } = self.actors;
            let served = if is_courier(ticket) {
                executor_session::serve(ticket, pid, reader, self.writer, outbox, finish).await
            } else {
                executor_session::serve(ticket, pid, reader, self.writer, dispatcher, finish).await
            };
            if let Err(error) = served {
                log::debug!("session of an executor ended: {error}");
            }
        }
    }

    async fn serve(
        &mut self,
        reader: &mut FrameReader,
        finish: &mut watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                // In this order, so that a download's parts are out before its last word.
                biased;
                Some((id, part)) = self.downloads.next() => self.reply(id, Ok(part)).await?,
                more = reader.next(&mut batch) => {
                    if !more? {
                        return Ok(());
                    }
                    self.take(&mut batch).await?;
                    if self.executor.is_some() {
                        return Ok(());
                    }
                }
                Some((id, outcome)) = self.calls.next() => {
                    self.called(id, outcome).await?;
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

    /// The connection may have no user any more.
    fn leave(&self, slot: Slot) {
        let key = slot.key;
        drop(slot);
        self.actors.supervisor.do_send(Left(key));
    }

    /// A call has come to its end.
    async fn called(&mut self, id: u32, outcome: Option<Result<Answer>>) -> std::io::Result<()> {
        self.cancels.remove(&id);
        self.uploads.remove(&id);
        match outcome {
            Some(outcome) => self.reply(id, outcome).await,
            None => Ok(()),
        }
    }

    /// Writes a reply. That the other end is gone is no failure: what it has sent before is still to be read, and the
    /// end of that ends the session.
    async fn reply(&mut self, id: u32, outcome: Result<Answer>) -> std::io::Result<()> {
        if self.peer_is_gone {
            return Ok(());
        }
        let (reply, body) = outcome.unwrap_or_else(|error| (Reply::Failed(error), Bytes::new()));
        let written = self.writer.send(id, self.load.peak(), &reply, &body).await;
        match written {
            // It is too large for a frame; the peer waits for an answer.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                let failed = Reply::Failed(Error::new(Kind::Protocol, "the answer is too large"));
                let written = self.writer.send(id, self.load.peak(), &failed, b"").await;
                self.peer_is_gone = written.is_err();
            }
            written => self.peer_is_gone = written.is_err(),
        }
        Ok(())
    }

    /// Handles frames in order; neighbouring publishes go together.
    async fn take(&mut self, batch: &mut Vec<Frame<Request>>) -> std::io::Result<()> {
        let mut run = Run::default();
        let mut frames = batch.drain(..).peekable();
        while let Some(frame) = frames.next() {
            // The next one sees what this one would: many commits in a row are no backlog of looks.
            if let Request::Look { database } = frame.message
                && let Some(Request::Look { database: next }) = frames.peek().map(|next| &next.message)
                && *next == database
            {
                continue;
            }
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
        if let Some(held) = &mut self.held {
            held.push(run);
            return;
        }
        let deadline = (run.wait_ms > 0).then(|| Instant::now() + Duration::from_millis(run.wait_ms.into()));
        let bytes = run.messages.iter().map(|message| message.payload.len()).sum();
        self.pace.took(&mut self.seen, run.messages.len(), bytes);
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
        match request {
            Request::Hello { protocol, pid, peer } => {
                self.welcome = protocol == PROTOCOL;
                self.pid = pid;
                if let (Peer::Executor { ticket }, true) = (peer, self.welcome) {
                    self.executor = Some(ticket);
                }
                let outcome = if self.welcome {
                    done(Reply::Welcome { protocol })
                } else {
                    Err(other_protocol(protocol))
                };
                self.reply(id, outcome).await
            }
            Request::Fence => {
                self.pace.asked();
                let outcome = self.refused.take().map_or(done(Reply::Done), Err);
                self.reply(id, outcome).await
            }
            Request::Hold => {
                self.held = Some(Vec::new());
                Ok(())
            }
            Request::Release => {
                for run in self.held.take().unwrap_or_default() {
                    self.publish(run).await;
                }
                Ok(())
            }
            Request::Discard => {
                self.held = None;
                Ok(())
            }
            Request::Outbox { database } => {
                self.actors.outbox.do_send(Wake(database));
                Ok(())
            }
            Request::Leave { slot } => {
                if let Some(slot) = self.slots.remove(&slot) {
                    self.leave(slot);
                }
                Ok(())
            }
            Request::Cancel { request } => {
                self.uploads.remove(&request);
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
                let (key, server_name) = (target.key, target.server_name.clone());
                self.actors.dispatcher.do_send(Met(key.database));
                let opened = self
                    .actors
                    .supervisor
                    .send(Open {
                        target,
                        settings: *settings,
                    })
                    .await;
                let handle = match opened.map_err(|_| stopped()).and_then(|opened| opened) {
                    Ok(handle) => handle,
                    Err(error) => return self.reply(id, Err(error)).await,
                };
                self.watch(slot, handle.status.clone());
                self.slots.insert(
                    slot,
                    Slot {
                        key,
                        server_name,
                        _seat: handle.seat(),
                        handle: handle.clone(),
                    },
                );
                self.call(id, calls::link(handle, wait_ms)).await
            }
            Request::Ask {
                slot,
                subject,
                headers,
                timeout_ms,
                wait_ms,
            } => {
                self.call_slot(id, slot, |handle| {
                    calls::ask(handle, subject, headers, body, timeout_ms, wait_ms)
                })
                .await
            }
            Request::ServerInfo { slot, wait_ms } => {
                self.call_slot(id, slot, |handle| calls::server_info(handle, wait_ms))
                    .await
            }
            Request::JetStream { slot, api, call } => {
                let parts = self.parts(id, &call);
                let underway = self.underway(slot, &call);
                let progress = underway.as_ref().map(|underway| underway.progress.clone());
                self.call_slot(id, slot, |handle| async move {
                    let _underway = underway;
                    let progress = progress.unwrap_or_default();
                    calls::jetstream(handle, api, call, body, parts, progress).await
                })
                .await
            }
            Request::Upload { upload } => {
                if body.is_empty() {
                    self.uploads.remove(&upload);
                } else if let Some(parts) = self.uploads.get(&upload).cloned() {
                    self.upload(upload, parts, body).await?;
                }
                Ok(())
            }
            Request::MappingsInUse { database, server } => {
                let mappings = self.actors.supervisor.send(MappingsInUse { database, server });
                let call = async move {
                    done(Reply::MappingsInUse {
                        mappings: mappings.await.map_err(|_| stopped())?,
                    })
                };
                self.call(id, call).await
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
                    // At a commit: the outcome is nobody's, but what the session says next comes after it. In a task
                    // of its own, because the session may end first, and actix skips what nobody waits for.
                    let _ = actix::spawn(self.actors.supervisor.send(reload)).await;
                    return Ok(());
                }
                let reload = self.actors.supervisor.send(reload);
                let call = async move {
                    reload
                        .await
                        .map_err(|_| stopped())?
                        .and_then(|()| done(Reply::Done))
                };
                self.call(id, call).await
            }
            Request::Look { database } => {
                self.vacated.retain(|vacated| {
                    *vacated != database || {
                        self.actors.dispatcher.do_send(Release(database));
                        false
                    }
                });
                // A commit is told of before other processes' caches are.
                tokio::time::sleep(CACHES).await;
                // What the session says next comes after it.
                let look = actix::spawn(self.actors.dispatcher.send(Look(database)));
                let _ = timeout(LOOK_LIMIT, look).await;
                Ok(())
            }
            Request::Vacate { database } => {
                self.vacated.push(database);
                self.call(id, calls::vacate(self.actors.clone(), database)).await
            }
            Request::Statistics { database, of } => {
                self.call(id, statistics::rows(self.actors.clone(), database, of))
                    .await
            }
            Request::Examine {
                key,
                settings,
                limit_ms,
            } => {
                let (patroni, limit) = (
                    self.actors.patroni.clone(),
                    Duration::from_millis(limit_ms.into()),
                );
                let running = self.actors.supervisor.send(Compare(key, (*settings).clone()));
                let running = async move { running.await.ok().flatten() };
                let examination = examine(*settings, running, patroni, limit);
                self.call(id, async move { done(Reply::Rows(examination.await)) })
                    .await
            }
            Request::ResetStatistics { database } => {
                self.call(id, statistics::reset(self.actors.clone(), database))
                    .await
            }
            Request::Promoted { timeline, databases } => {
                self.actors.dispatcher.do_send(Promoted { timeline, databases });
                Ok(())
            }
            // Taken by `executor_session`.
            Request::Executor(_) => Ok(()),
            #[cfg(debug_assertions)]
            Request::Panic => {
                self.actors.supervisor.do_send(super::supervisor::Panic);
                Ok(())
            }
            // Taken by `take`.
            Request::Publish { .. } => Ok(()),
        }
    }

    /// Waits while earlier parts are on their way; the session has nothing else to say meanwhile. The call that takes
    /// them goes on, or may yet have to begin.
    async fn upload(&mut self, id: u32, parts: mpsc::Sender<Bytes>, part: Bytes) -> std::io::Result<()> {
        let mut sent = std::pin::pin!(parts.send(part));
        loop {
            tokio::select! {
                biased;
                sent = &mut sent => {
                    if sent.is_err() {
                        self.uploads.remove(&id);
                    }
                    return Ok(());
                }
                Some((id, outcome)) = self.calls.next() => self.called(id, outcome).await?,
            }
        }
    }

    /// Starts a call on the connection of a slot.
    async fn call_slot<C>(
        &mut self,
        id: u32,
        slot: u16,
        call: impl FnOnce(Handle) -> C,
    ) -> std::io::Result<()>
    where
        C: Future<Output = Result<Answer>> + 'static,
    {
        match self.slots.get(&slot) {
            Some(slot) => self.call(id, call(slot.handle.clone())).await,
            None => self.reply(id, Err(unknown_slot())).await,
        }
    }

    /// Has the object that a call may transfer shown as long as it does.
    fn underway(&self, slot: u16, call: &JetStreamCall) -> Option<Underway> {
        let JetStreamCall::Store { store, call } = call else {
            return None;
        };
        let (command, name) = match call {
            StoreCall::Put { name, .. } => ("put", name),
            StoreCall::Get { name } => ("get", name),
            StoreCall::Delete { .. } | StoreCall::Info { .. } | StoreCall::List => return None,
        };
        let slot = self.slots.get(&slot)?;
        Some(self.actors.counters.transfers.begin(Transfer {
            pid: self.pid,
            database: slot.key.database,
            server: (slot.key.server, slot.server_name.clone()),
            command,
            store: store.clone(),
            name: name.clone(),
        }))
    }

    /// Channels for the object that a call may stream.
    fn parts(&mut self, id: u32, call: &JetStreamCall) -> Parts {
        let (sender, upload) = mpsc::channel(PARTS);
        if let JetStreamCall::Store {
            call: StoreCall::Put { .. },
            ..
        } = call
        {
            self.uploads.insert(id, sender);
        }
        let (download, parts) = mpsc::channel(PARTS);
        if let JetStreamCall::Store {
            call: StoreCall::Get { .. },
            ..
        } = call
        {
            self.downloads.insert(id, ReceiverStream::new(parts));
        }
        Parts { upload, download }
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
        let in_flight = self.load.call();
        self.calls.push(Box::pin(async move {
            let _in_flight = in_flight;
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

fn done(reply: Reply) -> Result<Answer> {
    Ok((reply, Bytes::new()))
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
