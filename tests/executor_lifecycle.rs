//! Executors come when they are needed, come back when they are ended, and keep no shutdown waiting.

mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use handlers::*;
use scene::*;
use support::proc;
use support::*;

/// The target is 2 s; the machine is shared.
const CEILING: Duration = Duration::from_secs(5);

const NAP: &str = "CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)'";

/// CREATE EXTENSION and then nats_subscribe: no restart, no preloading.
#[tokio::test]
async fn without_preloading() {
    let nats = NatsServer::start().await;
    let pg = Postgres::builder().preload(false).start().await;
    let session = pg.connect().await;
    assert_eq!(pg.worker_pids(RUNTIME).await, [0; 0]);
    run(&session, &create_server(nats.port(), "")).await;
    run(&session, KEEP).await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    subscribe(&session, "news", "keep").await;
    respond(&session, "rpc", "answer").await;
    let client = nats.client().await;
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
    assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "q");
    // Without preloading, FORCE is the way to drop a database that has an executor.
    let scene = Scene { pg, nats };
    let other = scene.database("other").await;
    subscribe(&other, "other", "keep").await;
    other.close().await;
    let began = Instant::now();
    run(&session, "DROP DATABASE other WITH (FORCE)").await;
    println!(
        "DROP DATABASE WITH (FORCE) without preloading: {:?}",
        began.elapsed()
    );
    eventually_eq(SOON, vec!["news".to_owned(), "rpc".into()], async || {
        scene.subjects().await
    })
    .await;
    say(&client, "news", "2").await;
    until_got(&session, &["1", "2"]).await;
}

/// Two databases at the same time, each with messages and tables of its own.
#[tokio::test]
async fn two_databases() {
    let (scene, first) = Scene::keeping().await;
    let second = scene.database("second").await;
    subscribe(&first, "first", "keep").await;
    subscribe(&second, "second", "keep").await;
    subscribe(&second, "both", "keep").await;
    subscribe(&first, "both", "keep").await;
    let client = scene.nats.client().await;
    for n in 1..=500_usize {
        for subject in ["first", "second", "both"] {
            publish(&client, subject, format!("{subject} {n}").into()).await;
        }
    }
    round_trip(&client).await;
    for (session, name) in [(&first, "first"), (&second, "second")] {
        eventually_eq(LONG, 1000, async || got(session).await.len()).await;
        let all = got(session).await;
        for kind in [name, "both"] {
            let own: Vec<&String> = all.iter().filter(|text| text.starts_with(kind)).collect();
            let expected: Vec<String> = (1..=500).map(|n| format!("{kind} {n}")).collect();
            assert_eq!(own, expected.iter().collect::<Vec<_>>(), "{kind} in {name}");
        }
    }
}

/// Shutdown in every mode, while callbacks are in pg_sleep(60) and more messages wait.
#[tokio::test]
async fn shutdown_is_prompt() {
    let (mut scene, session) = Scene::keeping().await;
    run(&session, NAP).await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT pg_sleep(60)::text'",
    )
    .await;
    subscribe(&session, "nap", "nap").await;
    respond(&session, "rpc", "answer").await;
    session.close().await;
    let client = scene.nats.client().await;
    for mode in [Stop::Fast, Stop::Immediate, Stop::Smart] {
        eventually_eq(SOON, 2, async || scene.subjects().await.len()).await;
        count_off(&client, "nap", 1..=100).await;
        let reply = client.publish_with_reply("rpc", "nowhere", "q".into()).await;
        reply.expect("publish");
        eventually_eq(SOON, 2, async || scene.sleeping().await.len()).await;
        // Smart shutdown waits for sessions: those that this test used to look have to be gone.
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        eventually_eq(SOON, "1".to_owned(), async || scene.pg.sql(sessions).await).await;
        let began = Instant::now();
        scene.pg.stop(mode).await;
        let took = began.elapsed();
        println!("{mode:?} shutdown: {took:?}");
        assert!(took < CEILING, "{mode:?}: {took:?}");
        scene.pg.start_again().await;
    }
}

