//! The outbox where something beside a crash goes wrong: large batches, a runtime that starts in the middle of a
//! transaction, subjects that NATS forbids, an outbox relay that fails at its work.

mod handlers;
mod outgoing;
mod scene;
mod support;

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use handlers::*;
use outgoing::*;
use scene::*;
use support::*;

/// A NATS whose user `limited` may not publish to `no.>`.
async fn forbidding() -> (Scene, Session, Kept) {
    let users = r#"authorization { users = [
        { user: "limited", password: "p", permissions: { publish: { deny: ["no.>"] } } }
        { user: "all", password: "p" }
    ] }
    no_auth_user: "all""#;
    let nats = NatsServer::builder().jetstream().config(users).start().await;
    let kept = Kept::start(&nats).await;
    let scene = Scene::with(Postgres::builder(), nats, ", username 'limited', password 'p'").await;
    let session = scene.pg.connect().await;
    (scene, session, kept)
}

/// More bytes than a frame of the channel takes.
#[tokio::test]
async fn many_large_messages_of_one_transaction() {
    let (scene, session, _kept) = scene_with(Postgres::builder()).await;
    run(
        &session,
        "SELECT nats_publish_text_outbox('kept.a', n || repeat('x', 700000)) FROM generate_series(1, 100) n",
    )
    .await;
    eventually_eq(LONG, 0, async || number(&session, WAITING).await).await;
    let context = jetstream::new(scene.nats.client().await);
    let mut stream = context.get_stream("kept").await.expect("the stream");
    assert_eq!(stream.info().await.expect("its state").state.messages, 100);
    for n in 1..=100 {
        let message = stream.get_raw_message(n).await.expect("a message");
        let end = message.payload.iter().position(|byte| *byte == b'x');
        assert_eq!(message.payload[..end.unwrap_or(0)], *n.to_string().as_bytes());
    }
    assert_eq!(scene.pg.worker_pids(OUTBOX_RELAY).await.len(), 1);
}

/// The runtime that is told of a commit may be another than that which was there at the first message.
#[tokio::test]
async fn the_runtime_is_replaced_in_the_middle_of_a_transaction() {
    let (scene, session, kept) = scene_with(Postgres::builder()).await;
    run(&session, &put("1")).await;
    kept.payloads(1).await;
    run(&session, &format!("BEGIN; {}", put("2"))).await;
    let old = scene.runtime().await;
    run(&session, &format!("SELECT pg_terminate_backend({old})")).await;
    scene.next_runtime(old).await;
    // Until it has looked at the database.
    tokio::time::sleep(Duration::from_secs(2)).await;
    run(&session, "COMMIT").await;
    assert_eq!(kept.payloads(2).await, ["1", "2"]);
}

/// The same where there was none.
#[tokio::test]
async fn the_runtime_is_started_in_the_middle_of_a_transaction() {
    let (scene, session, kept) = scene_with(Postgres::builder().preload(false)).await;
    let other = scene.pg.connect().await;
    eventually(SOON, async || scene.pg.worker_pid(RUNTIME).await.is_none()).await;
    run(&session, &format!("BEGIN; {}", put("1"))).await;
    run(&other, "SELECT nats_publish_text('elsewhere', '')").await;
    scene.runtime().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    run(&session, "COMMIT").await;
    assert_eq!(kept.payloads(1).await, ["1"]);
}

