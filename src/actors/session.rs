//! One session of the control channel: a backend's requests in, replies out. A task of the actor thread.
//!
//! Publishes are taken one after another, which keeps their order and lets a slow NATS server hold up the sender;
//! everything else runs beside them, so that a session can cancel what it waits for.

mod requests;

use std::collections::HashMap;
use std::time::Duration;

use async_nats::message::OutboundMessage;
use bytes::Bytes;
use futures::future::{AbortHandle, LocalBoxFuture};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::{StreamMap, wrappers::ReceiverStream};

use super::calls::{Answer, header_map};
use super::connection::Publish;
use super::dispatcher::Release;
use super::executor_session;
use super::gateway::Actors;
use super::load::Load;
use super::outbox::is_courier;
use super::pace::Pace;
use super::status::Status;
use super::supervisor::{Handle, Left, Seat, stopped};
use crate::channel::frame::Frame;
use crate::channel::message::{Key, Reply, Request};
use crate::channel::server::{FrameReader, FrameWriter};
use crate::error::{Error, Kind, Result};

/// When the runtime ends, what a session sent before is waited for so long.
const LAST_READ: Duration = Duration::from_millis(20);

/// A call's id and outcome; none if it was cancelled.
type Called = (u32, Option<Result<Answer>>);
/// A slot whose link has changed, where to look, and what tells of the slot's end; none if it, or the connection, is gone.
type Changed = Option<(u16, watch::Receiver<Status>, oneshot::Receiver<()>)>;

struct Slot {
    key: Key,
    server_name: String,
    handle: Handle,
    _seat: Seat,
    /// Its end is the end of the news of its link.
    _watched: oneshot::Sender<()>,
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

    /// Sends news of the slot's link when it changes next, until the slot's end.
    fn watch(&mut self, slot: u16, mut status: watch::Receiver<Status>, mut end: oneshot::Receiver<()>) {
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

fn unknown_slot() -> Error {
    Error::new(Kind::Protocol, "unknown slot")
}
