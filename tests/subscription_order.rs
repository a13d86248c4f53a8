//! Messages of a subscription run in the order of their arrival and none is lost; what is slow holds up nobody else.

mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use handlers::*;
use scene::*;
use support::*;

/// Where the order of arrival is not that of the rows.
const DISORDER: &str =
    "SELECT count(*) FROM (SELECT payload::int - lag(payload::int, 1, 0) OVER (ORDER BY id) AS step
                                              FROM got) s WHERE step <> 1";

/// 200,000 messages, while the subscription keeps up: all are there, in order.
#[tokio::test]
async fn two_hundred_thousand_messages() {
    const COUNT: usize = 200_000;
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "many", "keep").await;
    let client = scene.nats.client().await;
    let began = Instant::now();
    count_off(&client, "many", 1..=COUNT).await;
    round_trip(&client).await;
    let sent = began.elapsed();
    let all = i64::try_from(COUNT).expect("a small number");
    // None is left, none is dropped, and none has got lost on the way.
    eventually(LONG, async || {
        let counts = counts(&session, "many").await;
        if counts.messages == all {
            Ok(())
        } else {
            Err(counts)
        }
    })
    .await;
    let took = began.elapsed();
    assert_eq!(number(&session, "SELECT count(*) FROM got").await, all);
    println!("{COUNT} messages: sent in {sent:?}, all committed after {took:?}");
    assert_eq!(number(&session, DISORDER).await, 0, "out of order");
    let counts = counts(&session, "many").await;
    assert_eq!(
        (counts.messages, counts.errors, counts.dropped),
        (all, 0, 0),
        "{counts:?}"
    );
    eventually_eq(SOON, 0, async || all_queued(&session).await).await;
}

/// What waits for any handler, in messages and bytes.
async fn all_queued(session: &Session) -> i64 {
    number(
        session,
        "SELECT sum(queued + queued_bytes)::bigint FROM litmus_pgnats.subscriptions",
    )
    .await
}

/// With free executors, still one message after another: the slow one before the quick one.
#[tokio::test]
async fn a_subscription_is_not_parallel_with_itself() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE TABLE running (n int PRIMARY KEY);
         CREATE FUNCTION uneven(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           IF NOT pg_try_advisory_xact_lock(1) THEN
             RAISE EXCEPTION 'another message of this subscription is running';
           END IF;
           PERFORM pg_sleep(0.05 * (1 - msg::int % 2));
           INSERT INTO got (payload) VALUES (msg);
         END $$",
    )
    .await;
    subscribe(&session, "uneven", "uneven").await;
    let client = scene.nats.client().await;
    for n in 1..=40 {
        say(&client, "uneven", n.to_string()).await;
    }
    eventually_eq(LONG, numbers(1..=40), async || got(&session).await).await;
    assert_eq!(counts(&session, "uneven").await.errors, 0);
}

/// Three subscriptions on one subject and one on several: each in order.
#[tokio::test]
async fn every_subscription_has_its_own_order() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE TABLE ranks (id bigint GENERATED ALWAYS AS IDENTITY, who text, n int)",
    )
    .await;
    for who in ["a", "b", "c"] {
        let sql = format!(
            "CREATE FUNCTION rank_{who}(msg text) RETURNS void LANGUAGE sql AS
               $$ INSERT INTO ranks (who, n) VALUES ('{who}', msg::int) $$"
        );
        run(&session, &sql).await;
        subscribe(&session, "ranks.*", &format!("rank_{who}")).await;
    }
    let client = scene.nats.client().await;
    for n in 1..=3000 {
        publish(&client, &format!("ranks.{}", n % 7), n.to_string().into()).await;
    }
    round_trip(&client).await;
    until_number(&session, 9000, "SELECT count(*) FROM ranks").await;
    let disorder = "SELECT count(*) FROM (SELECT n - lag(n, 1, 0) OVER (PARTITION BY who ORDER BY id) AS step
                                          FROM ranks) s WHERE step <> 1";
    assert_eq!(number(&session, disorder).await, 0);
}

/// Functions that never end hold up nobody while an executor is left, and then nobody for ever.
#[tokio::test]
async fn a_stuck_function_holds_up_nobody() {
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "3");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION stuck(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)';
         CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    subscribe(&session, "stuck.1", "stuck").await;
    subscribe(&session, "stuck.2", "stuck").await;
    subscribe(&session, "free", "keep").await;
    respond(&session, "rpc", "answer").await;
    let client = scene.nats.client().await;
    for subject in ["stuck.1", "stuck.2"] {
        count_off(&client, subject, 1..=10).await;
    }
    eventually_eq(SOON, 2, async || scene.sleeping().await.len()).await;
    for n in 1..=50_usize {
        say(&client, "free", n.to_string()).await;
        let began = Instant::now();
        assert_eq!(reply_text(&ask(&client, "rpc", "hello").await), "hello");
        assert!(began.elapsed() < 5 * PROMPT, "{:?}", began.elapsed());
        eventually_eq(SOON, n, async || got(&session).await.len()).await;
    }
    assert_eq!(got(&session).await, numbers(1..=50));
    assert_eq!(scene.sleeping().await.len(), 2);
}

