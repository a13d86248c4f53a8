//! One session of the control channel: a backend's requests in, replies out. A task of the actor thread.
//!
//! Publishes are taken one after another, which keeps their order and lets a slow NATS server hold up the sender;
//! everything else runs beside them, so that a session can cancel what it waits for.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::message::OutboundMessage;
use bytes::Bytes;
use futures::future::{AbortHandle, LocalBoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::{StreamMap, wrappers::ReceiverStream};

use super::addresses::Addresses;
use super::calls::CallReply;
use super::wakeup_coalescing::WakeupCoalescing;
use crate::actors::connection::headers::header_map;
use crate::actors::connection::interface::Publish;
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::connections::interface::{ConnectionHandle, ConnectionLeft, SessionGuard, stopped};
use crate::actors::metrics::in_flight::InFlight;
use crate::actors::workers::messages::ResumeDatabase;
use crate::actors::workers::worker_session;
use crate::channel::frame::Frame;
use crate::channel::message::{Reply, Request};
use crate::channel::server::{FrameReader, FrameWriter};
use crate::channel::target::Key;
use crate::channel::worker_id::WorkerId;
use crate::error::{Error, Kind, Result};

/// When the runtime ends, what a session sent before is waited for so long.
const LAST_READ: Duration = Duration::from_millis(20);

/// A call's id and outcome; none if it was cancelled.
type Called = (u32, Option<Result<CallReply>>);
/// A slot whose link has changed, where to look, and what tells of the slot's end; none if it, or the connection, is gone.
type Changed = Option<(u16, watch::Receiver<ConnectionStatus>, oneshot::Receiver<()>)>;

pub(super) struct SessionSlot {
    pub(super) key: Key,
    pub(super) server_name: String,
    pub(super) handle: ConnectionHandle,
    pub(super) _session: SessionGuard,
    /// Its end is the end of the news of its link.
    pub(super) _watched: oneshot::Sender<()>,
}

/// The state of a session.
pub struct Session {
    pub(super) writer: FrameWriter,
    pub(super) actors: Addresses,
    pub(super) load: InFlight,
    pub(super) pace: WakeupCoalescing,
    /// For `pace`.
    pub(super) seen: u64,
    pub(super) welcome: bool,
    /// The process at the other end.
    pub(super) pid: u32,
    /// Ticket of an executor, which is served elsewhere.
    pub(super) executor: Option<WorkerId>,
    /// Databases that the session has had drained.
    pub(super) drained: Vec<u32>,
    pub(super) slots: HashMap<u16, SessionSlot>,
    pub(super) calls: FuturesUnordered<LocalBoxFuture<'static, Called>>,
    pub(super) cancels: HashMap<u32, AbortHandle>,
    pub(super) news: FuturesUnordered<LocalBoxFuture<'static, Changed>>,
    /// Objects that are being put, and got, by the call's id.
    pub(super) uploads: HashMap<u32, mpsc::Sender<Bytes>>,
    pub(super) downloads: StreamMap<u32, ReceiverStream<CallReply>>,
    /// Publishes that wait for the session's commit.
    pub(super) held: Option<Vec<Run>>,
    /// Why a publish that a `Fence` will ask for could not be taken.
    pub(super) refused: Option<Error>,
    /// A reply could not be written.
    pub(super) peer_is_gone: bool,
}

impl Session {
    pub fn new(writer: FrameWriter, actors: Addresses, load: InFlight, pace: WakeupCoalescing) -> Self {
        Session {
            writer,
            actors,
            load,
            pace,
            seen: 0,
            welcome: false,
            pid: 0,
            executor: None,
            drained: Vec::new(),
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
        for database in std::mem::take(&mut self.drained) {
            self.actors.dispatcher.do_send(ResumeDatabase(database));
        }
        if let Some(worker) = self.executor {
            let pid = self.pid;
            let Addresses {
                dispatcher, outbox, ..
            } = self.actors;
            let served = if worker.is_outbox_relay() {
                worker_session::serve(worker, pid, reader, self.writer, outbox, finish).await
            } else {
                worker_session::serve(worker, pid, reader, self.writer, dispatcher, finish).await
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
                    if let Some((slot, mut status, end)) = changed {
                        let link = status.borrow_and_update().link;
                        self.watch(slot, status, end);
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
    pub(super) fn leave(&self, slot: SessionSlot) {
        let key = slot.key;
        drop(slot);
        self.actors.supervisor.do_send(ConnectionLeft(key));
    }

    /// A call has come to its end.
    pub(super) async fn called(
        &mut self,
        id: u32,
        outcome: Option<Result<CallReply>>,
    ) -> std::io::Result<()> {
        self.cancels.remove(&id);
        self.uploads.remove(&id);
        match outcome {
            Some(outcome) => self.reply(id, outcome).await,
            None => Ok(()),
        }
    }

    /// Writes a reply. That the other end is gone is no failure: what it has sent before is still to be read, and the
    /// end of that ends the session.
    pub(super) async fn reply(&mut self, id: u32, outcome: Result<CallReply>) -> std::io::Result<()> {
        if self.peer_is_gone {
            return Ok(());
        }
        let (reply, body) = outcome.unwrap_or_else(|error| (Reply::Failed(error), Bytes::new()));
        let written = self.writer.send(id, self.load.peak(), &reply, &body).await;
        match written {
            // It is too large for a frame; the peer waits for an answer.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                let failed = Reply::Failed(Error::new(Kind::PayloadTooLarge, "the answer is too large"));
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
            if let Request::Refresh { database } = frame.message
                && let Some(Request::Refresh { database: next }) = frames.peek().map(|next| &next.message)
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

    pub(super) async fn publish(&mut self, run: Run) {
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

    /// Sends news of the slot's link when it changes next, until the slot's end.
    pub(super) fn watch(
        &mut self,
        slot: u16,
        mut status: watch::Receiver<ConnectionStatus>,
        mut end: oneshot::Receiver<()>,
    ) {
        let before = status.borrow_and_update().link;
        self.news.push(Box::pin(async move {
            let changed = tokio::select! {
                changed = status.wait_for(|status| status.link != before) => changed.is_ok(),
                _ = &mut end => false,
            };
            changed.then_some((slot, status, end))
        }));
    }
}

/// Neighbouring publishes to one slot.
#[derive(Default)]
pub(super) struct Run {
    slot: u16,
    wait_ms: u32,
    messages: Vec<OutboundMessage>,
}

/// Gives messages to the connection, waiting for room: until the deadline, or as long as it takes.
async fn hand_in(
    handle: &ConnectionHandle,
    messages: Vec<OutboundMessage>,
    deadline: Option<Instant>,
) -> Result<()> {
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

fn buffer_full(status: &ConnectionStatus, total: usize, refused: usize) -> Error {
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

pub(super) fn unknown_slot() -> Error {
    Error::new(Kind::Protocol, "unknown slot")
}
