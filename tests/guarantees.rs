//! Crash tests that count: each message that is written to one database's outbox adds a row to another database and moves
//! a balance there, by a stream and a durable subscription. Whatever is killed meanwhile: nothing lost, nothing twice.

mod handlers;
mod outgoing;
mod scene;
mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use handlers::*;
use outgoing::{DEAD, OUTBOX_RELAY, WAITING};
use scene::*;
use support::proc;
use support::*;
use tokio_postgres::Config;

/// What is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Executor,
    OutboxRelay,
    Runtime,
    /// An immediate shutdown, and a start.
    Postgres,
    Nats,
}

/// Two databases and a stream between them: `source` writes, `sink` applies.
async fn pipeline(sink: &str) -> (Scene, Session, Session) {
    let nats = NatsServer::builder().jetstream().start().await;
    let context = jetstream::new(nats.client().await);
    let config = stream::Config {
        name: "moves".into(),
        subjects: vec!["moves.>".into()],
        ..Default::default()
    };
    context.create_stream(config).await.expect("create a stream");
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let source = scene.pg.connect().await;
    run(&source, "CREATE TABLE sent (n int)").await;
    let session = scene.database("sink").await;
    run(
        &session,
        "CREATE TABLE moved (id bigint GENERATED ALWAYS AS IDENTITY, n int);
         CREATE TABLE balance (total bigint); INSERT INTO balance VALUES (0);
         CREATE FUNCTION move(msg text) RETURNS void LANGUAGE sql AS $$
           INSERT INTO public.moved (n) VALUES (msg::int); UPDATE public.balance SET total = total + msg::int $$;
         CREATE FUNCTION move_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
           INSERT INTO public.moved (n) SELECT convert_from(payload, 'utf8')::int FROM unnest(messages);
           UPDATE public.balance SET total = total +
             (SELECT sum(convert_from(payload, 'utf8')::int) FROM unnest(messages)) $$;",
    )
    .await;
    let subscribe =
        format!("SELECT nats_subscribe_stream('moves', '{sink}', ack_wait => '2 s', max_deliveries => 0)");
    run(&session, &subscribe).await;
    (scene, source, session)
}

/// Writes numbers until told to end, again after each loss of the session.
async fn write(config: Config, ended: &AtomicBool) {
    write_from(config, ended, 0).await;
}

async fn write_from(config: Config, ended: &AtomicBool, mut n: i64) {
    while !ended.load(Ordering::SeqCst) {
        let Ok(session) = Session::open(&config).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !ended.load(Ordering::SeqCst) {
            n += 1;
            let ending = if n % 10 == 0 { "ROLLBACK" } else { "COMMIT" };
            let sql = format!(
                "BEGIN; INSERT INTO sent VALUES ({n}); SELECT nats_publish_text_outbox('moves.{}', '{n}'); {ending}",
                n % 3
            );
            if session.batch_execute(&sql).await.is_err() {
                let _ = session.batch_execute("ROLLBACK").await;
                break;
            }
        }
    }
}

/// Kills one of these after the other at random moments.
async fn storm(scene: &mut Scene, victims: &[Victim], cycles: usize) -> Vec<(Victim, usize)> {
    let mut kills: Vec<(Victim, usize)> = victims.iter().map(|victim| (*victim, 0)).collect();
    let mut random = 0x2545_f491_u64 ^ u64::from(std::process::id());
    for cycle in 0..cycles {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(20 + (random >> 33) % 400)).await;
        let (victim, count) = &mut kills[cycle % victims.len()];
        *count += 1;
        let name = match victim {
            Victim::Executor => EXECUTOR,
            Victim::OutboxRelay => OUTBOX_RELAY,
            Victim::Runtime => RUNTIME,
            Victim::Postgres => {
                scene.pg.restart(Stop::Immediate).await;
                continue;
            }
            Victim::Nats => {
                scene.nats.kill9();
                scene.nats.restart().await;
                continue;
            }
        };
        // It may be about to start, and sessions are let in again after the kill before.
        let process = eventually(LONG, async || {
            let session = scene.pg.try_connect_as("postgres", "postgres").await.ok()?;
            let sql = format!(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = '{name}' ORDER BY random() LIMIT 1"
            );
            let rows = session.query(&sql, &[]).await.ok()?;
            // The kill before may be ending it just now.
            proc::Process::find(rows.first()?.get(0))
        })
        .await;
        process.signal(libc::SIGKILL);
    }
    kills
}

/// In the end what was sent, and committed, was moved: each once.
async fn nothing_lost_nothing_twice(sink: &str, victims: &[Victim], cycles: usize) {
    let (mut scene, source, session) = pipeline(sink).await;
    drop((source, session));
    let ended = AtomicBool::new(false);
    let config = scene.pg.config();
    let storm = async {
        let kills = storm(&mut scene, victims, cycles).await;
        ended.store(true, Ordering::SeqCst);
        kills
    };
    let (kills, ()) = tokio::join!(storm, write(config, &ended));
    // The last kill has yet to be noticed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("{sink}: {kills:?}");
    all_moved_once(&scene.nats, &scene.pg).await;
}

