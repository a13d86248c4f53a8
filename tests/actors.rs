//! The pure half alone: the actor system in a thread, the channel's client, a real nats-server, and no PostgreSQL.

mod support;

use std::io::Write;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use litmus_pgnats::actors::system::{self, Config, End};
use litmus_pgnats::channel::client::{Client, Interest, Wait};
use litmus_pgnats::channel::frame::{Frame, encode};
use litmus_pgnats::channel::message::{Key, Link, PROTOCOL, Reply, Request, Target};
use litmus_pgnats::error::{Error, Kind, Result};
use litmus_pgnats::settings::Settings;
use support::*;
use tokio::sync::oneshot;

const SOON: Duration = Duration::from_secs(15);

/// The actor system in a thread of its own, as the runtime worker has it.
struct Runtime {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<End>>,
    place: tempfile::TempDir,
}

impl Runtime {
    async fn start() -> Self {
        let place = tempfile::tempdir_in("/tmp").expect("a directory");
        let (stop, stopped) = oneshot::channel();
        let config = Config {
            socket: place.path().join("sock"),
            cluster: "test".into(),
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
    fn session(&self) -> Session {
        let mut session = self.stranger();
        let welcome = session
            .call(Request::Hello {
                protocol: PROTOCOL,
                pid: 1,
            })
            .expect("welcome");
        assert_eq!(welcome.message, Reply::Welcome { protocol: PROTOCOL });
        session
    }

    /// A session that has not.
    fn stranger(&self) -> Session {
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

    async fn stop(mut self) -> End {
        let _ = self.stop.take().expect("stopped once").send(());
        self.join().await
    }

    async fn join(&mut self) -> End {
        let thread = self.thread.take().expect("joined once");
        eventually(SOON, async || thread.is_finished()).await;
        thread.join().expect("no panic")
    }
}

/// Waits with poll(2); fails once it is told to, as a cancelled statement does.
struct Poll(Arc<AtomicBool>);

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

struct Session {
    client: Client<Poll>,
    interrupt: Arc<AtomicBool>,
    /// The client's own, for frames that it would not send.
    socket: UnixStream,
}

impl Session {
    fn call(&mut self, request: Request) -> Result<Frame<Reply>> {
        self.client
            .call(&request, b"", Instant::now() + SOON, Duration::ZERO)
    }

    /// Sends a request with an id of the test's choice.
    fn push(&mut self, id: u32, request: &Request) {
        let mut frame = Vec::new();
        encode(&mut frame, id, 0, request, b"").expect("a small frame");
        self.socket.write_all(&frame).expect("written");
    }

    /// Slot 1 becomes a connection to this port.
    fn open(&mut self, port: u16) -> Result<Link> {
        let options = [("port".to_owned(), port.to_string())].into();
        let key = Key {
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

    fn publish(&mut self, subject: &str, body: &str) {
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

    fn ask(&mut self, subject: &str, body: &str, timeout_ms: u32) -> Result<Bytes> {
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
    fn is_closed(&mut self) -> bool {
        let error = self.call(Request::Fence).expect_err("closed");
        error.kind == Kind::RuntimeLost
    }
}

/// Answers on `echo` from a thread of its own, because the test's thread blocks in the channel's client.
fn echo(url: String) {
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

/// Greeting, connection, publish with a fence, request: what a backend does.
#[tokio::test]
async fn a_session_publishes_and_asks() {
    let nats = NatsServer::start().await;
    echo(nats.url());
    let client = nats.client().await;
    let mut inbox = client.subscribe("news").await.expect("subscribe");
    round_trip(&client).await;

    let runtime = Runtime::start().await;
    let mut session = runtime.session();
    let link = session.open(nats.port()).expect("a connection");
    assert_eq!(
        link,
        Link {
            up: true,
            max_payload: 1 << 20,
            headers: true
        }
    );
    for n in 0..1000 {
        session.publish("news", &n.to_string());
    }
    assert_eq!(session.call(Request::Fence).expect("taken").message, Reply::Done);
    for n in 0..1000 {
        let message = inbox.next().await.expect("a message");
        assert_eq!(message.payload, n.to_string());
        assert_eq!(
            message.headers.expect("headers").get("h").map(|v| v.as_str()),
            Some("v")
        );
    }
    assert_eq!(session.ask("echo", "hello", 5000).expect("an answer"), "hello");
    assert_eq!(
        session.ask("nobody", "", 5000).expect_err("nobody").kind,
        Kind::NoResponders
    );
    assert_eq!(runtime.stop().await, End::Stopped);
}

/// Two sessions with the same key share one NATS connection, which bears the names of cluster, database and server.
#[tokio::test]
async fn sessions_share_a_connection() {
    let nats = NatsServer::start().await;
    let runtime = Runtime::start().await;
    let (mut one, mut two) = (runtime.session(), runtime.session());
    one.open(nats.port()).expect("a connection");
    two.open(nats.port()).expect("the same");
    let connections = nats.monitor("/connz").await;
    assert_eq!(connections["num_connections"], 1, "{connections}");
    assert_eq!(
        connections["connections"][0]["name"],
        "litmus_pgnats/test/db/nats"
    );
}

/// Requests that are given up, many at a time: nothing stays in flight, and nothing grows.
#[tokio::test]
async fn cancelled_requests_leave_nothing_behind() {
    const ROUNDS: u32 = 500;
    const AT_ONCE: u32 = 60;
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let _silent = client.subscribe("slow").await.expect("subscribe");
    round_trip(&client).await;
    let runtime = Runtime::start().await;
    let mut session = runtime.session();
    session.open(nats.port()).expect("a connection");
    let me = std::process::id().cast_signed();
    let mut before = 0;
    for round in 0..ROUNDS {
        if round == ROUNDS / 10 {
            before = support::proc::private_bytes(me);
        }
        // Numbers that the client itself does not reach.
        let ids = (1 << 20)..(1 << 20) + AT_ONCE;
        for id in ids.clone() {
            let (subject, headers) = ("slow".into(), vec![]);
            let ask = Request::Ask {
                slot: 1,
                subject,
                headers,
                timeout_ms: 60_000,
                wait_ms: 1000,
            };
            session.push(id, &ask);
        }
        // Two round trips: with the first the requests are taken, with the second they are under way.
        session.call(Request::Fence).expect("answered");
        let under_way = session.call(Request::Fence).expect("answered").load;
        assert_eq!(u32::from(under_way), AT_ONCE);
        for request in ids {
            session.push(0, &Request::Cancel { request });
        }
        let none_left = async || session.call(Request::Fence).expect("answered").load;
        eventually_eq(SOON, 0, none_left).await;
    }
    let grown = support::proc::private_bytes(me).saturating_sub(before);
    println!("{} cancelled requests: {grown} bytes more", ROUNDS * AT_ONCE);
    // async-nats 0.51 keeps an entry of 0.7 KB for each request without an answer as long as the connection lives;
    // what is ours, a future of 2 KB and a message each, must be gone.
    assert!(grown < 1000 * u64::from(ROUNDS * AT_ONCE), "{grown} bytes");
}

/// The answer to a request that was given up, when it comes after all, is not the next one's.
#[tokio::test]
async fn a_late_answer_is_ignored() {
    let nats = NatsServer::start().await;
    echo(nats.url());
    let runtime = Runtime::start().await;
    let mut session = runtime.session();
    session.open(nats.port()).expect("a connection");
    for n in 0..100 {
        session.interrupt.store(true, Ordering::Relaxed);
        match session.ask("echo", "given up", 5000) {
            Err(given_up) => assert_eq!(given_up.kind, Kind::Interrupted),
            // It was there before the first wait.
            Ok(answer) => assert_eq!(answer, "given up"),
        }
        session.interrupt.store(false, Ordering::Relaxed);
        let mine = n.to_string();
        assert_eq!(session.ask("echo", &mine, 5000).expect("an answer"), mine);
    }
}

/// A library that was replaced while the server runs must not be misunderstood.
#[tokio::test]
async fn another_protocol_is_refused() {
    let runtime = Runtime::start().await;
    let mut session = runtime.stranger();
    let refused = session.call(Request::Hello {
        protocol: PROTOCOL + 1,
        pid: 1,
    });
    let refused = refused.expect_err("refused");
    assert_eq!(refused.kind, Kind::Protocol);
    let detail = refused.detail.expect("a detail");
    assert!(detail.contains(&PROTOCOL.to_string()), "{detail}");
    assert!(session.is_closed(), "went on without a greeting");
}

/// The greeting comes first.
#[tokio::test]
async fn a_session_greets_first() {
    let runtime = Runtime::start().await;
    assert!(runtime.stranger().is_closed());
    assert!(runtime.session().call(Request::Fence).is_ok());
}

/// A slot that was never opened is an error to who waits, and no harm to others.
#[tokio::test]
async fn an_unknown_slot_is_an_error() {
    let runtime = Runtime::start().await;
    let mut session = runtime.session();
    session.publish("lost", "x");
    assert_eq!(
        session.ask("a", "", 100).expect_err("no slot").kind,
        Kind::Protocol
    );
    assert!(session.call(Request::Fence).is_ok());
}

/// What has been sent when the runtime is told to stop is published first; then it closes its doors.
#[tokio::test]
async fn stopping_drains() {
    const COUNT: usize = 20_000;
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let inbox = client.subscribe("last").await.expect("subscribe");
    round_trip(&client).await;
    let runtime = Runtime::start().await;
    let mut session = runtime.session();
    session.open(nats.port()).expect("a connection");
    for n in 0..COUNT {
        session.publish("last", &n.to_string());
    }
    session.client.flush(Instant::now() + SOON).expect("written");
    let socket = runtime.place.path().join("sock");
    let began = Instant::now();
    assert_eq!(runtime.stop().await, End::Stopped);
    println!("stopped after {:?}", began.elapsed());
    assert!(!socket.exists(), "the socket is still there");
    let received = tokio::time::timeout(SOON, inbox.take(COUNT).collect::<Vec<_>>()).await;
    let received = received.expect("every message");
    assert_eq!(
        received.last().expect("the last").payload,
        (COUNT - 1).to_string()
    );
    assert!(session.is_closed());
}

/// An actor that panics ends the system, because actix would go on without it.
#[cfg(debug_assertions)]
#[tokio::test]
async fn a_dead_actor_ends_the_system() {
    let mut runtime = Runtime::start().await;
    let mut session = runtime.session();
    let lost = session.call(Request::Panic).expect_err("no answer");
    assert_eq!(lost.kind, Kind::RuntimeLost);
    assert_eq!(runtime.join().await, End::ActorDied);
}