/// NATS says nothing to a message that it forbids, other than on the connection. Others do not wait for it.
#[tokio::test]
async fn what_nats_forbids_holds_up_nobody_else() {
    let (_scene, session, kept) = forbidding().await;
    for n in 1..=3 {
        run(&session, &put_to(&format!("no.{n}"), "x")).await;
    }
    run(&session, &put("0")).await;
    kept.payloads(1).await;
    let began = Instant::now();
    for n in 1..=20 {
        run(&session, &put(n)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(kept.payloads(21).await, numbers(0..=20));
    let took = began.elapsed();
    println!("beside three forbidden subjects: {took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    // Those that are stored are done with, too.
    eventually_eq(SOON, 3, async || number(&session, WAITING).await).await;
    // The reason is told.
    run(&session, "ALTER SYSTEM SET litmus_pgnats.outbox_retry_time = 0").await;
    run(&session, "SELECT pg_reload_conf()").await;
    until_number(&session, 3, DEAD).await;
    let errors = texts(
        &session,
        "SELECT DISTINCT left(error, 5) FROM litmus_pgnats.dead_letter",
    )
    .await;
    assert_eq!(errors, ["42501"]);
}

/// What JetStream has acknowledged is not sent again because another message has no answer: the stream may have forgotten
/// it by then.
#[tokio::test]
async fn what_is_acknowledged_is_not_sent_again() {
    let (scene, session, _kept) = forbidding().await;
    let context = jetstream::new(scene.nats.client().await);
    let brief = stream::Config {
        name: "brief".into(),
        subjects: vec!["brief".into()],
        duplicate_window: Duration::from_millis(200),
        ..Default::default()
    };
    context.create_stream(brief).await.expect("create a stream");
    run(
        &session,
        &format!(
            "BEGIN; {}; {}; {}; COMMIT",
            put_to("no.1", "x"),
            put_to("brief", 1),
            put_to("brief", 2)
        ),
    )
    .await;
    eventually_eq(LONG, 1, async || number(&session, WAITING).await).await;
    let mut stream = context.get_stream("brief").await.expect("the stream");
    assert_eq!(stream.info().await.expect("its state").state.messages, 2);
}

/// Starts of outbox relays that the server's log tells of, in three seconds.
async fn starts(scene: &Scene, failure: &str) -> usize {
    let count = || scene.pg.log().matches(failure).count();
    eventually(SOON, async || count() > 0).await;
    let before = count();
    tokio::time::sleep(Duration::from_secs(3)).await;
    count() - before
}

/// An outbox relay that cannot remove what is delivered does not send it ever and again.
#[tokio::test]
async fn an_outbox_relay_that_fails_at_its_work_is_started_ever_later() {
    let (scene, session, _kept) = scene_with(Postgres::builder()).await;
    run(
        &session,
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no deletions'; END $$;
         CREATE TRIGGER no BEFORE DELETE ON litmus_pgnats.outbox FOR EACH ROW EXECUTE FUNCTION no()",
    )
    .await;
    run(&session, &put("1")).await;
    let starts = starts(&scene, "no deletions").await;
    println!("{starts} starts in 3 s");
    assert!(starts < 6, "{starts}");
    run(&session, "DROP TRIGGER no ON litmus_pgnats.outbox").await;
    eventually_eq(SOON, 0, async || number(&session, WAITING).await).await;
}

/// What a database sets for its users' sessions is not for outbox relays.
#[tokio::test]
async fn a_database_that_is_read_only_by_default() {
    let (scene, session, kept) = scene_with(Postgres::builder()).await;
    run(
        &session,
        "ALTER DATABASE postgres SET default_transaction_read_only = on;
         ALTER DATABASE postgres SET default_transaction_isolation = serializable",
    )
    .await;
    run(&session, &put("1")).await;
    assert_eq!(kept.payloads(1).await, ["1"]);
    eventually_eq(SOON, 0, async || number(&session, WAITING).await).await;
    assert_eq!(scene.pg.worker_pids(OUTBOX_RELAY).await.len(), 1);
}

/// When the messages of a server that is gone are given up, nothing keeps the outbox relay; and the next trouble has its time.
#[tokio::test]
async fn a_dropped_server_is_forgotten() {
    let pg = Postgres::builder()
        .conf("litmus_pgnats.outbox_retry_time", "2s")
        .conf("litmus_pgnats.executor_idle_timeout", "1s");
    let (scene, session, _kept) = scene_with(pg).await;
    let other = scene.pg.connect().await;
    let lose = async || {
        run(&session, &format!("BEGIN; {}", put("1"))).await;
        run(&other, "DROP SERVER nats").await;
        run(&session, "COMMIT").await;
        Instant::now()
    };
    lose().await;
    until_number(&other, 1, DEAD).await;
    eventually_eq(SOON, Vec::<i32>::new(), async || {
        scene.pg.worker_pids(OUTBOX_RELAY).await
    })
    .await;
    run(&other, &server_again(&scene)).await;
    let began = lose().await;
    until_number(&other, 2, DEAD).await;
    let took = began.elapsed();
    println!("given up after {took:?}");
    assert!(took >= Duration::from_secs(2), "{took:?}");
}

/// The foreign server of the scene, after it was dropped.
fn server_again(scene: &Scene) -> String {
    create_server(scene.nats.port(), "").replace("CREATE EXTENSION litmus_pgnats; ", "")
}

/// Messages for a server that was never reached go to the one that takes its name.
#[tokio::test]
async fn a_server_that_is_replaced() {
    let closed = Port::take();
    replaced(closed.number()).await;
}

/// The same where the server is there, and has no JetStream.
#[tokio::test]
async fn a_server_without_jetstream_that_is_replaced() {
    let plain = NatsServer::start().await;
    replaced(plain.port()).await;
}

async fn replaced(wrong_port: u16) {
    let (scene, session, kept) = scene_with(Postgres::builder()).await;
    let wrong = format!("ALTER SERVER nats OPTIONS (SET port '{wrong_port}')");
    run(&session, &wrong).await;
    run(&session, &put("1")).await;
    // The outbox relay has read it.
    until_number(&session, 1, "SELECT count(*) FROM litmus_pgnats.connections").await;
    run(&session, "DROP SERVER nats").await;
    run(&session, &server_again(&scene)).await;
    until_empty(&session).await;
    assert_eq!(kept.payloads(1).await, ["1"]);
}

/// An outbox relay that begins with a large backlog for a server that is away finds what is behind it.
#[tokio::test]
async fn a_large_backlog_of_a_server_that_is_away() {
    let (scene, session, kept) = scene_with(Postgres::builder()).await;
    let closed = Port::take();
    let fill = format!(
        "CREATE SERVER away FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}');
         SET litmus_pgnats.server = 'away'; {}; SET litmus_pgnats.server = 'nats';
         INSERT INTO litmus_pgnats.outbox_batch (batch, server, role)
           SELECT b.batch, b.server, b.role FROM litmus_pgnats.outbox_batch b, generate_series(1, 200000)",
        closed.number(),
        put("0")
    );
    for statement in fill.split("; ") {
        run(&session, statement).await;
    }
    let old = scene.pg.worker_pids(OUTBOX_RELAY).await;
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = '{OUTBOX_RELAY}'"
    );
    run(&session, &end).await;
    eventually(SOON, async || {
        let now = scene.pg.worker_pids(OUTBOX_RELAY).await;
        !now.is_empty() && now != old
    })
    .await;
    run(&session, &put("1")).await;
    assert_eq!(kept.payloads(1).await, ["1"]);
}

/// Messages that wait cost those of other subjects nothing, however many they are.
#[tokio::test]
async fn a_large_backlog_of_a_subject_that_waits() {
    let pg = Postgres::builder().conf("litmus_pgnats.outbox_retry_time", "-1");
    let (scene, session, kept) = scene_with(pg).await;
    let fill = "SELECT nats_publish_text_outbox('nowhere', n::text) FROM generate_series(1, 20000) n";
    for _ in 0..5 {
        run(
            &session,
            &format!("DO $$ BEGIN PERFORM 1 FROM ({fill}) f; END $$"),
        )
        .await;
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    let [pid] = scene.pg.worker_pids(OUTBOX_RELAY).await[..] else {
        panic!("no outbox relay")
    };
    let (began, before) = (Instant::now(), proc::cpu_time(pid));
    for n in 1..=20 {
        run(&session, &put(n)).await;
        kept.payloads(n).await;
    }
    let (took, cpu) = (began.elapsed(), proc::cpu_time(pid) - before);
    println!("20 messages beside 100,000 that wait: {took:?}, {cpu:?} of the outbox relay");
    assert!(cpu < Duration::from_millis(300), "{cpu:?}");
}

/// What was passed over while its subject waited comes in the end, in order, whatever was delivered meanwhile: also while
/// another subject waits on.
#[tokio::test]
async fn what_was_passed_over_is_not_forgotten() {
    let pg = Postgres::builder().conf("litmus_pgnats.outbox_retry_time", "-1");
    let (scene, session, kept) = scene_with(pg).await;
    run(&session, &put_to("first", 0)).await;
    // The two are tried at different times from now on.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut count = [0, 0, 0];
    for n in 1..=300 {
        let lines: Vec<String> = (0..n % 4)
            .map(|part| {
                let which = (n + part) % 3;
                count[which] += 1;
                put_to(["kept.a", "first", "second"][which], count[which])
            })
            .collect();
        run(
            &session,
            &format!("BEGIN; SELECT 1; {}; COMMIT", lines.join("; ")),
        )
        .await;
    }
    let [free, first, second] = count;
    assert_eq!(kept.payloads(free).await, numbers(1..=free));
    let context = jetstream::new(scene.nats.client().await);
    let came = async |subject: &str, left: usize, count: usize| {
        let config = stream::Config {
            name: subject.into(),
            subjects: vec![subject.into()],
            ..Default::default()
        };
        let stream = context.create_stream(config).await.expect("create a stream");
        eventually_eq(LONG, left as i64, async || number(&session, WAITING).await).await;
        let mut payloads = Vec::new();
        for sequence in 1..=count as u64 {
            let message = stream.get_raw_message(sequence).await.expect("a message");
            payloads.push(String::from_utf8(message.payload.to_vec()).expect("text"));
        }
        payloads
    };
    assert_eq!(came("second", first + 1, second).await, numbers(1..=second));
    assert_eq!(came("first", 0, first + 1).await, numbers(0..=first));
    let commits = "SELECT count(*) FROM litmus_pgnats.outbox_batch";
    until_number(&session, 0, commits).await;
}

/// The same for one that was refused when nothing else of its subject was there.
#[tokio::test]
async fn what_was_refused_is_not_passed_over() {
    let pg = Postgres::builder().conf("litmus_pgnats.outbox_retry_time", "-1");
    let (scene, session, _kept) = scene_with(pg).await;
    run(&session, &put_to("first", 0)).await;
    // It is tried every five seconds from then on.
    tokio::time::sleep(Duration::from_secs(7)).await;
    run(&session, &put_to("second", 1)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let context = jetstream::new(scene.nats.client().await);
    let config = stream::Config {
        name: "second".into(),
        subjects: vec!["second".into()],
        ..Default::default()
    };
    let stream = context.create_stream(config).await.expect("create a stream");
    run(&session, &put_to("second", 2)).await;
    eventually_eq(LONG, 1, async || number(&session, WAITING).await).await;
    for (sequence, payload) in [(1, b"1"), (2, b"2")] {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        assert_eq!(&message.payload[..], payload);
    }
}
