//! Errors about servers: which one is meant, one that cannot be reached, one that is lost, and a lost runtime worker.

mod stage;
mod support;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use stage::*;
use support::proc;
use support::{NatsServer, Port, Postgres, eventually, eventually_eq};

const RUNTIME: &str = "litmus_pgnats runtime";

/// Which server a call means: none defined, one, several, a chosen one, a dropped one.
#[tokio::test]
async fn the_choice_of_a_server() {
    let stage = Stage::start().await;
    let (other, mut inbox) = (NatsServer::start().await, stage.subscribe("a").await);
    run(&stage.pg.connect().await, "CREATE DATABASE empty").await;
    let session = stage.pg.connect_as("postgres", "empty").await;
    run(&session, "CREATE EXTENSION litmus_pgnats").await;
    let publish = "SELECT nats_publish_text('a', '')";
    let none = failure(&session, publish).await;
    assert_eq!(
        (&*none.code, &*none.message),
        ("42704", "no foreign server for NATS is defined in this database")
    );
    create_server(&session, "one", stage.nats.port(), "").await;
    run(&session, publish).await;
    inbox.next().await;
    create_server(&session, "two", other.port(), "").await;
    let several = failure(&session, publish).await;
    assert_eq!(
        (&*several.code, several.detail.as_deref()),
        ("42P08", Some("They are \"one\", \"two\"."))
    );
    for (name, port) in [
        ("two", other.port()),
        ("one", stage.nats.port()),
        ("two", other.port()),
    ] {
        run(&session, &format!("SET litmus_pgnats.server = '{name}'")).await;
        let used: i32 = value(&session, "SELECT port FROM nats_get_server_info()").await;
        assert_eq!(used, i32::from(port), "{name}");
    }
    run(&session, "DROP SERVER two").await;
    assert_eq!(
        failure(&session, publish).await.code,
        "42704",
        "it is still chosen"
    );
    run(&session, "RESET litmus_pgnats.server").await;
    run(&session, publish).await;
    inbox.next().await;
}

/// A closed port is an error at once, not after the connect timeout.
#[tokio::test]
async fn a_closed_port_is_an_error_at_once() {
    let (stage, closed) = (Stage::start().await, Port::take());
    let session = stage.pg.connect().await;
    create_server(&session, "closed", closed.number(), "").await;
    run(&session, "SET litmus_pgnats.server = closed").await;
    for call in [
        "nats_publish_text('a', 'x')",
        "nats_request_text('a', 'x', 60000)",
        "nats_get_server_info()",
    ] {
        let began = Instant::now();
        assert_eq!(
            failure(&session, &format!("SELECT {call}")).await.code,
            "08001",
            "{call}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{call} took {:?}",
            began.elapsed()
        );
    }
}

/// A host that accepts and never answers is an error within the five seconds of the connect timeout, or what that is
/// set to, and holds up nobody else.
#[tokio::test]
async fn a_black_hole_is_an_error_in_time() {
    let stage = Stage::start().await;
    let (session, other) = (stage.pg.connect().await, stage.pg.connect().await);
    stage.respond("echo", |request| request.payload.to_vec()).await;
    let dark = TcpListener::bind("127.0.0.1:0").expect("a listener that says nothing");
    create_server(
        &session,
        "dark",
        dark.local_addr().expect("an address").port(),
        "",
    )
    .await;
    run(&session, "SET litmus_pgnats.server = dark").await;
    run(&other, "SET litmus_pgnats.server = nats").await;
    let began = Instant::now();
    let waiting = failure(&session, "SELECT nats_publish_text('a', 'x')");
    let working = async {
        assert_eq!(
            value::<String>(&other, "SELECT nats_request_text('echo', 'x')").await,
            "x"
        );
        began.elapsed()
    };
    let (report, took) = tokio::join!(waiting, working);
    assert_eq!(report.code, "08001", "{report:?}");
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "took {:?}",
        began.elapsed()
    );
    assert!(took < Duration::from_secs(4), "another session waited {took:?}");

    let began = Instant::now();
    run(&session, "SET litmus_pgnats.connect_timeout = '500ms'").await;
    for call in ["nats_request_text('a', 'x', 60000)", "nats_get_server_info()"] {
        assert_eq!(
            failure(&session, &format!("SELECT {call}")).await.code,
            "08001",
            "{call}"
        );
    }
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "took {:?}",
        began.elapsed()
    );
}

