//! `litmus_pgnats.publish = on_commit`: what commits is sent, in order; what rolls back never is.

mod handlers;
mod scene;
mod support;

use std::collections::VecDeque;

use futures::StreamExt;
use handlers::*;
use scene::*;
use support::*;

/// Somebody outside who takes what is published to `out.>`.
struct Outside(async_nats::Subscriber);

impl Outside {
    async fn of(scene: &Scene) -> Self {
        let client = scene.nats.client().await;
        let messages = client.subscribe("out.>").await.expect("subscribe");
        round_trip(&client).await;
        Outside(messages)
    }

    /// What came up to now: the session says `end` behind it, at once.
    async fn all(&mut self, session: &Session) -> Vec<String> {
        run(
            session,
            "SET litmus_pgnats.publish = immediate; SELECT nats_publish_text('out.end', 'end'); \
             SET litmus_pgnats.publish = on_commit",
        )
        .await;
        let mut all = Vec::new();
        loop {
            let next = tokio::time::timeout(SOON, self.0.next()).await;
            let next = next.unwrap_or_else(|_| panic!("no end behind {all:?}"));
            let message = next.expect("a message");
            if message.subject.as_str() == "out.end" {
                return all;
            }
            all.push(String::from_utf8(message.payload.to_vec()).expect("text"));
        }
    }
}

async fn on_commit() -> (Scene, Session, Outside) {
    on_commit_with(Postgres::builder()).await
}

async fn on_commit_with(pg: PostgresBuilder) -> (Scene, Session, Outside) {
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION tell(text) RETURNS void LANGUAGE sql AS $$ SELECT nats_publish_text('out.a', $1) $$;
         SET litmus_pgnats.publish = on_commit",
    )
    .await;
    let outside = Outside::of(&scene).await;
    (scene, session, outside)
}

