//! The blocking end of the control channel, without threads and tokio. Pure; used by backends and by workers, on their
//! main thread.
//!
//! The caller says how to wait ([`Wait`]), so that PostgreSQL's latch and interrupts apply, and so that this file can
//! be tested without PostgreSQL. A wait may fail, when the statement is cancelled for example: then the request is
//! cancelled and its late reply is ignored.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ring::digest::{Context as Digest, SHA256};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::frame::{Frame, decode, encode};
use super::message::{Reply, Request};
use super::target::Link;
use crate::error::{Error, Kind, Result};

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Readable,
    /// Readable or writable: a process that reads on while it writes keeps both ends from waiting for each other.
    Both,
}

/// How a process waits for its socket.
pub trait Wait {
    /// Returns when the socket may be ready or the deadline has passed; fails if the statement is interrupted.
    fn wait(&mut self, socket: RawFd, interest: Interest, deadline: Instant) -> Result<()>;
    /// Whether [`Wait::wait`] would have an interrupt to serve; asked while polling.
    fn interrupted(&self) -> bool;
}

/// Bytes read at a time.
const READ: usize = 64 * 1024;
/// Size of the parts of an upload, in bytes.
const PART: usize = 128 * 1024;
/// Size of the socket's send buffer during an upload, in bytes; most kernels allow no more unless told to.
const UPLOAD_ROOM: usize = 212_992;
/// A session polls for its reply, before it sleeps, only while the runtime worker has no more calls than this in
/// flight: the session's own.
const POLL_LOAD: u16 = 1;

/// A connection to the runtime worker.
pub struct Client<W> {
    socket: UnixStream,
    wait: W,
    /// Encoded frames; those before `sent` have been written.
    out: Vec<u8>,
    sent: usize,
    /// Where a read puts its bytes, which then move on to `input`.
    chunk: Box<[u8]>,
    input: BytesMut,
    last_id: u32,
    /// [`Frame::load`] of the last reply.
    load: u16,
    /// News of links: the slot's number, and the link's new state.
    news: Vec<(u16, Link)>,
    /// Databases whose changed handlers have not taken effect in time.
    late_refreshes: Vec<u32>,
    /// The reply to the running call, if it came before the call was sent whole.
    early: Option<Frame<Reply>>,
    /// Orders that came while the worker was writing.
    orders: VecDeque<Frame<Reply>>,
    broken: bool,
}

/// Connects to the runtime worker without waiting; the error is `WouldBlock` if the socket's backlog is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