/// With one executor for all, a flood on one subject does not keep another one waiting till it is over.
#[tokio::test]
async fn a_flood_leaves_room_for_others() {
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "1");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE TABLE flood (msg text);
         CREATE FUNCTION take(msg text) RETURNS void LANGUAGE sql AS 'INSERT INTO public.flood VALUES (msg)'",
    )
    .await;
    subscribe(&session, "flood", "take").await;
    subscribe(&session, "other", "keep").await;
    let client = scene.nats.client().await;
    count_off(&client, "flood", 1..=100_000).await;
    round_trip(&client).await;
    let began = Instant::now();
    say(&client, "other", "1").await;
    until_got(&session, &["1"]).await;
    let (took, waiting) = (began.elapsed(), counts(&session, "flood").await.queued);
    println!("the other one after {took:?}, while {waiting} messages of the flood waited");
    assert!(waiting > 0, "no flood any more");
    assert!(took < 5 * PROMPT, "{took:?}");
}

/// The pool grows to its limit and no further, and shrinks to one when it has nothing to do.
#[tokio::test]
async fn the_pool_grows_and_shrinks() {
    let pg = Postgres::builder()
        .conf("litmus_pgnats.max_executors", "3")
        .conf("litmus_pgnats.executor_idle_timeout", "700ms");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION stuck(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    )
    .await;
    for n in 1..=5 {
        subscribe(&session, &format!("stuck.{n}"), "stuck").await;
    }
    assert!(
        scene.executors().await.len() <= 1,
        "before there is anything to do"
    );
    let client = scene.nats.client().await;
    for n in 1..=5 {
        say(&client, &format!("stuck.{n}"), "x").await;
        let expected = n.min(3);
        eventually_eq(SOON, expected, async || scene.sleeping().await.len()).await;
        assert_eq!(scene.executors().await.len(), expected);
    }
    // Each that ends makes room for one that waits.
    let failed = "SELECT sum(errors)::bigint FROM litmus_pgnats.subscriptions";
    for ended in 1..=5_usize {
        let executor = scene.sleeping().await[0];
        run(&session, &format!("SELECT pg_cancel_backend({executor})")).await;
        until_number(&session, i64::try_from(ended).expect("a small number"), failed).await;
        eventually_eq(SOON, (5 - ended).min(3), async || scene.sleeping().await.len()).await;
    }
    eventually_eq(SOON, 1, async || scene.executors().await.len()).await;
    // The last one stays.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.executors().await.len(), 1);
    subscribe(&session, "free", "keep").await;
    say(&client, "free", "1").await;
    until_got(&session, &["1"]).await;
}

/// Messages that have come so far apart share no transaction.
const APART: Duration = Duration::from_millis(30);

/// now() differs between messages that came apart from each other, and never goes back.
#[tokio::test]
async fn now_is_the_time_of_the_message() {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "now", "keep").await;
    let client = scene.nats.client().await;
    // Apart from each other where it counts: in the runtime worker, however late that gets its turn.
    for n in 1..=10_usize {
        say(&client, "now", n.to_string()).await;
        eventually_eq(SOON, n, async || got(&session).await.len()).await;
        tokio::time::sleep(APART).await;
    }
    assert_eq!(number(&session, "SELECT count(DISTINCT at) FROM got").await, 10);
    // And so it is when they had to wait: behind a slow message, for one.
    run(
        &session,
        "TRUNCATE got;
         CREATE FUNCTION slow_first(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           IF msg = '1' THEN PERFORM pg_sleep(2); END IF;
           INSERT INTO got (payload) VALUES (msg);
         END $$",
    )
    .await;
    subscribe(&session, "slow", "slow_first").await;
    for n in 1..=10 {
        say(&client, "slow", n.to_string()).await;
        let waiting = "SELECT queued FROM litmus_pgnats.subscriptions WHERE subject = 'slow'";
        until_number(&session, n - 1, waiting).await;
        tokio::time::sleep(APART).await;
    }
    eventually_eq(SOON, numbers(1..=10), async || got(&session).await).await;
    assert_eq!(number(&session, "SELECT count(DISTINCT at) FROM got").await, 10);
    let back = "SELECT count(*) FROM (SELECT at < lag(at) OVER (ORDER BY id) AS back FROM got) s WHERE back";
    assert_eq!(number(&session, back).await, 0);
}
