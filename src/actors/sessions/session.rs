//! One session of the control channel: a backend's requests in, replies out. A task of the actor thread.
//!
//! Publishes are taken one after another, which keeps their order and lets a slow NATS server hold up the sender.
//! Everything else runs beside them, so that a session can cancel what it waits for. `requests.rs` has what is done for
//! each request.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::addresses::Addresses;
use super::calls::CallReply;
use super::wakeup_coalescing::WakeupCoalescing;
use crate::actors::connection::interface::Publish;
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::connections::interface::{ConnectionHandle, stopped};
use crate::actors::metrics::in_flight::InFlight;
use crate::actors::workers::messages::ResumeDatabase;
use crate::actors::workers::worker_session;
use crate::channel::frame::Frame;
use crate::channel::message::{Reply, Request};
use crate::channel::server::{FrameReader, FrameWriter};
use crate::channel::target::Key;
use crate::channel::worker_id::WorkerId;
use crate::error::{Error, Kind, Result};
use crate::nats::message::Outbound;

/// At the end of the runtime, a session is read until nothing has come for this long.
const LAST_READ: Duration = Duration::from_millis(20);

/// A call's id and outcome; `None` if the call was cancelled, or wants no reply.
type Called = (u32, Option<Result<CallReply>>);
/// A slot whose link has changed, the status that tells of the next change, and the channel that tells of the slot's
/// end. `None` if the slot, or the connection, is gone.
type Changed = Option<(u16, watch::Receiver<ConnectionStatus>, oneshot::Receiver<()>)>;
/// The id of a call that gets an object, the object's next part (`None` at the end), and the channel of further parts.
type Downloaded = (u32, Option<CallReply>, mpsc::Receiver<CallReply>);

/// A connection that the session uses under a number of its own.
pub(super) struct SessionSlot {
    pub(super) key: Key,
    pub(super) server_name: String,
    pub(super) handle: ConnectionHandle,
    /// Dropping this ends the news of the slot's link.
    pub(super) _watched: oneshot::Sender<()>,
}

/// A database that the session has drained. Dropping this resumes the database.
pub(super) struct DrainedDatabase {
    pub(super) database: u32,
    pub(super) dispatcher: actix::Recipient<ResumeDatabase>,
}

impl Drop for DrainedDatabase {
    fn drop(&mut self) {
        self.dispatcher.do_send(ResumeDatabase(self.database));
    }
}

/// The state of a session.
pub struct Session {
    pub(super) writer: FrameWriter,
    pub(super) actors: Addresses,
    pub(super) in_flight: InFlight,
    pub(super) coalescing: WakeupCoalescing,
    /// The window in which the session has last published, for `coalescing`.
    pub(super) seen: u64,
    /// Whether the peer has greeted with our protocol version.
    pub(super) welcome: bool,
    /// The process at the other end.
    pub(super) pid: u32,
    /// The worker at the other end, if there is one; `worker_session` serves it.
    pub(super) worker: Option<WorkerId>,
    pub(super) drained: Vec<DrainedDatabase>,
    pub(super) slots: HashMap<u16, SessionSlot>,
    pub(super) calls: FuturesUnordered<LocalBoxFuture<'static, Called>>,
    /// What cancels a call, by the call's id.
    pub(super) cancels: HashMap<u32, CancellationToken>,
    /// The next changes of the slots' links.
    pub(super) news: FuturesUnordered<LocalBoxFuture<'static, Changed>>,
    /// Objects that are being put, by the call's id.
    pub(super) uploads: HashMap<u32, mpsc::Sender<Bytes>>,
    /// The next parts of objects that are being got.
    pub(super) downloads: FuturesUnordered<LocalBoxFuture<'static, Downloaded>>,
    /// Publishes that wait for the session's commit; `None` if publishes are sent at once.
    pub(super) held: Option<Vec<PublishRun>>,
    /// Why a publish could not be taken: the answer to the next `Barrier`.
    pub(super) refused: Option<Error>,
    /// Whether the other end is gone: a reply could not be written.
    peer_is_gone: bool,
}

impl Session {
    pub fn new(
        writer: FrameWriter,
        actors: Addresses,
        in_flight: InFlight,
        coalescing: WakeupCoalescing,
    ) -> Self {
        Session {
            writer,
            actors,
            in_flight,
            coalescing,
            seen: 0,
            welcome: false,
            pid: 0,
            worker: None,
            drained: Vec::new(),
            slots: HashMap::new(),
            calls: FuturesUnordered::new(),
            cancels: HashMap::new(),
            news: FuturesUnordered::new(),
            uploads: HashMap::new(),
            downloads: FuturesUnordered::new(),
            held: None,
            refused: None,
            peer_is_gone: false,
        }
    }

    /// Serves the session until it ends, or the runtime does.
    pub async fn run(mut self, mut reader: FrameReader, finish: CancellationToken) {
        if let Err(error) = self.serve(&mut reader, &finish).await {
            log::debug!("session of the control channel ended: {error}");
        }
        if let Some(worker) = self.worker {
            let (pid, writer) = (self.pid, self.writer);
            let Addresses {
                dispatcher, outbox, ..
            } = self.actors;
            let served = if worker.is_outbox_relay() {
                worker_session::serve(worker, pid, reader, writer, outbox, finish).await
            } else {
                worker_session::serve(worker, pid, reader, writer, dispatcher, finish).await
            };
            if let Err(error) = served {
                log::debug!("session of a worker ended: {error}");
            }
        }
    }