/// NATS dies while a request waits: the request may have been processed, which the error says, and later ones work.
#[tokio::test]
async fn a_connection_lost_during_a_request_is_an_error() {
    let mut stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("slow").await, stage.pg.connect().await);
    let asking = failure(&session, "SELECT nats_request_text('slow', '', 60000)");
    let killing = async {
        inbox.next().await;
        stage.nats.kill9();
    };
    let (report, ()) = tokio::join!(asking, killing);
    assert_eq!(
        (&*report.code, report.hint.as_deref()),
        ("08006", Some("The request may or may not have been processed.")),
        "{report:?}"
    );
    assert_eq!(
        report.message,
        "the connection to the NATS server was lost while waiting for the reply"
    );
    stage.nats.restart().await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    let echoed: String = value(&session, "SELECT nats_request_text('echo', 'works')").await;
    assert_eq!(echoed, "works");
}

/// While NATS is away, as much is buffered as `capacity` says; what is beyond that fails instead of getting lost.
#[tokio::test]
async fn a_full_buffer_is_an_error() {
    let mut stage = Stage::start().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "ALTER SERVER nats OPTIONS (ADD capacity '3'); SET litmus_pgnats.connect_timeout = '500ms'",
    )
    .await;
    run(
        &session,
        "SELECT litmus_pgnats_reload_conf(), nats_publish_text('a', 'up')",
    )
    .await;
    stage.nats.kill9();
    stage
        .pg
        .wait_log("connection to the NATS server lost", SOON)
        .await;
    // Sessions are told in the same moment, but not before the log.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let sql = "SELECT count(nats_publish_text('a', n::text)) FROM generate_series(1, 10) n";
    let report = failure(&session, sql).await;
    assert_eq!(
        (&*report.code, &*report.message),
        (
            "53400",
            "the NATS server is unreachable and the buffer for messages is full"
        )
    );
    let detail = report.detail.expect("a detail");
    assert!(
        detail.starts_with("3 of 10 messages were buffered.") && detail.ends_with('.'),
        "{detail}"
    );
    assert!(report.hint.is_some_and(|hint| hint.contains("capacity")));
    stage.nats.restart().await;
    eventually(SOON, async || {
        session
            .batch_execute("SELECT nats_publish_text('a', 'back')")
            .await
    })
    .await;
}

/// The runtime worker ends while a request waits: an error at once, and the session works again when it is back.
#[tokio::test]
async fn a_runtime_lost_during_a_request_is_an_error() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("slow").await, stage.pg.connect().await);
    stage.respond("echo", |request| request.payload.to_vec()).await;
    let runtime = stage.pg.worker_pid(RUNTIME).await.expect("a runtime");
    let asking = failure(&session, "SELECT nats_request_text('slow', '', 60000)");
    let ending = async {
        inbox.next().await;
        proc::signal(runtime, libc::SIGTERM);
    };
    let (report, ()) = tokio::join!(asking, ending);
    assert_eq!(report.code, "58000", "{report:?}");
    assert!(report.message.contains("runtime worker"), "{report:?}");
    let echoed: String = value(&session, "SELECT nats_request_text('echo', 'works')").await;
    assert_eq!(echoed, "works");
}

/// A runtime worker that stands still is an error in time, and not a hanging session.
#[tokio::test]
async fn a_runtime_that_does_not_answer_is_an_error() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    let runtime = stage.pg.worker_pid(RUNTIME).await.expect("a runtime");
    run(&session, "SET litmus_pgnats.connect_timeout = '300ms'").await;
    proc::signal(runtime, libc::SIGSTOP);
    eventually(SOON, async || proc::stopped(runtime)).await;
    let report = failure(&session, "SELECT nats_publish_text('a', '')").await;
    assert_eq!(
        (&*report.code, &*report.message),
        ("57P03", "the litmus_pgnats runtime worker does not answer")
    );
    proc::signal(runtime, libc::SIGCONT);
    run(&session, "SELECT nats_publish_text('a', '')").await;
}

/// Without a free slot the worker cannot be started on demand, and the error names the setting.
#[tokio::test]
async fn a_server_without_worker_slots_is_an_error() {
    let builder = Postgres::builder()
        .preload(false)
        .conf("max_worker_processes", "0");
    let stage = Stage::with(NatsServer::builder(), builder).await;
    let session = stage.pg.connect().await;
    let report = failure(&session, "SELECT nats_publish_text('a', '')").await;
    assert_eq!(
        (&*report.code, report.hint.as_deref()),
        ("53000", Some("You might need to increase max_worker_processes."))
    );
    eventually_eq(SOON, None, async || stage.pg.worker_pid(RUNTIME).await).await;
    run(&session, "SELECT 1").await;
}
