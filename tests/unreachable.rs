//! A NATS that was never reached: calls fail in time, say why, and never claim success.

mod scene;
mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use scene::*;
use socket2::{Domain, Socket, Type};
use support::*;

/// What connect_timeout is by default, and at most.
const LIMIT: Duration = Duration::from_secs(5);

async fn server(host: &str, port: u16) -> (Postgres, Session) {
    let pg = Postgres::start().await;
    pg.sql(&create_server(port, "")).await;
    pg.sql(&format!("ALTER SERVER nats OPTIONS (SET host '{host}')"))
        .await;
    let session = pg.connect().await;
    (pg, session)
}

/// Publish, request and server info fail with 08001 in `range`; so does every later one.
async fn never_reached(session: &Session, range: std::ops::Range<Duration>) -> Report {
    let calls = [
        "SELECT nats_publish_text('a', 'x')",
        "SELECT nats_request_text('a', 'x', 10000)",
        "SELECT nats_get_server_info()",
        "SELECT nats_publish_text('a', 'x') FROM generate_series(1, 1000)",
    ];
    let mut first = None;
    for call in calls {
        let (report, took) = refused(session, call).await;
        println!("{call}: {took:?} {report:?}");
        assert_eq!(report.code, "08001", "{call}: {report:?}");
        assert!(range.contains(&took), "{call}: {took:?}");
        first.get_or_insert(report);
    }
    // None of them has left anything behind at the connection.
    let sessions = "SELECT sum(sessions)::text FROM litmus_pgnats.connections";
    eventually_eq(SOON, "0".to_owned(), async || text(session, sessions).await).await;
    first.expect("four calls")
}

/// Nobody listens: the kernel says so at once, and so does the call.
#[tokio::test]
async fn a_closed_port() {
    let port = Port::take();
    let (_pg, session) = server("127.0.0.1", port.number()).await;
    let report = never_reached(&session, Duration::ZERO..PROMPT).await;
    let place = format!("127.0.0.1:{}", port.number());
    assert!(report.message.contains(&place), "{report:?}");
    assert!(report.detail.expect("a detail").contains("refused"));
}

/// Once NATS is there the same session reaches it.
#[tokio::test]
async fn a_server_that_starts_later() {
    let mut nats = NatsServer::start().await;
    nats.stop().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    never_reached(&session, Duration::ZERO..PROMPT).await;
    let Scene { pg, mut nats } = scene;
    nats.restart().await;
    let scene = Scene { pg, nats };
    scene.echo().await;
    works(&session, "there").await;
}

/// A name that nobody knows.
#[tokio::test]
async fn a_name_that_does_not_resolve() {
    let (_pg, session) = server("nats.invalid", 4222).await;
    never_reached(&session, Duration::ZERO..LIMIT + PROMPT).await;
}

/// Packets that vanish: a listener whose queue is full ignores who wants to connect.
#[tokio::test]
async fn a_black_hole() {
    let hole = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    hole.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("bind");
    hole.listen(0).expect("listen");
    let address = hole.local_addr().expect("the address");
    let address = address.as_socket().expect("an IP address");
    let mut queue = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        queue.push(stream);
    }
    let (_pg, session) = server("127.0.0.1", address.port()).await;
    let (report, took) = refused(&session, "SELECT nats_publish_text('a', 'x')").await;
    println!("{took:?} {report:?}");
    assert_eq!(report.code, "08001");
    assert!((LIMIT - PROMPT..LIMIT + PROMPT).contains(&took), "{took:?}");
    run(&session, "SET litmus_pgnats.connect_timeout = '300ms'").await;
    let limit = Duration::from_millis(300);
    never_reached(&session, limit..limit + PROMPT).await;
}

/// Something that accepts and says nothing is no NATS server; a shorter connect_timeout is respected.
#[tokio::test]
async fn a_server_that_says_nothing() {
    let mute = TcpListener::bind("127.0.0.1:0").expect("listen");
    let (_pg, session) = server("127.0.0.1", mute.local_addr().expect("the address").port()).await;
    run(&session, "SET litmus_pgnats.connect_timeout = '300ms'").await;
    let limit = Duration::from_millis(300);
    never_reached(&session, limit..limit + PROMPT).await;
    let (report, _) = refused(&session, "SET litmus_pgnats.connect_timeout = '6s'").await;
    assert_eq!(report.code, "22023", "more than five seconds are not allowed");
}

/// Options that are corrected count for the next call, though an attempt with the old ones is under way.
#[tokio::test]
async fn a_host_that_is_corrected() {
    let mute = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = mute.local_addr().expect("the address").port();
    let (pg, session) = server("127.0.0.1", port).await;
    let scene = Scene {
        pg,
        nats: NatsServer::start().await,
    };
    scene.echo().await;
    run(&session, "SET litmus_pgnats.connect_timeout = '300ms'").await;
    refused(&session, "SELECT nats_publish_text('a', 'x')").await;
    let correct = format!(
        "RESET litmus_pgnats.connect_timeout; ALTER SERVER nats OPTIONS (SET port '{}')",
        scene.nats.port()
    );
    run(&session, &correct).await;
    works(&session, "there").await;
}
