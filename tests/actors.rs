//! The layers without PostgreSQL alone: the actor system in a thread, the channel's client, a real nats-server, and no PostgreSQL.

mod actor_thread;
mod support;

use std::sync::atomic::Ordering;
use std::time::Instant;

use actor_thread::*;
use futures::StreamExt;
use litmus_pgnats::actors::system::SystemEnd;
use litmus_pgnats::channel::message::{PROTOCOL, Peer, Reply, Request};
use litmus_pgnats::channel::target::Link;
use litmus_pgnats::error::Kind;
use support::{NatsServer, eventually_eq, round_trip};

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
    assert_eq!(
        session.call(Request::Barrier).expect("taken").message,
        Reply::Done
    );
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
    assert_eq!(runtime.stop().await, SystemEnd::Stopped);
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
        session.call(Request::Barrier).expect("answered");
        let under_way = session.call(Request::Barrier).expect("answered").load;
        assert_eq!(u32::from(under_way), AT_ONCE);
        for request in ids {
            session.push(0, &Request::Cancel { request });
        }
        let none_left = async || session.call(Request::Barrier).expect("answered").load;
        eventually_eq(SOON, 0, none_left).await;
    }
    let grown = support::proc::private_bytes(me).saturating_sub(before);
    println!("{} cancelled requests: {grown} bytes more", ROUNDS * AT_ONCE);
    assert!(grown < 500 * u64::from(ROUNDS * AT_ONCE), "{grown} bytes");
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
        peer: Peer::Session,
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
    assert!(runtime.session().call(Request::Barrier).is_ok());
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
    assert!(session.call(Request::Barrier).is_ok());
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
    assert_eq!(runtime.stop().await, SystemEnd::Stopped);
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
    let task = String::new();
    let lost = session.call(Request::Panic { task }).expect_err("no answer");
    assert_eq!(lost.kind, Kind::RuntimeLost);
    assert_eq!(runtime.join().await, SystemEnd::Died("supervisor".into()));
}

/// A session that ends without reading its replies, as psql does behind its last statement, has still said all.
#[tokio::test]
async fn what_a_session_said_is_heard_after_its_end() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let mut inbox = client.subscribe("last.*").await.expect("subscribe");
    round_trip(&client).await;
    let runtime = Runtime::start().await;
    for n in 0..50 {
        let mut session = runtime.session();
        session.open(nats.port()).expect("a connection");
        for id in 1..=100 {
            session.push(id, &Request::Barrier);
        }
        let (subject, headers) = (format!("last.{n}"), vec![]);
        let publish = Request::Publish {
            slot: 1,
            subject,
            reply: None,
            headers,
            wait_ms: 0,
        };
        session.push(0, &publish);
        drop(session);
        let message = inbox.next().await.expect("a message");
        assert_eq!(message.subject.as_str(), format!("last.{n}"));
    }
    assert_eq!(runtime.stop().await, SystemEnd::Stopped);
}
