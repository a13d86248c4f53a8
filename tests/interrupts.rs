//! Whatever a call waits for, a cancel, a timeout and the end of the session end it promptly, and the session goes on.

mod scene;
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use scene::*;
use support::proc;
use support::*;

/// The ways in which a statement is ended from outside, with the SQLSTATE of each.
const WAYS: [(&str, &str); 3] = [("cancel", "57014"), ("timeout", "57014"), ("terminate", "57P01")];
/// Of statement_timeout: longer than it takes to begin to wait.
const TIMEOUT: Duration = Duration::from_millis(800);

/// Runs `sql`, which waits, and ends it in one of the [`WAYS`]; asserts the SQLSTATE and that it took no time.
async fn interrupt(scene: &Scene, session: &Session, what: &str, sql: &str, (way, code): (&str, &str)) {
    let limit = if way == "timeout" { TIMEOUT.as_millis() } else { 0 };
    run(session, &format!("SET statement_timeout = {limit}")).await;
    let began = Instant::now();
    let waiting = session.batch_execute(sql);
    let ending = async {
        scene.until_waiting(session.pid()).await;
        let ended = match way {
            "timeout" => return began + TIMEOUT,
            "cancel" => "pg_cancel_backend",
            _ => "pg_terminate_backend",
        };
        let admin = scene.pg.connect().await;
        let began = Instant::now();
        run(&admin, &format!("SELECT {ended}({})", session.pid())).await;
        began
    };
    let outcome = async { (waiting.await, Instant::now()) };
    let ((outcome, ended), began) = tokio::join!(outcome, ending);
    let took = ended.duration_since(began);
    println!("{what}: {way} took {took:?}");
    assert_eq!(
        sqlstate(&outcome.expect_err("interrupted")),
        code,
        "{what}: {way}"
    );
    assert!(took < PROMPT, "{what}: {way} took {took:?}");
    if way != "terminate" {
        run(session, "SET statement_timeout = 0").await;
    }
}

/// The late reply to a request that was given up must not be the answer to the session's next one.
#[tokio::test]
async fn a_waiting_request() {
    let scene = Scene::start().await;
    scene.echo().await;
    let mut slow = scene.silent_responder("slow").await;
    let late = scene.nats.client().await;
    for way in WAYS {
        let session = scene.warm_session().await;
        interrupt(
            &scene,
            &session,
            "request",
            "SELECT nats_request_text('slow', 'x', 60000)",
            way,
        )
        .await;
        let request = slow.next().await.expect("the request");
        late.publish(request.reply.expect("a reply subject"), "late".into())
            .await
            .expect("publish");
        round_trip(&late).await;
        if way.0 != "terminate" {
            works(&session, "mine").await;
        }
    }
}

/// NATS is away and the buffer full: a publish waits for room.
#[tokio::test]
async fn a_publish_that_waits_for_room() {
    let nats = NatsServer::start().await;
    let mut scene = Scene::with(Postgres::builder(), nats, ", capacity '3'").await;
    let mut sessions = Vec::new();
    for way in WAYS {
        sessions.push((scene.warm_session().await, way));
    }
    scene.nats.kill9();
    scene
        .pg
        .wait_log("connection to the NATS server lost", SOON)
        .await;
    let filler = scene.pg.connect().await;
    refused(
        &filler,
        "SELECT nats_publish_text('full', i::text) FROM generate_series(1, 4) i",
    )
    .await;
    for (session, way) in &sessions {
        interrupt(
            &scene,
            session,
            "publish without room",
            "SELECT nats_publish_text('full', 'x')",
            *way,
        )
        .await;
        if way.0 != "terminate" {
            // Not only a NATS call: what was given up must not hold up the next statement either.
            let began = Instant::now();
            run(session, "SELECT 1").await;
            assert!(began.elapsed() < PROMPT, "SELECT 1 took {:?}", began.elapsed());
        }
    }
    scene.nats.restart().await;
    scene.echo().await;
    for (session, _) in sessions.iter().filter(|(_, way)| way.0 != "terminate") {
        works(session, "after").await;
    }
}

/// NATS stands still, so that a bulk publish fills every buffer on the way and waits for the runtime worker.
#[tokio::test]
async fn a_bulk_publish_to_a_server_that_stands_still() {
    let scene = Scene::start().await;
    scene.echo().await;
    let mut sessions = Vec::new();
    for way in WAYS {
        sessions.push((scene.warm_session().await, way));
    }
    let bulk = "SELECT count(nats_publish_text('bulk', repeat('x', 1000))) FROM generate_series(1, 1000000)";
    scene.nats.pause().await;
    for (session, way) in &sessions {
        interrupt(&scene, session, "bulk without progress", bulk, *way).await;
        if way.0 != "terminate" {
            let began = Instant::now();
            run(session, "SELECT 1").await;
            println!("the next statement took {:?}", began.elapsed());
            assert!(began.elapsed() < PROMPT, "SELECT 1 took {:?}", began.elapsed());
        }
    }
    scene.nats.resume();
    for (session, _) in sessions.iter().filter(|(_, way)| way.0 != "terminate") {
        works(session, "after").await;
    }
}

