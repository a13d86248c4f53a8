//! The test support itself: servers start, work, restart, and leave nothing behind.

mod support;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use support::proc::{self, Process};
use support::*;

const SOON: Duration = Duration::from_secs(10);

/// PostgreSQL as it is, without the extension.
async fn plain() -> Postgres {
    Postgres::builder().preload(false).start().await
}

/// One message through the server, from one client to another.
async fn message_goes_through(nats: &NatsServer) {
    let (alice, bob) = (nats.client().await, nats.client().await);
    let mut inbox = bob.subscribe("greeting").await.expect("subscribe");
    round_trip(&bob).await;
    alice.publish("greeting", "hello".into()).await.expect("publish");
    alice.flush().await.expect("flush the message");
    let message = tokio::time::timeout(SOON, inbox.next()).await;
    let message = message.expect("a message in time").expect("an open subscription");
    assert_eq!(message.payload, "hello");
}

#[tokio::test]
async fn postgres_answers_and_stops() {
    let began = Instant::now();
    let mut pg = plain().await;
    let started = began.elapsed();
    let session = pg.connect().await;
    let row = session.query_one("SELECT 40 + 2", &[]).await.expect("a query");
    assert_eq!(row.get::<_, i32>(0), 42);
    assert_eq!(proc::threads(session.pid()), 1);
    assert!(proc::children(pg.postmaster_pid()).contains(&session.pid()));
    assert!(proc::rss(session.pid()) > 1 << 20);
    assert!(proc::private_bytes(session.pid()) < proc::rss(session.pid()));
    assert!(proc::cpu_time(session.pid()) < SOON);
    assert!(proc::command_line(session.pid()).starts_with("postgres: "));
    assert_eq!(pg.worker_pid("checkpointer").await.map(proc::threads), Some(1));
    assert_eq!(pg.worker_pid("nobody").await, None);
    session.close().await;

    let began = Instant::now();
    pg.stop(Stop::Fast).await;
    let stopped = began.elapsed();
    pg.start_again().await;
    assert_eq!(pg.sql("SELECT 1").await, "1");
    pg.restart(Stop::Immediate).await;
    assert_eq!(pg.sql("SELECT 1").await, "1");
    let began = Instant::now();
    drop(pg);
    println!(
        "start {started:?}, fast stop {stopped:?}, drop {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn settings_and_hba_are_taken() {
    let pg = Postgres::builder()
        .preload(false)
        .conf("work_mem", "3MB")
        .conf("application_name", "it's")
        .hba("local all nobody reject")
        .start()
        .await;
    assert_eq!(pg.sql("SHOW work_mem").await, "3MB");
    pg.sql("CREATE ROLE nobody LOGIN; CREATE ROLE somebody LOGIN")
        .await;
    let refused = pg.try_connect_as("nobody", "postgres").await;
    let refused = refused.err().expect("nobody is refused");
    assert_eq!(sqlstate(&refused), "28000");
    let session = pg.connect_as("somebody", "postgres").await;
    let row = session.query_one("SELECT current_user::text", &[]).await;
    assert_eq!(row.expect("a query").get::<_, String>(0), "somebody");

    pg.append_conf("work_mem", "5MB");
    pg.reload();
    eventually_eq(SOON, "5MB".to_owned(), async || pg.sql("SHOW work_mem").await).await;
    pg.wait_log("SIGHUP", SOON).await;
}

#[tokio::test]
async fn notices_and_errors_can_be_read() {
    let pg = plain().await;
    let session = pg.connect().await;
    let warn = "DO $$ BEGIN RAISE WARNING 'careful' USING HINT = 'slow down'; END $$";
    session.batch_execute(warn).await.expect("a warning");
    let notices = session.take_notices();
    assert_eq!(notices.len(), 1);
    assert_eq!(
        (&*notices[0].severity, &*notices[0].message),
        ("WARNING", "careful")
    );
    assert_eq!(notices[0].hint.as_deref(), Some("slow down"));
    assert!(session.notices().is_empty());

    let error = session.batch_execute("SELECT 1/0").await.expect_err("an error");
    assert_eq!(sqlstate(&error), "22012");
    let report = db_error(&error);
    assert_eq!(
        (&*report.severity, &*report.message),
        ("ERROR", "division by zero")
    );
}

#[tokio::test]
async fn psql_runs_and_can_be_interrupted() {
    let pg = plain().await;
    let output = pg.psql(&["-At", "-c", "SELECT 1", "-c", "SELECT 1/0"]).await;
    assert_eq!((output.status, output.stdout.as_str()), (1, "1\n"));
    assert!(output.stderr.contains("division by zero"), "{output:?}");

    let mut command = pg.psql_command(&["-c", "SELECT pg_sleep(60)"]);
    let child = command.spawn().expect("start psql");
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually_eq(SOON, "1".to_owned(), async || pg.sql(sleeps).await).await;
    proc::signal(child.id().cast_signed(), libc::SIGINT);
    let output = PsqlOutput::from(child.wait_with_output().expect("wait for psql"));
    assert!(output.stderr.contains("canceling statement"), "{output:?}");
}

#[tokio::test]
async fn standby_follows_and_is_promoted() {
    let pg = plain().await;
    pg.sql("CREATE TABLE t AS SELECT 7 AS n").await;
    let standby = pg.standby().await;
    assert_eq!(standby.sql("SELECT pg_is_in_recovery(), n FROM t").await, "t|7");
    pg.sql("INSERT INTO t VALUES (8)").await;
    let count = async || standby.sql("SELECT count(*) FROM t").await;
    eventually_eq(SOON, "2".to_owned(), count).await;
    standby.promote().await;
    standby.sql("INSERT INTO t VALUES (9)").await;
    assert_eq!(standby.sql("SELECT count(*) FROM t").await, "3");
    assert_eq!(pg.sql("SELECT count(*) FROM t").await, "2");
}

#[tokio::test]
async fn killed_postmaster_recovers() {
    let mut pg = plain().await;
    pg.sql("CREATE TABLE t AS SELECT 7 AS n").await;
    pg.kill9();
    pg.start_again().await;
    assert_eq!(pg.sql("SELECT n FROM t").await, "7");
    assert!(pg.log().contains("was not properly shut down"));
}

#[tokio::test]
async fn nats_delivers_and_restarts_on_the_same_port() {
    let began = Instant::now();
    let mut nats = NatsServer::start().await;
    println!("nats-server: start {:?}", began.elapsed());
    message_goes_through(&nats).await;
    let client = nats.client().await;
    let connections = async || nats.monitor("/connz").await["num_connections"].as_u64();
    eventually_eq(SOON, Some(1), connections).await;
    assert_eq!(nats.monitor("/varz").await["port"], nats.port());

    let port = nats.port();
    nats.kill9();
    nats.restart().await;
    nats.restart().await;
    assert_eq!(nats.port(), port);
    message_goes_through(&nats).await;
    let connects = || client.statistics().connects.load(Ordering::Relaxed);
    eventually(SOON, async || connects() >= 2).await;

    let client = nats.client().await;
    nats.pause().await;
    let request = client.request("nobody", "anyone?".into());
    let answer = tokio::time::timeout(Duration::from_millis(300), request).await;
    assert!(answer.is_err(), "a paused server answered: {answer:?}");
    nats.resume();
    message_goes_through(&nats).await;
}

#[tokio::test]
async fn nats_lets_in_whom_it_should() {
    let seed = nkeys::KeyPair::new_user().seed().expect("the seed of a new key");
    for config in [
        NatsServer::builder().user("alice", "s3cret \"x\""),
        NatsServer::builder().token("t0ken"),
        NatsServer::builder().nkey(&seed),
    ] {
        let nats = config.start().await;
        message_goes_through(&nats).await;
        let refused = nats.connect(async_nats::ConnectOptions::new()).await;
        assert!(refused.is_err(), "let in without credentials");
    }
}

#[tokio::test]
async fn nats_takes_up_another_configuration() {
    let mut nats = NatsServer::builder().user("alice", "old").start().await;
    let old = nats.client_options();
    nats.reload(NatsServer::builder().user("alice", "new")).await;
    message_goes_through(&nats).await;
    assert!(nats.connect(old).await.is_err(), "the old password is still good");
}

#[tokio::test]
async fn nats_has_jetstream_when_asked() {
    let mut nats = NatsServer::builder()
        .jetstream()
        .config("max_payload: 4096")
        .start()
        .await;
    let stream = async_nats::jetstream::stream::Config {
        name: "kept".into(),
        subjects: vec!["kept".into()],
        ..Default::default()
    };
    let jetstream = async_nats::jetstream::new(nats.client().await);
    jetstream.create_stream(stream).await.expect("create a stream");
    nats.restart().await;
    let jetstream = async_nats::jetstream::new(nats.client().await);
    jetstream.get_stream("kept").await.expect("the stream is kept");
    assert_eq!(nats.monitor("/varz").await["max_payload"], 4096);
}

#[tokio::test]
async fn tls_and_mutual_tls_work() {
    let certs = Certs::shared();
    let tls = NatsServer::builder().tls(&certs).start().await;
    message_goes_through(&tls).await;
    let other = async_nats::ConnectOptions::new().add_root_certificates(Certs::fresh().ca());
    assert!(tls.connect(other).await.is_err(), "trusted a foreign CA");

    let mutual = NatsServer::builder().mutual_tls(&certs).start().await;
    message_goes_through(&mutual).await;
    assert!(
        mutual.connect(tls.client_options()).await.is_err(),
        "no certificate was asked for"
    );
}

#[tokio::test]
async fn wire_stub_records_the_greeting() {
    let stub = WireStub::start();
    let options = async_nats::ConnectOptions::new().user_and_password("u".into(), "p".into());
    let client = options.connect(stub.url()).await.expect("connect to the stub");
    client.publish("a.b", "x".into()).await.expect("publish");
    let connect = stub.connect().await;
    assert_eq!((&connect["user"], &connect["pass"]), (&"u".into(), &"p".into()));
    assert_eq!(stub.line("PUB").await, "PUB a.b 1");
}

#[tokio::test]
async fn nothing_is_left_after_drop() {
    let nats = NatsServer::builder().jetstream().start().await;
    let pg = plain().await;
    let session = pg.connect().await;
    let mut processes = vec![nats.pid(), pg.postmaster_pid()];
    processes.extend(proc::children(pg.postmaster_pid()));
    let processes: Vec<Process> = processes.into_iter().filter_map(Process::find).collect();
    assert!(processes.len() >= 7, "{processes:?}");
    let places: [PathBuf; 2] = [pg.data_dir().to_owned(), pg.socket_dir().to_owned()];
    let work = pg.data_dir().parent().expect("the work directory").to_owned();
    nats.pause().await;
    drop((pg, nats, session));
    let alive: Vec<_> = processes.into_iter().filter(|p| p.alive()).collect();
    assert!(alive.is_empty(), "still running: {alive:?}");
    for place in places.iter().chain([&work, &work.with_extension("lock")]) {
        assert!(!place.exists(), "{} is still there", place.display());
    }
}

#[tokio::test]
#[should_panic(expected = "last seen: 1 instead of 2")]
async fn eventually_tells_what_it_saw() {
    eventually_eq(Duration::from_millis(50), 2, async || 1).await;
}

#[tokio::test]
#[should_panic(expected = "could not access file \"no_such_library\"")]
async fn failed_start_shows_the_log() {
    Postgres::builder()
        .conf("shared_preload_libraries", "no_such_library")
        .start()
        .await;
}

/// The broker without headers: wildcards, one member of a queue group, requests, and headers are refused.
#[tokio::test]
async fn core_nats() {
    let nats = CoreNats::start();
    let (client, other) = (connect(&nats).await, connect(&nats).await);
    let mut all = client.subscribe("a.>").await.expect("subscribe");
    let mut members = Vec::new();
    for _ in 0..2 {
        let member = client.queue_subscribe("a.*", "group".into()).await;
        members.push(member.expect("subscribe"));
    }
    let mut service = client.subscribe("service").await.expect("subscribe");
    eventually_eq(SOON, 4, async || nats.subjects().len()).await;
    for subject in ["a", "a.b", "a.b.c", "b.b"] {
        other.publish(subject, "x".into()).await.expect("publish");
    }
    for subject in ["a.b", "a.b.c"] {
        assert_eq!(all.next().await.expect("a message").subject.as_str(), subject);
    }
    let mut members = futures::stream::select_all(members);
    assert_eq!(members.next().await.expect("a message").subject.as_str(), "a.b");
    let asking = other.request("service", "q".into());
    let answering = async {
        let request = service.next().await.expect("a request");
        let reply = request.reply.expect("a reply subject");
        client.publish(reply, "answer".into()).await.expect("publish");
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.expect("an answer").payload, "answer");
    assert!(
        futures::FutureExt::now_or_never(members.next()).is_none(),
        "twice"
    );
    assert_eq!(nats.refused(), [""; 0]);
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("a", "b");
    other
        .publish_with_headers("a", headers, "x".into())
        .await
        .expect("publish");
    eventually_eq(SOON, 1, async || nats.refused().len()).await;
}

async fn connect(nats: &CoreNats) -> async_nats::Client {
    async_nats::connect(nats.url()).await.expect("a client")
}