    async fn serve(&mut self, reader: &mut FrameReader, finish: &CancellationToken) -> std::io::Result<()> {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                // Polled in this order, so that the parts of a download are sent before the call's own reply.
                biased;
                Some((id, part, rest)) = self.downloads.next() => self.downloaded(id, part, rest).await?,
                more = reader.next(&mut batch) => {
                    if !more? {
                        return Ok(());
                    }
                    self.take(&mut batch).await?;
                    if self.worker.is_some() {
                        return Ok(());
                    }
                }
                Some((id, outcome)) = self.calls.next() => self.called(id, outcome).await?,
                Some(changed) = self.news.next() => {
                    if let Some((slot, mut status, end)) = changed {
                        let link = status.borrow_and_update().link;
                        self.watch(slot, status, end);
                        self.reply(0, Ok((Reply::Link { slot, link }, Bytes::new()))).await?;
                    }
                }
                () = finish.cancelled() => {
                    while timeout(LAST_READ, reader.next(&mut batch)).await.is_ok_and(|read| matches!(read, Ok(true))) {
                        self.take(&mut batch).await?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// A call has ended: its reply is sent, if it wants one.
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

    /// Writes a reply. It is no failure if the other end is gone: what it has sent before is still to be read, and the
    /// end of that ends the session.
    pub(super) async fn reply(&mut self, id: u32, outcome: Result<CallReply>) -> std::io::Result<()> {
        if self.peer_is_gone {
            return Ok(());
        }
        let (reply, body) = outcome.unwrap_or_else(|error| (Reply::Failed(error), Bytes::new()));
        let written = self.writer.send(id, self.in_flight.peak(), &reply, &body).await;
        match written {
            // The reply is too large for a frame, and the peer waits for an answer.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                let failed = Reply::Failed(Error::new(Kind::PayloadTooLarge, "the answer is too large"));
                let written = self.writer.send(id, self.in_flight.peak(), &failed, b"").await;
                self.peer_is_gone = written.is_err();
            }
            written => self.peer_is_gone = written.is_err(),
        }
        Ok(())
    }

    /// Handles frames in order; consecutive publishes are sent together.
    async fn take(&mut self, batch: &mut Vec<Frame<Request>>) -> std::io::Result<()> {
        let mut run = PublishRun::default();
        let mut frames = batch.drain(..).peekable();
        while let Some(frame) = frames.next() {
            // The next frame asks for the same refresh, which sees all that this one would: many commits in a row need
            // few refreshes.
            if let Request::Refresh { database } = frame.message
                && let Some(Request::Refresh { database: next }) = frames.peek().map(|next| &next.message)
                && *next == database
            {
                continue;
            }
            if !self.welcome && !matches!(frame.message, Request::Hello { .. }) {
                return Err(std::io::Error::other("the first frame is not a greeting"));
            }
            match frame.message {
                Request::Publish {
                    slot,
                    subject,
                    reply,
                    headers,
                    wait_ms,
                } => {
                    if !run.is_for(slot, wait_ms) {
                        let full = std::mem::replace(&mut run, PublishRun::new(slot, wait_ms));
                        self.publish(full).await;
                    }
                    run.messages.push(Outbound {
                        subject,
                        reply,
                        headers,
                        payload: frame.body,
                    });
                }
                message => {
                    self.publish(std::mem::take(&mut run)).await;
                    self.dispatch(frame.id, message, frame.body).await?;
                }
            }
        }
        self.publish(run).await;
        Ok(())
    }

    pub(super) async fn publish(&mut self, run: PublishRun) {
        if run.messages.is_empty() || (run.wait_ms > 0 && self.refused.is_some()) {
            return;
        }
        if let Some(held) = &mut self.held {
            held.push(run);
            return;
        }
        let deadline = (run.wait_ms > 0).then(|| Instant::now() + Duration::from_millis(run.wait_ms.into()));
        let bytes = run.messages.iter().map(|message| message.payload.len()).sum();
        self.coalescing.took(&mut self.seen, run.messages.len(), bytes);
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

    /// Reports the next change of the slot's link, until the slot ends.
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

/// Consecutive publishes to one slot.
#[derive(Default)]
pub(super) struct PublishRun {
    slot: u16,
    wait_ms: u32,
    messages: Vec<Outbound>,
}

impl PublishRun {
    fn new(slot: u16, wait_ms: u32) -> PublishRun {
        PublishRun {
            slot,
            wait_ms,
            messages: Vec::new(),
        }
    }

    fn is_for(&self, slot: u16, wait_ms: u32) -> bool {
        (self.slot, self.wait_ms) == (slot, wait_ms)
    }
}

/// Hands messages to the connection, and waits for room: until the deadline, or as long as it takes. Without a deadline
/// the session is told nothing, and is not read meanwhile, so that its socket fills and the sender is held up. Fails
/// with `BufferFull` at the deadline.
async fn hand_in(
    handle: &ConnectionHandle,
    messages: Vec<Outbound>,
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
        let detail = error.detail.as_deref().unwrap_or("");
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
