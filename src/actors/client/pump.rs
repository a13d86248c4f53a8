//! The task of a client: writes what goes out, and takes what the server says, until the connection or the client ends.
//! Whatever ends the task, a panic included, the connection counts as lost. In the actor thread.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::dial::Socket;
use super::interface::{InboxState, Observer};
use super::shared::{Lines, Next, Shared};
use crate::actors::base::tasks;
use crate::nats::wire;

/// Time between PINGs.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes to read at a time.
const READ: usize = 64 * 1024;
/// PINGs from one attempt to subscribe to the replies to the next one, where the user may not.
const FORBIDDEN_TICKS: u32 = 30;
/// A buffer that has grown beyond this is not kept.
const KEPT: usize = 1024 * 1024;

/// Tells, when it is dropped, that the connection has ended.
struct End<O: Observer> {
    shared: Arc<Shared>,
    observer: O,
    reason: String,
}

impl<O: Observer> Drop for End<O> {
    fn drop(&mut self) {
        self.shared.end();
        self.observer.lost(&self.reason);
    }
}

/// Runs the connection until it ends, or until `abandoned` is cancelled. `input` is what has been read already.
pub(super) async fn run<O: Observer>(
    stream: Socket,
    input: BytesMut,
    shared: Arc<Shared>,
    abandoned: CancellationToken,
    observer: O,
) {
    let mut end = End {
        shared: shared.clone(),
        observer: observer.clone(),
        reason: "its task has ended".into(),
    };
    let pumped = abandoned.run_until_cancelled(pump(stream, input, &shared, &observer));
    end.reason = pumped
        .await
        .unwrap_or_else(|| "the client is not used any more".into());
}

/// Reads and writes; returns why the connection has ended.
async fn pump<O: Observer>(
    stream: Socket,
    mut input: BytesMut,
    shared: &Arc<Shared>,
    observer: &O,
) -> String {
    let mut output = Output::of(&stream);
    let (mut reader, mut writer) = split(stream);
    let (mut lines, mut has_much) = (Lines::default(), false);
    let (mut read_at, mut ticks) = (std::time::Instant::now(), 0);
    let mut clock = interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if let Err(reason) = understand(&mut input, shared, &mut lines, observer) {
            return reason;
        }
        if std::mem::take(&mut has_much) {
            // Others take theirs before more is read.
            tokio::task::yield_now().await;
        }
        output.refill(shared);
        if input.is_empty() && input.capacity() > KEPT {
            input = BytesMut::new();
        }
        if input.capacity() - input.len() < READ / 4 {
            input.reserve(READ);
        }
        let is_idle = output.is_done();
        tokio::select! {
            read = reader.read_buf(&mut input) => match read {
                Ok(0) => return "it has closed the connection".into(),
                Ok(count) => {
                    shared.traffic.read(count);
                    read_at = std::time::Instant::now();
                    has_much = count >= READ / 4;
                }
                Err(error) => return error.to_string(),
            },
            written = output.write(&mut writer), if !is_idle => if let Err(error) = written {
                return error.to_string();
            },
            () = shared.wake.notified(), if is_idle => {}
            _ = clock.tick() => {
                ticks += 1;
                open_inbox(shared, ticks);
                if let Err(reason) = shared.look_after([read_at, output.moved_at()]) {
                    return reason;
                }
            }
        }
    }
}

/// Has the replies subscribed to again, now and then, if the server has refused that.
fn open_inbox(shared: &Arc<Shared>, ticks: u32) {
    let is_due = match shared.requests.inbox() {
        InboxState::Open => false,
        InboxState::TooManySubscriptions => true,
        // Each attempt is a line in the NATS server's log.
        InboxState::Forbidden => ticks.is_multiple_of(FORBIDDEN_TICKS),
    };
    if is_due {
        let shared = shared.clone();
        tasks::spawn(
            "subscription of replies",
            async move { shared.open_inbox().await },
        );
    }
}

/// Takes all that has come whole.
fn understand<O: Observer>(
    input: &mut BytesMut,
    shared: &Shared,
    lines: &mut Lines,
    observer: &O,
) -> Result<(), String> {
    loop {
        let op = wire::read(input).map_err(|wire::Malformed(what)| format!("it sent {what}"))?;
        let Some(op) = op else { return Ok(()) };
        if shared.take(op, lines)? == Next::Tell {
            observer.news();
        }
    }
}

/// Bytes that are being written.
struct Output {
    bytes: Vec<u8>,
    written: usize,
    /// Whether what was written may still lie in a buffer, as with TLS.
    is_buffered: bool,
    needs_flush: bool,
    /// When something was written last.
    moved_at: std::time::Instant,
}

impl Output {
    fn of(stream: &Socket) -> Output {
        Output {
            bytes: Vec::new(),
            written: 0,
            is_buffered: matches!(stream, Socket::Tls(_)),
            needs_flush: false,
            moved_at: std::time::Instant::now(),
        }
    }

    fn is_done(&self) -> bool {
        self.written >= self.bytes.len() && !self.needs_flush
    }

    /// When something was written last; now, if there is nothing to write.
    fn moved_at(&self) -> std::time::Instant {
        if self.is_done() {
            std::time::Instant::now()
        } else {
            self.moved_at
        }
    }

    /// Takes what is to be written next, once all before is written.
    fn refill(&mut self, shared: &Shared) {
        if self.written < self.bytes.len() {
            return;
        }
        self.bytes.clear();
        self.written = 0;
        if self.bytes.capacity() > KEPT {
            self.bytes = Vec::new();
        }
        std::mem::swap(&mut self.bytes, &mut shared.outgoing.lock().buffer);
        if !self.bytes.is_empty() {
            self.moved_at = std::time::Instant::now();
            shared.written.notify_waiters();
        }
    }

    /// Writes what the socket takes. May be given up at any time.
    async fn write(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        let rest = self.bytes.get(self.written..).unwrap_or_default();
        if rest.is_empty() {
            writer.flush().await?;
            self.needs_flush = false;
            return Ok(());
        }
        match writer.write(rest).await? {
            0 => pending().await,
            count => self.written += count,
        }
        self.moved_at = std::time::Instant::now();
        self.needs_flush = self.is_buffered;
        Ok(())
    }
}