impl<W: Wait> Client<W> {
    /// Takes over a connected socket.
    pub fn new(socket: UnixStream, wait: W) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Client {
            socket,
            wait,
            out: Vec::new(),
            sent: 0,
            chunk: vec![0; READ].into_boxed_slice(),
            input: BytesMut::new(),
            last_id: 0,
            load: 0,
            news: Vec::new(),
            late_refreshes: Vec::new(),
            early: None,
            orders: VecDeque::new(),
            broken: false,
        })
    }

    /// Whether the connection is of no more use: the runtime worker is gone or not understood, or a transfer was given
    /// up.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Bytes that wait to be written.
    pub fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// News of links that came since the last call: the slot's number, and the link's new state.
    pub fn take_news(&mut self) -> Vec<(u16, Link)> {
        std::mem::take(&mut self.news)
    }

    /// Databases whose changed handlers have not taken effect in time, as was told since the last call.
    pub fn take_late_refreshes(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.late_refreshes)
    }

    /// Adds a frame that has no reply; [`Client::flush`] writes it.
    pub fn push(&mut self, request: &Request, body: &[u8]) -> Result<()> {
        self.encode(0, request, body)
    }

    /// Writes what is unsent; fails if that takes longer than until the deadline, or if the wait is interrupted.
    pub fn flush(&mut self, deadline: Instant) -> Result<()> {
        while !self.try_flush()? {
            self.read_news()?;
            if Instant::now() >= deadline {
                return Err(Error::new(
                    Kind::RuntimeUnavailable,
                    "the litmus_pgnats runtime worker does not take messages",
                )
                .detail("It may be waiting for a NATS server that is slow or unreachable."));
            }
            self.wait
                .wait(self.socket.as_raw_fd(), Interest::Both, deadline)?;
        }
        Ok(())
    }

    /// Writes what the socket takes at once; `true` when nothing is left.
    pub fn try_flush(&mut self) -> Result<bool> {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.lost(&error)),
            }
        }
        self.out.clear();
        // Capacity that a large frame has left is given back with the next small frame: parts of an object follow each
        // other.
        if self.sent < READ {
            self.out.shrink_to(READ);
        }
        self.sent = 0;
        Ok(true)
    }

    /// Reads what has arrived, without waiting: news is kept for [`Client::take_news`], late replies are dropped.
    pub fn read_news(&mut self) -> Result<()> {
        while self.read()? {}
        while let Some(frame) = self.decode()? {
            self.sort(frame);
        }
        Ok(())
    }

    /// Sends a request, after whatever is unsent, and waits for its reply until the deadline. Polls for up to `poll`
    /// before it sleeps.
    pub fn call(
        &mut self,
        request: &Request,
        body: &[u8],
        deadline: Instant,
        poll: Duration,
    ) -> Result<Frame<Reply>> {
        let call = self.start(request, body, OnDrop::Cancel)?;
        call.client.flush(deadline)?;
        let frame = call.client.reply(call.id, deadline, poll)?;
        call.finish(frame)
    }

    /// Sends a request and then `upload`, in parts and with its digest; gives the parts of the answer to `download`,
    /// and returns the final reply. The digest is computed here, while parts are on their way, because the runtime
    /// worker has one thread for all sessions. `idle` is the longest wait for progress. A transfer that is given up
    /// closes the connection.
    pub fn stream(
        &mut self,
        request: &Request,
        upload: Option<&[u8]>,
        idle: Duration,
        mut download: impl FnMut(Frame<Reply>) -> Result<()>,
    ) -> Result<Frame<Reply>> {
        let call = self.start(request, b"", OnDrop::Close)?;
        let (client, id) = (&mut *call.client, call.id);
        client.flush(Instant::now() + idle)?;
        if let Some(upload) = upload {
            client.upload(id, upload, idle)?;
        }
        loop {
            let frame = client.reply(id, Instant::now() + idle, Duration::ZERO)?;
            if !matches!(frame.message, Reply::Size(_) | Reply::Part) {
                return call.finish(frame);
            }
            download(frame)?;
        }
    }

    /// Waits for whatever the runtime worker says next; for workers, which are told and do not ask. There is no time
    /// limit; a single wait takes `longest_wait` at most.
    pub fn receive(&mut self, longest_wait: Duration) -> Result<Frame<Reply>> {
        if let Some(order) = self.orders.pop_front() {
            return Ok(order);
        }
        loop {
            if let Some(frame) = self.decode()? {
                return Ok(frame);
            }
            let deadline = Instant::now() + longest_wait;
            self.wait
                .wait(self.socket.as_raw_fd(), Interest::Readable, deadline)?;
            self.read()?;
        }
    }

    /// Sends an object with a larger send buffer than usual: the usual one holds one part, and is writable again only
    /// when most of that part has been read. Other frames do better with the usual one, because what waits in a socket
    /// has left the processor's cache.
    fn upload(&mut self, id: u32, content: &[u8], idle: Duration) -> Result<()> {
        let usual = SockRef::from(&self.socket).send_buffer_size();
        // With the usual buffer, the upload is only slower.
        let _ = SockRef::from(&self.socket).set_send_buffer_size(UPLOAD_ROOM);
        self.upload_parts(id, content, idle)?;
        if let Ok(usual) = usual {
            // The kernel doubles the size that it is given. With the larger buffer, other frames are only slower.
            let _ = SockRef::from(&self.socket).set_send_buffer_size(usual / 2);
        }
        Ok(())
    }

    fn upload_parts(&mut self, id: u32, content: &[u8], idle: Duration) -> Result<()> {
        let mut digest = Digest::new(&SHA256);
        for part in content.chunks(PART) {
            self.encode(0, &Request::Upload { upload: id }, part)?;
            self.flush(Instant::now() + idle)?;
            if self.early.is_some() {
                return Ok(());
            }
            digest.update(part);
        }
        self.encode(0, &Request::Upload { upload: id }, digest.finish().as_ref())?;
        self.flush(Instant::now() + idle)
    }

    fn start(&mut self, request: &Request, body: &[u8], on_drop: OnDrop) -> Result<PendingCall<'_, W>> {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        let id = self.last_id;
        self.encode(id, request, body)?;
        self.early = None;
        Ok(PendingCall {
            client: self,
            id,
            on_drop: Some(on_drop),
        })
    }

    fn reply(&mut self, id: u32, deadline: Instant, poll: Duration) -> Result<Frame<Reply>> {
        if let Some(frame) = self.early.take() {
            return Ok(frame);
        }
        let started = Instant::now();
        loop {
            while let Some(frame) = self.decode()? {
                self.load = frame.load;
                if frame.id == id {
                    return Ok(frame);
                }
                self.sort(frame);
            }
            let now = Instant::now();
            let polls =
                self.load <= POLL_LOAD && now.duration_since(started) < poll && !self.wait.interrupted();
            if !polls {
                self.wait
                    .wait(self.socket.as_raw_fd(), Interest::Readable, deadline)?;
            }
            if self.read()? {
                continue;
            }
            if now >= deadline {
                return Err(Error::new(
                    Kind::RuntimeUnavailable,
                    "the litmus_pgnats runtime worker does not answer",
                ));
            }
            if polls {
                std::thread::yield_now();
            }
        }
    }

    fn encode(&mut self, id: u32, request: &Request, body: &[u8]) -> Result<()> {
        if self.broken {
            return Err(Error::new(
                Kind::RuntimeLost,
                "the connection to the litmus_pgnats runtime worker is closed",
            ));
        }
        encode(&mut self.out, id, 0, request, body).map_err(|error| {
            Error::new(Kind::PayloadTooLarge, "message is too large").detail(format!("A {error}."))
        })
    }

    fn decode(&mut self) -> Result<Option<Frame<Reply>>> {
        let decoded = decode(&mut self.input);
        decoded.map_err(|error| {
            self.broken = true;
            Error::new(
                Kind::Protocol,
                "unintelligible answer of the litmus_pgnats runtime worker",
            )
            .detail(format!("A {error}."))
        })
    }

    /// Keeps a frame that nobody has waited for: news, an order or the early end of an upload. Drops a late reply.
    fn sort(&mut self, frame: Frame<Reply>) {
        match frame.message {
            Reply::Link { slot, link } => self.news.push((slot, link)),
            Reply::RefreshIsLate { database } => self.late_refreshes.push(database),
            Reply::Worker(_) => self.orders.push_back(frame),
            _ if frame.id == self.last_id => self.early = Some(frame),
            _ => {}
        }
    }

    /// Reads once without waiting; `false` when there is nothing.
    fn read(&mut self) -> Result<bool> {
        match self.socket.read(&mut self.chunk) {
            Ok(0) => Err(self.lost(&io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => {
                self.input
                    .extend_from_slice(self.chunk.get(..read).unwrap_or(&[]));
                Ok(true)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn lost(&mut self, error: &io::Error) -> Error {
        self.broken = true;
        // The kernel reports a reset, and not an end of file, if the runtime worker ended without having read all
        // frames of this end.
        let unread = error.kind() == io::ErrorKind::ConnectionReset || self.unsent() > 0;
        let lost = Error::new(
            Kind::RuntimeLost,
            "the litmus_pgnats runtime worker ended during the call",
        );
        if unread {
            lost.detail("Messages that this session had published may not have been sent.")
        } else {
            lost
        }
    }
}

/// What becomes of a request that is given up.
enum OnDrop {
    Cancel,
    /// Frames are on their way in both directions, and only the end of the connection stops them.
    Close,
}

/// A request that waits for its reply.
struct PendingCall<'a, W: Wait> {
    client: &'a mut Client<W>,
    id: u32,
    on_drop: Option<OnDrop>,
}

impl<W: Wait> PendingCall<'_, W> {
    fn finish(mut self, frame: Frame<Reply>) -> Result<Frame<Reply>> {
        self.on_drop = None;
        match frame.message {
            Reply::Failed(error) => Err(error),
            _ => Ok(frame),
        }
    }
}

impl<W: Wait> Drop for PendingCall<'_, W> {
    fn drop(&mut self) {
        // Never waits: the statement is being given up. What is left of a cancel is sent with the next statement.
        let outcome = match self.on_drop {
            _ if self.client.broken => return,
            None => return,
            Some(OnDrop::Cancel) => {
                let cancel = self.client.push(&Request::Cancel { request: self.id }, b"");
                cancel.and_then(|()| self.client.try_flush().map(|_| ()))
            }
            Some(OnDrop::Close) => Err(Error::new(Kind::Interrupted, "given up")),
        };
        if outcome.is_err() {
            self.client.broken = true;
            // A socket that cannot be shut down is closed with the session.
            let _ = self.client.socket.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::work::{FromWorker, ToWorker};
    use bytes::Bytes;

    /// Waits a little; fails, as for a cancelled statement, when told to. Keeps the deadlines.
    #[derive(Default)]
    struct Sleep {
        interrupt: bool,
        /// Number of the wait that fails.
        interrupt_at: Option<usize>,
        deadlines: Vec<Instant>,
    }

    impl Wait for Sleep {
        fn wait(&mut self, _: RawFd, _: Interest, deadline: Instant) -> Result<()> {
            self.deadlines.push(deadline);
            if self.interrupt || self.interrupt_at == Some(self.deadlines.len()) {
                return Err(Error::new(Kind::Interrupted, "cancelled"));
            }
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        }
        fn interrupted(&self) -> bool {
            self.interrupt
        }
    }

    /// The other end: reads requests and answers as told.
    struct FakeRuntime {
        socket: UnixStream,
        buffer: BytesMut,
    }

    impl FakeRuntime {
        fn next(&mut self) -> Frame<Request> {
            loop {
                if let Some(frame) = decode(&mut self.buffer).expect("valid frame") {
                    return frame;
                }
                let mut chunk = [0; 4096];
                let read = self.socket.read(&mut chunk).expect("read");
                assert_ne!(read, 0, "client closed");
                self.buffer.extend_from_slice(&chunk[..read]);
            }
        }
        fn send(&mut self, id: u32, reply: &Reply, body: &[u8]) {
            let mut wire = Vec::new();
            encode(&mut wire, id, 7, reply, body).expect("encodes");
            self.socket.write_all(&wire).expect("write");
        }
    }

    fn pair() -> (Client<Sleep>, FakeRuntime) {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        let client = Client::new(ours, Sleep::default()).expect("client");
        (
            client,
            FakeRuntime {
                socket: theirs,
                buffer: BytesMut::new(),
            },
        )
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    fn call(client: &mut Client<Sleep>, deadline: Instant) -> Result<Frame<Reply>> {
        client.call(&Request::Barrier, b"", deadline, Duration::ZERO)
    }

    #[test]
    fn a_late_reply_is_not_taken_for_the_next_ones() {
        let (mut client, mut peer) = pair();
        let given_up = call(&mut client, Instant::now()).expect_err("deadline has passed");
        assert_eq!(given_up.kind, Kind::RuntimeUnavailable);
        let first = peer.next();
        assert!(matches!(peer.next().message, Request::Cancel { request } if request == first.id));
        let answering = std::thread::spawn(move || {
            let second = peer.next();
            peer.send(first.id, &Reply::MappingsInUse { mappings: vec![1] }, b"late");
            peer.send(
                0,
                &Reply::Link {
                    slot: 4,
                    link: Link::default(),
                },
                b"",
            );
            peer.send(second.id, &Reply::Done, b"");
        });
        assert_eq!(call(&mut client, soon()).expect("answered").message, Reply::Done);
        answering.join().expect("peer");
        assert_eq!(client.take_news(), [(4, Link::default())]);
    }

    #[test]
    fn an_interrupted_wait_cancels_and_leaves_the_connection_usable() {
        let (mut client, mut peer) = pair();
        client.wait.interrupt = true;
        assert_eq!(
            call(&mut client, soon()).expect_err("interrupted").kind,
            Kind::Interrupted
        );
        client.wait.interrupt = false;
        let first = peer.next().id;
        assert!(matches!(peer.next().message, Request::Cancel { request } if request == first));
        let answering = std::thread::spawn(move || {
            let id = peer.next().id;
            peer.send(id, &Reply::Message { headers: vec![] }, b"body");
        });
        assert_eq!(
            call(&mut client, soon()).expect("answered").body,
            Bytes::from_static(b"body")
        );
        answering.join().expect("peer");
    }

    #[test]
    fn the_end_of_the_runtime_is_an_error_at_once() {
        let (mut client, peer) = pair();
        drop(peer);
        assert_eq!(
            call(&mut client, soon()).expect_err("gone").kind,
            Kind::RuntimeLost
        );
        assert!(client.is_broken());
    }

    #[test]
    fn a_full_socket_waits_until_the_deadline_and_keeps_frames_whole() {
        let (mut client, mut peer) = pair();
        let message = Request::Publish {
            slot: 0,
            subject: "a".into(),
            reply: None,
            headers: vec![],
            wait_ms: 0,
        };
        let body = vec![b'x'; 4 << 20];
        client.push(&message, &body).expect("encodes");
        let full = client
            .flush(Instant::now() + Duration::from_millis(20))
            .expect_err("nobody reads");
        assert_eq!(full.kind, Kind::RuntimeUnavailable);
        let reading = std::thread::spawn(move || (peer.next().body.len(), peer.next().body));
        client.push(&message, b"next").expect("encodes");
        client.flush(soon()).expect("written");
        assert_eq!(
            reading.join().expect("peer"),
            (4 << 20, Bytes::from_static(b"next"))
        );
    }

    #[test]
    fn an_order_that_comes_while_a_large_answer_is_written_is_kept() {
        let (mut client, mut peer) = pair();
        peer.send(0, &Reply::Worker(refresh()), b"");
        peer.send(0, &Reply::Worker(ToWorker::End), b"");
        let said = Request::Worker(FromWorker::Vanished);
        client.push(&said, &vec![b'x'; 4 << 20]).expect("encodes");
        let reading = std::thread::spawn(move || {
            peer.next();
            peer
        });
        client.flush(soon()).expect("written");
        let mut peer = reading.join().expect("peer");
        peer.send(0, &Reply::Worker(refresh()), b"");
        for told in [refresh(), ToWorker::End, refresh()] {
            let order = client.receive(Duration::from_secs(10)).expect("an order");
            assert_eq!(order.message, Reply::Worker(told));
        }
    }

    fn refresh() -> ToWorker {
        ToWorker::Refresh { removed: Vec::new() }
    }

    /// A worker that is told nothing for long waits on, and does not spin.
    #[test]
    fn each_wait_for_an_order_has_its_whole_time() {
        let (mut client, _peer) = pair();
        client.wait.interrupt_at = Some(3);
        let end = client.receive(Duration::ZERO).expect_err("interrupted");
        assert_eq!(end.kind, Kind::Interrupted);
        let deadlines = &client.wait.deadlines;
        assert!(deadlines.is_sorted_by(|one, next| one < next), "{deadlines:?}");
    }
}
