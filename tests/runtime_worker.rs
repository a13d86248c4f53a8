//! The runtime worker starts, ends in every way, comes back, and is in nobody's way meanwhile.

mod patroni;
mod scene;
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use scene::*;
use support::proc;
use support::*;

/// What a lost runtime worker may take to be back; the tests print what it took.
const BACK: Duration = Duration::from_secs(2);

const FAULT: &str = "CREATE FUNCTION fault() RETURNS void LANGUAGE c \
                     AS '$libdir/litmus_pgnats', 'litmus_pgnats_fault_panic'";

/// With `shared_preload_libraries` it is there before anybody asks.
#[tokio::test]
async fn it_starts_with_the_server_when_preloaded() {
    let pg = Postgres::start().await;
    let socket = pg.data_dir().join("pg_stat_tmp/litmus_pgnats.sock");
    eventually(SOON, async || socket.exists()).await;
    assert_eq!(pg.worker_pids(RUNTIME).await.len(), 1);
}

/// A machine without a single CA certificate, a slim container say: what uses none works, and what needs them says so.
#[tokio::test]
async fn it_starts_where_the_system_has_no_certificates() {
    let certs = Certs::shared();
    let (plain, secured) = (
        NatsServer::start().await,
        NatsServer::builder().tls(&certs).start().await,
    );
    let pg = Postgres::builder()
        .env("SSL_CERT_FILE", "/nonexistent")
        .env("SSL_CERT_DIR", "/nonexistent");
    let scene = Scene::with(pg, plain, "").await;
    let session = scene.pg.connect().await;
    scene.echo().await;
    works(&session, "plain").await;
    let log = scene.pg.log();
    assert!(!log.contains("the runtime worker ends"), "{log}");
    let patroni = patroni::Stub::start(patroni::Answer::role("primary")).await;
    for (url, status, found) in [
        (patroni.url(), "ok", "member"),
        ("https://127.0.0.1:1".to_owned(), "error", "could not set up TLS"),
    ] {
        let add = format!("ALTER SERVER nats OPTIONS (ADD patroni_url '{url}')");
        run(&session, &add).await;
        let row = session
            .query_one(
                "SELECT status, found FROM litmus_pgnats.doctor() WHERE check_name = 'Patroni'",
                &[],
            )
            .await
            .expect("the doctor");
        let (as_status, as_found): (String, String) = (row.get(0), row.get(1));
        assert_eq!(as_status, status, "{as_found}");
        assert!(as_found.contains(found), "{as_found}");
        run(&session, "ALTER SERVER nats OPTIONS (DROP patroni_url)").await;
    }
    let ca = certs.ca();
    run(
        &session,
        &format!(
            "ALTER SERVER nats OPTIONS (SET port '{}', ADD tls_ca_path '{}'); SELECT litmus_pgnats_reload_conf()",
            secured.port(),
            ca.display()
        ),
    )
    .await;
    let version = "SELECT tls_required::text FROM nats_get_server_info()";
    assert_eq!(text(&session, version).await, "true");
}

/// Otherwise the first call starts it; several first calls at the same time start one.
#[tokio::test]
async fn it_starts_on_demand_once() {
    let nats = NatsServer::start().await;
    let scene = Scene::with(Postgres::builder().preload(false), nats, "").await;
    scene.echo().await;
    assert_eq!(scene.pg.worker_pids(RUNTIME).await, [0; 0]);
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(scene.pg.connect().await);
    }
    let began = Instant::now();
    futures::future::join_all(sessions.iter().map(|session| works(session, "first"))).await;
    println!("eight first calls took {:?}", began.elapsed());
    eventually_eq(SOON, 1, async || scene.pg.worker_pids(RUNTIME).await.len()).await;
    let runtime = scene.runtime().await;
    // It comes back like a preloaded one.
    run(&sessions[0], &format!("SELECT pg_terminate_backend({runtime})")).await;
    scene.next_runtime(runtime).await;
    works(&sessions[1], "after").await;
}

/// Ends the runtime worker while a request waits and another backend runs a query. The request fails at once, the
/// query notices nothing, and calls work again within [`BACK`].
async fn end_and_return(what: &str, scene: &Scene, end: impl AsyncFnOnce(i32)) {
    scene.echo().await;
    let mut slow = scene.silent_responder("slow").await;
    let (waiting, idle, other) = (
        scene.warm_session().await,
        scene.warm_session().await,
        scene.pg.connect().await,
    );
    let runtime = scene.runtime().await;
    let ask = refused(&waiting, "SELECT nats_request_text('slow', 'x', 60000)");
    let sleep = run(&other, "SELECT pg_sleep(3)");
    let ending = async {
        slow.next().await.expect("the request");
        let began = Instant::now();
        end(runtime).await;
        // Repeated as an application would; a call that finds no worker waits for it.
        eventually(SOON, async || {
            let ask = "SELECT nats_request_text('echo', 'x', 1000)";
            idle.query_one(ask, &[])
                .await
                .map(|_| ())
                .map_err(|e| sqlstate(&e))
        })
        .await;
        let took = began.elapsed();
        println!("{what}: back after {took:?}");
        assert!(took < BACK, "{what}: back after {took:?}");
    };
    let ((report, _), (), ()) = tokio::join!(ask, sleep, ending);
    assert_eq!(report.code, "58000", "{what}: {report:?}");
    works(&waiting, "after").await;
    works(&scene.pg.connect().await, "new").await;
    assert_ne!(scene.runtime().await, runtime);
}

