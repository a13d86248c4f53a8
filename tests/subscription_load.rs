//! More messages than SQL takes: memory stays bounded, what is dropped is counted and logged, others notice nothing.

mod handlers;
mod scene;
mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use handlers::*;
use scene::*;
use support::proc;
use support::*;

/// Takes its time with each message.
const SLOW: &str = "CREATE FUNCTION slow(msg bytea) RETURNS void LANGUAGE sql AS
     $$ INSERT INTO public.got (payload) SELECT length(msg) FROM pg_sleep(0.02) $$";

/// 500,000 x 1 KiB behind a slow callback.
#[tokio::test]
async fn half_a_million_messages_behind_a_slow_callback() {
    const COUNT: i64 = 500_000;
    const QUEUE: u64 = 64 << 20;
    const BOUND: u64 = QUEUE + (60 << 20);
    let (scene, session) = Scene::keeping().await;
    scene.echo().await;
    run(&session, SLOW).await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    subscribe(&session, "slow", "slow").await;
    respond(&session, "rpc", "answer").await;
    let (runtime, other) = (scene.runtime().await, scene.warm_session().await);
    works(&other, "before").await;
    let (before, mark) = (proc::rss(runtime), scene.pg.log().len());
    let ended = AtomicBool::new(false);
    let publishing = async {
        let client = scene.nats.client().await;
        for n in 0..COUNT {
            publish(&client, "slow", vec![b'x'; 1024]).await;
            if n % 1000 == 0 {
                client.flush().await.expect("flush");
            }
        }
        round_trip(&client).await;
        // All of them are in the queue, done or dropped.
        eventually(LONG, async || {
            let counts = counts(&session, "slow").await;
            let all = counts.messages + counts.dropped + counts.queued;
            if all >= COUNT - 1 { Ok(()) } else { Err(counts) }
        })
        .await;
        ended.store(true, Ordering::SeqCst);
    };
    // What only goes out, and what has to come back, past the flood on the same connection.
    let [quiet, asking] = [scene.warm_session().await, scene.warm_session().await];
    let calls = async |session: &Session, sql: &str| {
        let (mut slowest, mut calls) = (Duration::ZERO, 0);
        while !ended.load(Ordering::SeqCst) {
            let began = Instant::now();
            run(session, sql).await;
            slowest = slowest.max(began.elapsed());
            calls += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (slowest, calls)
    };
    let watching = async {
        let mut largest = 0;
        while !ended.load(Ordering::SeqCst) {
            largest = largest.max(proc::rss(runtime));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        largest
    };
    let ((), largest, published, asked, answered) = tokio::join!(
        publishing,
        watching,
        calls(&quiet, "SELECT nats_publish_text('quiet', 'x')"),
        calls(&asking, "SELECT nats_request_text('echo', 'x', 60000)"),
        calls(&other, "SELECT nats_request_text('rpc', 'x', 60000)"),
    );
    let counts = counts(&session, "slow").await;
    println!(
        "{counts:?}; runtime {} MB before, {} MB at most; meanwhile publishes {published:?}, \
         requests outside {asked:?}, to a responder of its own {answered:?}",
        before >> 20,
        largest >> 20
    );
    assert!(largest < BOUND, "{} MB", largest >> 20);
    assert!(published.0 < 2 * PROMPT && published.1 > 10, "{published:?}");
    assert!(
        asked.0 < 10 * PROMPT && answered.0 < 10 * PROMPT,
        "{asked:?} {answered:?}"
    );
    assert!(counts.dropped > COUNT / 2, "{counts:?}");
    let queued = u64::try_from(counts.queued_bytes).expect("a size");
    assert!((QUEUE / 4..=QUEUE).contains(&queued), "{counts:?}");
    let log = scene.pg.log();
    let about = |line: &&str| line.contains("drop") && line.contains("slow");
    let lines = log[mark..].lines().filter(about).count();
    assert!((1..=60).contains(&lines), "{lines} lines about dropped messages");
    // What waits goes with its handler, and the memory with it.
    run(&session, "SELECT nats_unsubscribe('slow', 'slow')").await;
    works(&other, "after").await;
    eventually(SOON, async || scene.sleeping().await.is_empty()).await;
    subscribe(&session, "next", "keep").await;
    run(&session, "TRUNCATE got").await;
    say(&scene.nats.client().await, "next", "1").await;
    until_got(&session, &["1"]).await;
    let at_once = proc::rss(runtime);
    let grown = |bytes: u64| bytes.saturating_sub(before) >> 20;
    eventually(LONG, async || match grown(proc::rss(runtime)) {
        ..10 => Ok(()),
        grown => Err(grown),
    })
    .await;
    println!("afterwards {} MB at once", at_once >> 20);
}

/// A queue holds as many messages as it is told, whatever their size.
#[tokio::test]
async fn the_queue_is_bounded_by_messages() {
    let pg = Postgres::builder().conf("litmus_pgnats.queue_messages", "50");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION stuck(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    )
    .await;
    subscribe(&session, "stuck", "stuck").await;
    let client = scene.nats.client().await;
    say(&client, "stuck", "0").await;
    scene.until_sleeping().await;
    count_off(&client, "stuck", 1..=1000).await;
    let counts = eventually(SOON, async || {
        let counts = counts(&session, "stuck").await;
        let all = counts.queued + counts.dropped;
        if all >= 999 { Ok(counts) } else { Err(counts) }
    })
    .await;
    assert!((40..=51).contains(&counts.queued), "{counts:?}");
    assert!((949..=960).contains(&counts.dropped), "{counts:?}");
    // Another limit counts from the reload on, without a restart.
    scene.pg.append_conf("litmus_pgnats.queue_messages", "200");
    scene.pg.reload();
    eventually(SOON, async || {
        say(&client, "stuck", "x").await;
        self::counts(&session, "stuck").await.queued > 100
    })
    .await;
}

/// And as many bytes, however few messages.
#[tokio::test]
async fn the_queue_is_bounded_by_bytes() {
    let pg = Postgres::builder().conf("litmus_pgnats.queue_size", "1MB");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION stuck(msg bytea) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)'",
    )
    .await;
    subscribe(&session, "stuck", "stuck").await;
    let client = scene.nats.client().await;
    say(&client, "stuck", "0").await;
    scene.until_sleeping().await;
    for _ in 0..100 {
        publish(&client, "stuck", vec![0; 100_000]).await;
    }
    round_trip(&client).await;
    let counts = eventually(SOON, async || {
        let counts = counts(&session, "stuck").await;
        let all = counts.queued + counts.dropped;
        if all >= 99 { Ok(counts) } else { Err(counts) }
    })
    .await;
    assert!((5..=11).contains(&counts.queued), "{counts:?}");
    assert!(counts.queued_bytes <= 1_200_000, "{counts:?}");
    // One handler's full queue is not another's.
    subscribe(&session, "free", "keep").await;
    count_off(&client, "free", 1..=1000).await;
    eventually_eq(SOON, numbers(1..=1000), async || got(&session).await).await;
    assert_eq!(self::counts(&session, "free").await.dropped, 0);
}