#[tokio::test]
async fn with_the_transaction() {
    let (_scene, session, mut outside) = on_commit().await;
    for (sql, sent) in [
        ("SELECT tell('1')", vec!["1"]),
        (
            "BEGIN; SELECT tell('1'), tell('2'); SELECT tell('3'); COMMIT",
            vec!["1", "2", "3"],
        ),
        ("BEGIN; SELECT tell('1'); ROLLBACK", vec![]),
        (
            "BEGIN; SELECT tell('1'); SAVEPOINT s; SELECT tell('2'); ROLLBACK TO s; SELECT tell('3'); COMMIT",
            vec!["1", "3"],
        ),
        (
            "BEGIN; SAVEPOINT s; SELECT tell('1'); SAVEPOINT t; SELECT tell('2'); RELEASE t; RELEASE s; COMMIT",
            vec!["1", "2"],
        ),
        (
            "BEGIN; SAVEPOINT s; SELECT tell('1'); SAVEPOINT t; SELECT tell('2'); RELEASE t; ROLLBACK TO s; COMMIT",
            vec![],
        ),
        (
            "DO $$ BEGIN PERFORM tell('1'); BEGIN PERFORM tell('2'); PERFORM 1 / 0; \
             EXCEPTION WHEN division_by_zero THEN PERFORM tell('3'); END; END $$",
            vec!["1", "3"],
        ),
        (
            "DO $$ BEGIN FOR n IN 1..3 LOOP PERFORM tell(n::text); IF n = 2 THEN ROLLBACK; ELSE COMMIT; END IF; \
             END LOOP; END $$",
            vec!["1", "3"],
        ),
        (
            "BEGIN; SELECT tell('1'); SET LOCAL litmus_pgnats.publish = immediate; SELECT tell('2'); ROLLBACK",
            vec!["2"],
        ),
    ] {
        run(&session, sql).await;
        assert_eq!(outside.all(&session).await, sent, "{sql}");
    }
    // An error, at the statement or at the commit.
    run(
        &session,
        "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    )
    .await;
    for sql in [
        "SELECT tell('1'), 1 / (length(current_user) - 8)",
        "BEGIN; SELECT tell('1'); INSERT INTO late VALUES (1), (1); COMMIT",
    ] {
        refused(&session, sql).await;
        run(&session, "ROLLBACK").await;
        assert_eq!(outside.all(&session).await, [""; 0], "{sql}");
    }
}

/// The setting may be a function's own.
#[tokio::test]
async fn as_a_setting_of_a_function() {
    let (_scene, session, mut outside) = on_commit().await;
    run(
        &session,
        "RESET litmus_pgnats.publish; ALTER FUNCTION tell SET litmus_pgnats.publish = on_commit;
         BEGIN; SELECT tell('held'), nats_publish_text('out.b', 'at once'); COMMIT;
         BEGIN; SELECT tell('never'); ROLLBACK",
    )
    .await;
    assert_eq!(outside.all(&session).await, ["at once", "held"]);
}

/// Transactions of savepoints, releases, rollbacks and publishes at random, thousands of them.
#[tokio::test]
async fn random_savepoints() {
    const TRANSACTIONS: usize = 10_000;
    let (_scene, session, mut outside) = on_commit().await;
    let mut random = 42_u64;
    let mut next = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let (mut sent, mut number, mut rolled_back) = (VecDeque::new(), 0, 0);
    for _ in 0..TRANSACTIONS {
        // The messages of each open savepoint, the transaction's own first.
        let mut open: Vec<Vec<String>> = vec![Vec::new()];
        let mut sql = String::from("BEGIN;");
        for _ in 0..=next(12) {
            match next(6) {
                0..=2 => {
                    number += 1;
                    sql += &format!("SELECT tell('{number}');");
                    open.last_mut().expect("a level").push(number.to_string());
                }
                3 => {
                    sql += &format!("SAVEPOINT s{};", open.len());
                    open.push(Vec::new());
                }
                4 if open.len() > 1 => {
                    let to = 1 + next(open.len() as u64 - 1) as usize;
                    sql += &format!("ROLLBACK TO s{to};");
                    rolled_back += open.drain(to..).map(|level| level.len()).sum::<usize>();
                    open.push(Vec::new());
                }
                5 if open.len() > 1 => {
                    let from = 1 + next(open.len() as u64 - 1) as usize;
                    sql += &format!("RELEASE s{from};");
                    let inner: Vec<String> = open.drain(from..).flatten().collect();
                    open.last_mut().expect("a level").extend(inner);
                }
                _ => {}
            }
        }
        if next(4) == 0 {
            sql += "ROLLBACK";
            rolled_back += open.iter().map(Vec::len).sum::<usize>();
        } else {
            sql += "COMMIT";
            sent.extend(open.into_iter().flatten());
        }
        run(&session, &sql).await;
    }
    let got = outside.all(&session).await;
    println!(
        "{TRANSACTIONS} transactions: {} messages committed and sent, {rolled_back} rolled back",
        sent.len()
    );
    assert_eq!(got.len(), sent.len());
    assert!(got.iter().eq(sent.iter()), "another order, or others");
}

#[tokio::test]
async fn prepared_transactions_are_refused() {
    let pg = Postgres::builder().conf("max_prepared_transactions", "2");
    let (_scene, session, mut outside) = on_commit_with(pg).await;
    let (report, _) = refused(&session, "BEGIN; SELECT tell('1'); PREPARE TRANSACTION 'p'").await;
    assert_eq!(report.code, "0A000");
    run(
        &session,
        "ROLLBACK; BEGIN; SAVEPOINT s; SELECT tell('1'); ROLLBACK TO s; PREPARE TRANSACTION 'p'",
    )
    .await;
    run(&session, "COMMIT PREPARED 'p'").await;
    assert_eq!(outside.all(&session).await, [""; 0]);
}

/// Memory is bounded: beyond the limit an error ends the transaction, and the session goes on.
#[tokio::test]
async fn too_much_for_one_transaction() {
    let pg = Postgres::builder().conf("litmus_pgnats.on_commit_size", "1MB");
    let (_scene, session, mut outside) = on_commit_with(pg).await;
    let (report, _) = refused(
        &session,
        "BEGIN; SELECT tell('first'); SELECT tell(repeat('x', 100000)) FROM generate_series(1, 11)",
    )
    .await;
    assert_eq!(report.code, "54000");
    assert!(
        report.hint.as_ref().is_some_and(|h| h.contains("on_commit_size")),
        "{report:?}"
    );
    run(&session, "ROLLBACK").await;
    // What was rolled back is not counted any more.
    run(
        &session,
        "DO $$ BEGIN FOR n IN 1..30 LOOP BEGIN PERFORM tell(repeat('x', 100000)); RAISE division_by_zero;
         EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$",
    )
    .await;
    assert_eq!(outside.all(&session).await, [""; 0]);
    run(&session, "SELECT tell(n::text) FROM generate_series(1, 5000) n").await;
    assert_eq!(outside.all(&session).await, numbers(1..=5000));
}

/// The runtime ends in the middle of the transaction: it is started again for the commit.
#[tokio::test]
async fn the_runtime_ends_in_the_middle() {
    let (scene, session, mut outside) = on_commit().await;
    run(&session, "BEGIN; SELECT tell('1')").await;
    let runtime = scene.runtime().await;
    scene
        .pg
        .sql(&format!("SELECT pg_terminate_backend({runtime})"))
        .await;
    scene.next_runtime(runtime).await;
    run(&session, "SELECT tell('2'); COMMIT").await;
    assert_eq!(outside.all(&session).await, ["1", "2"]);
}

/// NATS is away at the commit: the runtime buffers what may go, as it does other publishes.
#[tokio::test]
async fn nats_is_away_at_the_commit() {
    let nats = NatsServer::builder().jetstream().start().await;
    // A stream, because subscribers from outside would have to come back first.
    let kept = Kept::start(&nats).await;
    let mut scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(
        &session,
        "SET litmus_pgnats.publish = on_commit;
         BEGIN; SELECT nats_publish_text('kept.a', '1'), nats_publish_text('kept.a', '2')",
    )
    .await;
    let mark = scene.pg.log().len();
    scene.nats.kill9();
    let lost = "connection to the NATS server lost";
    scene.pg.wait_log_after(mark, lost, SOON).await;
    run(
        &session,
        "COMMIT; BEGIN; SELECT nats_publish_text('kept.a', 'never'); ROLLBACK;
         SELECT nats_publish_text('kept.a', '3')",
    )
    .await;
    scene.nats.restart().await;
    assert_eq!(kept.payloads(3).await, numbers(1..=3));
}

/// A callback's messages go with its own effects: those of a failed message are never sent.
#[tokio::test]
async fn of_callbacks() {
    let (scene, session, mut outside) = on_commit().await;
    run(
        &session,
        "CREATE FUNCTION forward(msg text) RETURNS void LANGUAGE sql SET litmus_pgnats.publish = on_commit AS
           $$ SELECT public.tell(msg); SELECT 1 / (CASE WHEN msg::int % 10 = 0 THEN 0 ELSE 1 END) $$",
    )
    .await;
    subscribe(&session, "in", "forward").await;
    let client = scene.nats.client().await;
    count_off(&client, "in", 1..=1000).await;
    eventually_eq(LONG, 1000, async || counts(&session, "in").await.messages).await;
    let expected: Vec<String> = numbers(1..=1000)
        .into_iter()
        .filter(|n| !n.ends_with('0'))
        .collect();
    assert_eq!(outside.all(&session).await, expected);
    assert_eq!(counts(&session, "in").await.errors, 100);
}

/// Sessions side by side, each message of a committed transaction once.
#[tokio::test]
async fn many_sessions() {
    let (scene, session, mut outside) = on_commit().await;
    let sessions = (0..8).map(async |who| {
        let session = scene.pg.connect().await;
        run(&session, "SET litmus_pgnats.publish = on_commit").await;
        for n in 1..=200 {
            let end = if n % 3 == 0 { "ROLLBACK" } else { "COMMIT" };
            let sql = format!("BEGIN; SELECT tell('{who} {n}'); SELECT tell('{who} {n} more'); {end}");
            run(&session, &sql).await;
        }
    });
    futures::future::join_all(sessions).await;
    // The last words of other sessions are on their way to NATS by the same connection.
    let got = outside.all(&session).await;
    for who in 0..8 {
        let own: Vec<&String> = got
            .iter()
            .filter(|text| text.starts_with(&format!("{who} ")))
            .collect();
        let expected: Vec<String> = (1..=200)
            .filter(|n| n % 3 != 0)
            .flat_map(|n| [format!("{who} {n}"), format!("{who} {n} more")])
            .collect();
        assert_eq!(own, expected.iter().collect::<Vec<_>>());
    }
}