/// A bulk publish that makes progress hardly ever waits, so the executor's own check has to do.
#[tokio::test]
async fn a_bulk_publish_under_way() {
    let scene = Scene::start().await;
    scene.echo().await;
    let session = scene.warm_session().await;
    let received = async || scene.nats.monitor("/varz").await["in_msgs"].as_u64().unwrap_or(0);
    let before = received().await;
    // In FROM itself PostgreSQL would write the series to a file first, and publish nothing before the timeout.
    let bulk =
        "SELECT count(nats_publish_text('bulk', 'x')) FROM (SELECT generate_series(1, 2000000000)) series";
    // For so many rows PostgreSQL compiles the query first, which nothing interrupts. On a busy disk, loading LLVM takes
    // seconds.
    run(&session, "SET jit = off").await;
    run(&session, "SET statement_timeout = 800").await;
    let (report, took) = refused(&session, bulk).await;
    println!("bulk: timeout took {:?}", took - TIMEOUT);
    assert_eq!(report.code, "57014");
    assert!(took < TIMEOUT + PROMPT, "{took:?}");
    run(&session, "SET statement_timeout = 0").await;
    works(&session, "after").await;
    let published = received().await - before;
    println!("published {published}");
    assert!(published > 1000, "{published} messages under way");
}

/// The first call of a session waits for the runtime worker: here for one that does not answer.
#[tokio::test]
async fn a_first_call_to_a_runtime_that_stands_still() {
    let scene = Scene::start().await;
    let runtime = scene.runtime().await;
    scene.warm_session().await;
    proc::signal(runtime, libc::SIGSTOP);
    eventually(SOON, async || proc::stopped(runtime)).await;
    first_calls_are_interrupted(&scene, async || proc::signal(runtime, libc::SIGCONT)).await;
}

/// The first call of a session waits for the runtime worker: here for one that has no socket yet.
#[tokio::test]
async fn a_first_call_without_a_runtime() {
    let scene = Scene::start().await;
    scene.warm_session().await;
    let socket = scene.pg.data_dir().join("pg_stat_tmp/litmus_pgnats.sock");
    let aside = socket.with_extension("aside");
    std::fs::rename(&socket, &aside).expect("take the socket away");
    first_calls_are_interrupted(&scene, async || {
        std::fs::rename(&aside, &socket).expect("put it back")
    })
    .await;
}

async fn first_calls_are_interrupted(scene: &Scene, mend: impl AsyncFnOnce()) {
    let mut sessions = Vec::new();
    for way in WAYS {
        let session = scene.pg.connect().await;
        interrupt(
            scene,
            &session,
            "first call",
            "SELECT nats_publish_text('first', 'x')",
            way,
        )
        .await;
        sessions.extend((way.0 != "terminate").then_some(session));
    }
    mend().await;
    scene.echo().await;
    for session in &sessions {
        works(session, "after").await;
    }
}

/// PL/pgSQL may catch a cancel; then the transaction goes on, and so does the session's NATS connection.
#[tokio::test]
async fn a_cancel_that_plpgsql_catches() {
    let scene = Scene::start().await;
    scene.echo().await;
    let mut slow = scene.silent_responder("slow").await;
    let session = scene.warm_session().await;
    let caught = "DO $$ BEGIN
        PERFORM nats_request_text('slow', 'x', 60000);
      EXCEPTION WHEN query_canceled THEN
        PERFORM nats_publish_text('caught', nats_request_text('echo', 'inside', 5000));
      END $$";
    let mut inbox = scene.silent_responder("caught").await;
    let cancel = async {
        let _ = slow.next().await;
        scene
            .pg
            .sql(&format!("SELECT pg_cancel_backend({})", session.pid()))
            .await;
    };
    tokio::join!(run(&session, caught), cancel);
    let message = tokio::time::timeout(SOON, inbox.next()).await.expect("in time");
    assert_eq!(message.expect("a message").payload, "inside");
    works(&session, "after").await;
}

/// What a cancelled statement asked for ends in the runtime worker too: no further request goes to JetStream.
#[tokio::test]
async fn a_cancelled_call_asks_nothing_more() {
    let nats = NatsServer::builder().jetstream().start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    for sql in [
        "SELECT nats_put_text('b', 'key', 'value')",
        "SELECT nats_put_file('files', 'name', 'content')",
    ] {
        run(&session, sql).await;
    }
    let mut requests = Requests::listen(&scene).await;
    for sql in [
        "SELECT nats_list_keys('b')",
        "SELECT nats_get_history('b', 'key')",
        "SELECT nats_get_file('files', 'name')",
        "SELECT nats_get_file_list('files')",
    ] {
        run(&session, sql).await;
        let whole = requests.until_now(&session).await;
        assert!(whole.len() > 1, "{sql}: {whole:?}");
        scene.nats.pause().await;
        interrupt(&scene, &session, sql, sql, WAYS[0]).await;
        // The runtime worker takes a session's frames in their order: once it answers, it has seen the cancel.
        run(&session, "TABLE litmus_pgnats.connections").await;
        scene.nats.resume();
        run(&session, sql).await;
        // The first request of the cancelled call was under way.
        let expected = [&whole[..1], &whole[..]].concat();
        assert_eq!(requests.until_now(&session).await, expected, "{sql}");
    }
}

/// The requests to JetStream's API, as another client hears them.
struct Requests {
    api: async_nats::Subscriber,
}

impl Requests {
    const MARK: &str = "$JS.API.MARK";

    async fn listen(scene: &Scene) -> Self {
        let api = scene.silent_responder("$JS.API.>").await;
        Requests { api }
    }

    /// Their names without those of consumers. The removal of a temporary consumer comes at any time after the call.
    async fn until_now(&mut self, session: &Session) -> Vec<String> {
        run(
            session,
            &format!("SELECT nats_publish_text('{}', '')", Self::MARK),
        )
        .await;
        let mut names = Vec::new();
        loop {
            let message = tokio::time::timeout(SOON, self.api.next())
                .await
                .expect("in time");
            let subject = message.expect("a message").subject;
            if subject.as_str() == Self::MARK {
                return names;
            }
            if !subject.contains(".CONSUMER.DELETE.") {
                let name = subject.split('.').take(5).collect::<Vec<_>>();
                names.push(name.join("."));
            }
        }
    }
}
