//! The actor system in a thread, and sessions that speak the control channel with the channel's own client.

use std::io::Write;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use litmus_pgnats::actors::base::queue_limits::Limits;
use litmus_pgnats::actors::system::{self, Config, SystemEnd};
use litmus_pgnats::actors::workers::launcher::{Launcher, Sizes};
use litmus_pgnats::channel::client::{Client, Interest, Wait};
use litmus_pgnats::channel::frame::{Frame, encode};
use litmus_pgnats::channel::message::{PROTOCOL, Peer, Reply, Request};
use litmus_pgnats::channel::target::{Key, Link, Target};
use litmus_pgnats::channel::worker_id::WorkerId;
use litmus_pgnats::error::{Error, Kind, Result};
use litmus_pgnats::server_role::{ServerIdentity, ServerRole};
use litmus_pgnats::settings::Settings;
use tokio::sync::{mpsc, oneshot};

use crate::support::*;

pub const SOON: Duration = Duration::from_secs(15);

/// Nobody starts executors.
struct NoWorkers;

impl Launcher for NoWorkers {
    fn start(&self, _: WorkerId, _: u32) {}
    fn terminate(&self, _: WorkerId) {}
}

/// The actor system in a thread of its own, as the runtime worker has it.
pub struct Runtime {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<SystemEnd>>,
    pub place: tempfile::TempDir,
}

impl Runtime {
    pub async fn start() -> Self {
        let place = tempfile::tempdir_in("/tmp").expect("a directory");
        let (stop, stopped) = oneshot::channel();
        let config = Config {
            socket: place.path().join("sock"),
            cluster: "test".into(),
            launcher: Arc::new(NoWorkers),
            notices: mpsc::unbounded_channel().1,
            limits: Limits::new(1000, 1 << 20, 1 << 24),
            sizes: Arc::new(Sizes {
                executors: 1.into(),
                idle_ms: 1000.into(),
                callback_ms: 0.into(),
                outbox_retry_ms: 0.into(),
                changed: Default::default(),
            }),
            fencing: Arc::default(),
            identity: ServerIdentity {
                listen_addresses: Vec::new(),
                port: 5432,
                system_identifier: 1,
                start: 1,
            },
            role: ServerRole {
                is_primary: true,
                timeline: 1,
            },
            databases: Vec::new(),
            memory: place.path().join("notified"),
        };
        let thread = std::thread::spawn(move || system::run(config, stopped));
        let runtime = Self {
            stop: Some(stop),
            thread: Some(thread),
            place,
        };
        eventually(SOON, async || {
            UnixStream::connect(runtime.place.path().join("sock"))
        })
        .await;
        runtime
    }

    /// A session that has greeted.
    pub fn session(&self) -> Session {
        let mut session = self.stranger();
        let welcome = session
            .call(Request::Hello {
                protocol: PROTOCOL,
                pid: 1,
                peer: Peer::Session,
            })
            .expect("welcome");
        assert_eq!(welcome.message, Reply::Welcome { protocol: PROTOCOL });
        session
    }

    /// A session that has not.
    pub fn stranger(&self) -> Session {
        let socket = UnixStream::connect(self.place.path().join("sock")).expect("connect");
        let interrupt = Arc::<AtomicBool>::default();
        let copy = socket.try_clone().expect("a second handle");
        let client = Client::new(socket, Poll(interrupt.clone())).expect("a client");
        Session {
            client,
            interrupt,
            socket: copy,
        }
    }

    pub async fn stop(mut self) -> SystemEnd {
        let _ = self.stop.take().expect("stopped once").send(());
        self.join().await
    }

    pub async fn join(&mut self) -> SystemEnd {
        let thread = self.thread.take().expect("joined once");
        eventually(SOON, async || thread.is_finished()).await;
        thread.join().expect("no panic")
    }
}

/// Waits with poll(2); fails once it is told to, as a cancelled statement does.
pub struct Poll(pub Arc<AtomicBool>);

impl Wait for Poll {
    fn wait(&mut self, fd: RawFd, interest: Interest, deadline: Instant) -> Result<()> {
        if self.interrupted() {
            return Err(Error::new(Kind::Interrupted, "told to"));
        }
        let events = match interest {
            Interest::Readable => libc::POLLIN,
            Interest::Both => libc::POLLIN | libc::POLLOUT,
        };
        let mut poll = libc::pollfd {
            fd,
            events,
            revents: 0,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = left.as_millis().min(10).try_into().expect("a small number");
        // SAFETY: one valid entry.
        unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        Ok(())
    }

    fn interrupted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Session {
    pub client: Client<Poll>,
    pub interrupt: Arc<AtomicBool>,
    /// The client's own, for frames that it would not send.
    socket: UnixStream,
}

impl Session {
    pub fn call(&mut self, request: Request) -> Result<Frame<Reply>> {
        self.client
            .call(&request, b"", Instant::now() + SOON, Duration::ZERO)
    }

    /// Sends a request with an id of the test's choice.
    pub fn push(&mut self, id: u32, request: &Request) {
        let mut frame = Vec::new();
        encode(&mut frame, id, 0, request, b"").expect("a small frame");
        self.socket.write_all(&frame).expect("written");
    }

    /// Slot 1 becomes a connection to this port.
    pub fn open(&mut self, port: u16) -> Result<Link> {
        let options = [("port".to_owned(), port.to_string())].into();
        let key = Key {
            private_to: 0,
            database: 1,
            server: u32::from(port),
            mapping: 0,
        };
        let (database_name, server_name) = ("db".into(), "nats".into());
        let request = Request::Use {
            slot: 1,
            target: Target {
                key,
                database_name,
                server_name,
            },
            settings: Box::new(Settings::resolve(&options, None)?),
            wait_ms: 5000,
        };
        match self.call(request)?.message {
            Reply::Used(link) => Ok(link),
            other => panic!("{other:?}"),
        }
    }

    pub fn publish(&mut self, subject: &str, body: &str) {
        let request = Request::Publish {
            slot: 1,
            subject: subject.into(),
            reply: None,
            headers: vec![("h".into(), "v".into())],
            wait_ms: 0,
        };
        self.client
            .push(&request, body.as_bytes())
            .expect("a small message");
    }

    pub fn ask(&mut self, subject: &str, body: &str, timeout_ms: u32) -> Result<Bytes> {
        let (subject, headers) = (subject.into(), vec![]);
        let request = Request::Ask {
            slot: 1,
            subject,
            headers,
            timeout_ms,
            wait_ms: 1000,
        };
        let frame = self
            .client
            .call(&request, body.as_bytes(), Instant::now() + SOON, Duration::ZERO)?;
        assert!(matches!(frame.message, Reply::Message { .. }), "{frame:?}");
        Ok(frame.body)
    }

    /// Whether the runtime closes the connection.
    pub fn is_closed(&mut self) -> bool {
        let error = self.call(Request::Barrier).expect_err("closed");
        error.kind == Kind::RuntimeLost
    }
}

/// Answers on `echo` from a thread of its own, because the test's thread blocks in the channel's client.
pub fn echo(url: String) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let client = async_nats::connect(url).await.expect("connect");
            let mut requests = client.subscribe("echo").await.expect("subscribe");
            round_trip(&client).await;
            ready.send(()).expect("the test waits");
            while let Some(request) = requests.next().await {
                let reply = request.reply.expect("a reply subject");
                let _ = client.publish(reply, request.payload).await;
            }
        });
    });
    is_ready.recv_timeout(SOON).expect("a responder");
}