/// pg_terminate_backend on an executor: it is replaced, and the messages that waited are not lost.
#[tokio::test]
async fn terminating_an_executor() {
    let (scene, session) = Scene::keeping().await;
    run(&session, NAP).await;
    subscribe(&session, "nap", "nap").await;
    subscribe(&session, "news", "keep").await;
    let client = scene.nats.client().await;
    say(&client, "news", "0").await;
    until_got(&session, &["0"]).await;
    let idle = scene.executor().await;
    run(&session, &format!("SELECT pg_terminate_backend({idle})")).await;
    say(&client, "news", "1").await;
    until_got(&session, &["0", "1"]).await;
    assert!(!scene.executors().await.contains(&idle));

    // While a callback runs: nothing of it was committed, so it is run again, and before what waited behind it.
    say(&client, "nap", "again").await;
    let busy = scene.until_sleeping().await;
    run(
        &session,
        "CREATE OR REPLACE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) VALUES (msg) $$",
    )
    .await;
    for n in 2..=4 {
        say(&client, "nap", n.to_string()).await;
    }
    let began = Instant::now();
    run(&session, &format!("SELECT pg_terminate_backend({busy})")).await;
    until_got(&session, &["0", "1", "again", "2", "3", "4"]).await;
    println!("back {:?} after pg_terminate_backend", began.elapsed());
    healthy_log(&scene);
}

/// Nothing has crashed.
fn healthy_log(scene: &Scene) {
    let log = scene.pg.log();
    assert!(
        !log.contains("PANIC") && !log.contains("terminated by signal"),
        "{log}"
    );
}

/// A message that ends each executor that runs it is given up and counted; the others go on, in order.
#[tokio::test]
async fn a_message_that_ends_executors() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION deadly(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO got (payload) VALUES (msg);
           IF msg = 'deadly' THEN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(60); END IF;
         END $$",
    )
    .await;
    subscribe(&session, "d", "deadly").await;
    let client = scene.nats.client().await;
    for payload in ["1", "2", "deadly", "3", "4"] {
        publish(&client, "d", payload.into()).await;
    }
    round_trip(&client).await;
    until_got(&session, &["1", "2", "3", "4"]).await;
    let fates = counts(&session, "d").await;
    assert_eq!(fates.errors + fates.dropped, 1, "{fates:?}");
    healthy_log(&scene);
}

/// pg_terminate_backend on the runtime worker: executors do not outlive it as orphans, and all comes back.
#[tokio::test]
async fn terminating_the_runtime() {
    let (scene, session) = Scene::keeping().await;
    run(&session, NAP).await;
    subscribe(&session, "nap", "nap").await;
    subscribe(&session, "news", "keep").await;
    let client = scene.nats.client().await;
    say(&client, "nap", "x").await;
    let busy = scene.until_sleeping().await;
    let runtime = scene.runtime().await;
    let began = Instant::now();
    run(&session, &format!("SELECT pg_terminate_backend({runtime})")).await;
    scene.next_runtime(runtime).await;
    until_live(&session, "news").await;
    println!("back {:?} after pg_terminate_backend", began.elapsed());
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
    // A callback whose result nobody waits for any more does not go on for ever.
    eventually(SOON, async || {
        !proc::alive(busy) || !scene.sleeping().await.contains(&busy)
    })
    .await;
    eventually(SOON, async || scene.executors().await.len() <= 1).await;
    eventually_eq(SOON, 2, async || scene.subjects().await.len()).await;
}

/// No slot for an executor: the log says so with what to do, the view shows it, and sessions go on.
#[tokio::test]
async fn no_worker_slot_at_all() {
    let pg = Postgres::builder()
        .conf("max_logical_replication_workers", "0")
        .conf("max_worker_processes", "1");
    let (scene, session) = Scene::keeping_with(pg).await;
    scene.echo().await;
    let began = Instant::now();
    run(&session, "SELECT nats_subscribe('news', 'keep')").await;
    let line = scene.pg.wait_log("max_worker_processes", SOON).await;
    assert!(
        line.contains("no background worker slot is free") || line.contains("HINT"),
        "{line}"
    );
    println!("refused a slot after {:?}", began.elapsed());
    // The session does not wait for what cannot come.
    let began = Instant::now();
    works(&session, "sessions go on").await;
    println!("the session's next request took {:?}", began.elapsed());
    assert!(began.elapsed() < CEILING, "{:?}", began.elapsed());
    say(&scene.nats.client().await, "news", "1").await;
    eventually(SOON, async || {
        let states = texts(
            &session,
            "SELECT database || ': ' || state FROM litmus_pgnats.executors",
        )
        .await;
        // Whether others need one is not known, as nobody could look.
        if states.contains(&"postgres: no worker slot".to_owned()) {
            Ok(())
        } else {
            Err(states)
        }
    })
    .await;
    let mark = scene.pg.log().len();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = scene.pg.log();
    let lines = log[mark..]
        .lines()
        .filter(|line| line.contains("max_worker_processes"))
        .count();
    assert!(lines <= 6, "{lines} lines in 5 s");
}