/// Where what has not been moved may be.
async fn standing(nats: &NatsServer, source: &Session, sink: &Session) -> String {
    let numbers = async |session: &Session, sql| -> BTreeSet<i32> {
        let rows = session.query(sql, &[]).await.expect("numbers");
        rows.iter().map(|row| row.get(0)).collect()
    };
    let moved = numbers(sink, "SELECT n FROM moved").await;
    let mut missing = numbers(source, "SELECT n FROM sent ORDER BY n").await;
    missing.retain(|n| !moved.contains(n));
    let waiting = number(source, WAITING).await;
    let rows = async |session, view: &str| {
        text(
            session,
            &format!("SELECT coalesce(json_agg(v), '[]')::text FROM litmus_pgnats.{view} v"),
        )
        .await
    };
    let outbox = rows(source, "outbox_waiting").await;
    let subscription = rows(sink, "stream_subscriptions").await;
    let jetstream = nats.monitor("/jsz?streams=true&consumers=true").await;
    format!(
        "missing {missing:?}\n{waiting} in the outbox {outbox}\nsubscription {subscription}\nJetStream {jetstream}"
    )
}

async fn all_moved_once(nats: &NatsServer, pg: &Postgres) {
    let began = Instant::now();
    let connect =
        async |database| eventually(LONG, async || pg.try_connect_as("postgres", database).await.ok()).await;
    let (source, session) = (connect("postgres").await, connect("sink").await);
    let sent = number(&source, "SELECT count(*) FROM sent").await;
    let total = number(&source, "SELECT coalesce(sum(n), 0)::bigint FROM sent").await;
    eventually(LONG, async || {
        let moved = number(&session, "SELECT count(*) FROM moved").await;
        if moved >= sent {
            Ok(())
        } else if began.elapsed() < LONG.mul_f32(0.9) {
            Err(String::new())
        } else {
            Err(format!(
                "{moved} of {sent}; {}",
                standing(nats, &source, &session).await
            ))
        }
    })
    .await;
    let settled = began.elapsed();
    let moved = number(&session, "SELECT count(*) FROM moved").await;
    let distinct = number(&session, "SELECT count(DISTINCT n) FROM moved").await;
    let balance = number(&session, "SELECT total FROM balance").await;
    println!(
        "{sent} sent, {moved} moved, {distinct} of them distinct, balance {balance} of {total}; over after {settled:?}"
    );
    assert_eq!((moved, distinct, balance), (sent, sent, total));
    assert!(sent > 50, "hardly anything was sent");
    for session in [&source, &session] {
        assert_eq!(number(session, DEAD).await, 0);
        until_number(session, 0, WAITING).await;
    }
}

#[tokio::test]
async fn workers_are_killed() {
    let victims = [Victim::Executor, Victim::OutboxRelay, Victim::Runtime];
    nothing_lost_nothing_twice("move", &victims, 75).await;
}

#[tokio::test]
async fn workers_are_killed_under_batches() {
    let victims = [Victim::Executor, Victim::OutboxRelay, Victim::Runtime];
    nothing_lost_nothing_twice("move_many", &victims, 75).await;
}

#[tokio::test]
async fn servers_are_killed() {
    nothing_lost_nothing_twice("move", &[Victim::Postgres, Victim::Nats], 60).await;
}

#[tokio::test]
async fn servers_are_killed_under_batches() {
    nothing_lost_nothing_twice("move_many", &[Victim::Nats, Victim::Postgres], 60).await;
}

/// Commits wait for the standby, which is promoted while messages are on their way.
#[tokio::test]
async fn a_standby_is_promoted_in_the_middle() {
    let (mut scene, source, session) = pipeline("move").await;
    let standby = scene.pg.standby().await;
    run(&source, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    run(&source, "SELECT pg_reload_conf()").await;
    let state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
    until_number(&source, 1, state).await;
    drop((source, session));
    let (old, new) = (AtomicBool::new(false), AtomicBool::new(false));
    let first = scene.pg.config();
    let promotion = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        scene.pg.kill9();
        old.store(true, Ordering::SeqCst);
        standby.promote().await;
        let resumed = standby.connect().await;
        run(&resumed, "ALTER SYSTEM RESET synchronous_standby_names").await;
        run(&resumed, "SELECT pg_reload_conf()").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        new.store(true, Ordering::SeqCst);
    };
    let writing = async {
        write(first, &old).await;
        let again = standby.connect().await;
        // What the standby has is what counts; its numbers go on from there.
        let last = number(&again, "SELECT coalesce(max(n), 0)::bigint FROM sent").await;
        println!("{last} was the last number before the promotion");
        write_from(standby.config(), &new, last + 1_000_000).await;
    };
    tokio::join!(promotion, writing);
    all_moved_once(&scene.nats, &standby).await;
}