#[tokio::test]
async fn it_returns_after_sigterm() {
    let scene = Scene::start().await;
    end_and_return("SIGTERM", &scene, async |pid| proc::signal(pid, libc::SIGTERM)).await;
}

#[tokio::test]
async fn it_returns_after_pg_terminate_backend() {
    let scene = Scene::start().await;
    end_and_return("pg_terminate_backend", &scene, async |pid| {
        assert_eq!(
            scene.pg.sql(&format!("SELECT pg_terminate_backend({pid})")).await,
            "t"
        );
    })
    .await;
}

/// actix does not mend an actor that panicked, so the worker ends and the postmaster starts it again.
#[tokio::test]
async fn it_returns_after_the_death_of_an_actor() {
    let scene = Scene::start().await;
    scene.pg.sql(FAULT).await;
    let session = scene.warm_session().await;
    end_and_return("a dead actor", &scene, async |pid| {
        let (report, _) = refused(&session, "SELECT fault()").await;
        assert_eq!(report.code, "58000", "{report:?}");
        let gone = format!("(PID {pid}) exited with exit code 1");
        scene.pg.wait_log(&gone, SOON).await;
    })
    .await;
    assert!(scene.pg.log().contains("an actor has died"), "the log says why");
}

/// SIGKILL has the postmaster restart the whole cluster, as for any of its processes; then all works again.
#[tokio::test]
async fn it_returns_after_sigkill() {
    let scene = Scene::start().await;
    scene.echo().await;
    let session = scene.warm_session().await;
    let runtime = scene.runtime().await;
    let began = Instant::now();
    proc::signal(runtime, libc::SIGKILL);
    let session_ends = async || session.batch_execute("SELECT 1").await.is_err();
    eventually(SOON, session_ends).await;
    let session = eventually(SOON, async || {
        scene.pg.try_connect_as("postgres", "postgres").await
    })
    .await;
    works(&session, "after").await;
    println!("SIGKILL: back after {:?}", began.elapsed());
    assert_ne!(scene.runtime().await, runtime);
}

/// A socket that a killed server left behind is replaced.
#[tokio::test]
async fn it_returns_after_the_death_of_the_postmaster() {
    let mut scene = Scene::start().await;
    scene.echo().await;
    scene.warm_session().await;
    scene.pg.kill9();
    scene.pg.start_again().await;
    works(&scene.pg.connect().await, "after").await;
}

/// What sessions have handed over is written to NATS before the worker ends.
#[tokio::test]
async fn what_it_accepted_reaches_nats_before_it_ends() {
    const COUNT: usize = 50_000;
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    let inbox = scene.silent_responder("last").await;
    let runtime = scene.runtime().await;
    let bulk = format!("SELECT count(nats_publish_text('last', i::text)) FROM generate_series(1, {COUNT}) i");
    run(&session, &bulk).await;
    proc::signal(runtime, libc::SIGTERM);
    let payloads = inbox
        .take(COUNT)
        .map(|message| message.payload)
        .collect::<Vec<_>>();
    let payloads = tokio::time::timeout(SOON, payloads).await.expect("every message");
    assert_eq!(
        payloads.last().map(|last| &last[..]),
        Some(COUNT.to_string().as_bytes())
    );
}

/// A fast shutdown waits neither for a request in flight nor for a NATS that is away.
#[tokio::test]
async fn shutdown_is_prompt() {
    let mut scene = Scene::start().await;
    let mut slow = scene.silent_responder("slow").await;
    let session = scene.warm_session().await;
    let ask = session.batch_execute("SELECT nats_request_text('slow', 'x', 60000)");
    let stop = async {
        slow.next().await.expect("the request");
        let began = Instant::now();
        scene.pg.stop(Stop::Fast).await;
        began.elapsed()
    };
    let (outcome, took) = tokio::join!(ask, stop);
    println!("fast shutdown with a request in flight: {took:?}");
    assert!(took < 3 * PROMPT, "{took:?}");
    assert!(outcome.is_err());

    scene.pg.start_again().await;
    let session = scene.warm_session().await;
    scene.nats.kill9();
    scene
        .pg
        .wait_log("connection to the NATS server lost", SOON)
        .await;
    let fill = session.batch_execute("SELECT nats_publish_text('x', 'x') FROM generate_series(1, 1000)");
    let stop = async {
        scene.until_waiting(session.pid()).await;
        Instant::now()
    };
    let (outcome, began) = tokio::join!(fill, async {
        let began = stop.await;
        proc::signal(scene.pg.postmaster_pid(), libc::SIGINT);
        began
    });
    assert!(outcome.is_err());
    scene
        .pg
        .wait_log_after(0, "database system is shut down", SOON)
        .await;
    let pid = scene.pg.postmaster_pid();
    eventually(SOON, async || !proc::alive(pid)).await;
    println!(
        "fast shutdown with NATS away and a publish waiting: {:?}",
        began.elapsed()
    );
    assert!(began.elapsed() < 3 * PROMPT, "{:?}", began.elapsed());
}

/// Without a slot for a worker the call says so, and what to do.
#[tokio::test]
async fn it_needs_a_worker_slot() {
    let pg = Postgres::builder()
        .preload(false)
        .conf("max_worker_processes", "0");
    let scene = Scene::with(pg, NatsServer::start().await, "").await;
    let session = scene.pg.connect().await;
    let (report, took) = refused(&session, "SELECT nats_publish_text('a', 'x')").await;
    assert_eq!(report.code, "53000", "{report:?}");
    assert!(report.hint.expect("a hint").contains("max_worker_processes"));
    assert!(took < PROMPT, "{took:?}");
    run(&session, "SELECT 1").await;
}