/// One slot for two databases: what can run runs, and the other gets it when it is free.
#[tokio::test]
async fn too_few_worker_slots() {
    let pg = Postgres::builder()
        .conf("max_logical_replication_workers", "0")
        .conf("max_worker_processes", "2");
    let (scene, first) = Scene::keeping_with(pg).await;
    let second = scene.database("second").await;
    subscribe(&first, "first", "keep").await;
    let client = scene.nats.client().await;
    say(&client, "first", "1").await;
    until_got(&first, &["1"]).await;
    run(&second, "SELECT nats_subscribe('second', 'keep')").await;
    scene.pg.wait_log("max_worker_processes", SOON).await;
    say(&client, "first", "2").await;
    until_got(&first, &["1", "2"]).await;
    let shown =
        "SELECT count(*) FROM litmus_pgnats.executors WHERE database = 'second' AND state = 'no worker slot'";
    until_number(&first, 1, shown).await;
    run(&first, "SELECT nats_unsubscribe('first', 'keep')").await;
    eventually(LONG, async || {
        say(&client, "second", "1").await;
        !got(&second).await.is_empty()
    })
    .await;
    until_number(&first, 0, shown).await;
}

/// The pool's parameters are taken over while it runs.
#[tokio::test]
async fn sighup_changes_the_limits() {
    let pg = Postgres::builder()
        .conf("litmus_pgnats.max_executors", "1")
        .conf("litmus_pgnats.executor_idle_timeout", "1h");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(&session, NAP).await;
    for n in 1..=3 {
        subscribe(&session, &format!("nap.{n}"), "nap").await;
    }
    let client = scene.nats.client().await;
    for n in 1..=3 {
        say(&client, &format!("nap.{n}"), "x").await;
    }
    eventually_eq(SOON, 1, async || scene.sleeping().await.len()).await;
    scene.pg.append_conf("litmus_pgnats.max_executors", "3");
    scene.pg.reload();
    eventually_eq(SOON, 3, async || scene.sleeping().await.len()).await;
    for pid in scene.sleeping().await {
        run(&session, &format!("SELECT pg_cancel_backend({pid})")).await;
    }
    eventually_eq(SOON, 0, async || scene.sleeping().await.len()).await;
    assert_eq!(scene.executors().await.len(), 3);
    scene
        .pg
        .append_conf("litmus_pgnats.executor_idle_timeout", "300ms");
    scene.pg.reload();
    eventually_eq(SOON, 1, async || scene.executors().await.len()).await;
}

/// The requests of one responder have the whole pool at once, not one more executor now and then.
#[tokio::test]
async fn a_burst_of_one_responder_has_the_whole_pool() {
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "4");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION nap(q text) RETURNS text LANGUAGE sql AS $$ SELECT pg_sleep(600)::text $$",
    )
    .await;
    respond(&session, "nap", "nap").await;
    let client = scene.nats.client().await;
    for _ in 0..20 {
        client
            .publish_with_reply("nap", client.new_inbox(), "".into())
            .await
            .expect("publish");
    }
    // A request has five seconds, those that wait included: after that none is left for a third executor.
    eventually_eq(SOON, 4, async || scene.sleeping().await.len()).await;
}

/// All executors of a pool are ended at once while messages wait: others come at once, not when a timer that was set
/// for something else is over.
#[tokio::test]
async fn terminating_all_executors() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION slow(msg text) RETURNS void LANGUAGE sql AS
           $$ SELECT pg_sleep(0.05); INSERT INTO public.got (payload) VALUES (msg) $$",
    )
    .await;
    for n in 1..=3 {
        subscribe(&session, &format!("slow.{n}"), "slow").await;
    }
    let client = scene.nats.client().await;
    for n in 1..=3 {
        count_off(&client, &format!("slow.{n}"), 1..=40).await;
    }
    eventually(SOON, async || scene.executors().await.len() >= 3).await;
    let began = Instant::now();
    let sql = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = '{EXECUTOR}'"
    );
    assert!(number(&session, &sql).await >= 3);
    eventually_eq(SOON, 120, async || got(&session).await.len()).await;
    println!("120 messages were executed {:?} after that", began.elapsed());
}
