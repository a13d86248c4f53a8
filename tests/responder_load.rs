//! Many requesters at once: each gets its own answer, and what cannot be answered in time is told so at once.

mod handlers;
mod scene;
mod support;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use handlers::*;
use scene::*;
use support::*;

/// Eight responders under 64 requesters: every answer is the right one.
#[tokio::test]
async fn eight_responders_under_sixty_four_requesters() {
    const REQUESTERS: usize = 64;
    const EACH: usize = 50;
    let (scene, session) = Scene::keeping().await;
    for n in 0..8 {
        let sql = format!(
            "CREATE FUNCTION answer_{n}(q text) RETURNS text LANGUAGE sql AS $$ SELECT '{n}: ' || q $$"
        );
        run(&session, &sql).await;
        respond(&session, &format!("rpc.{n}"), &format!("answer_{n}")).await;
    }
    let began = Instant::now();
    let requesting = (0..REQUESTERS).map(|requester| {
        let nats = &scene.nats;
        async move {
            let client = nats.client().await;
            let mut slowest = Duration::ZERO;
            for request in 0..EACH {
                let (n, word) = ((requester + request) % 8, format!("{requester}/{request}"));
                let began = Instant::now();
                let reply = ask(&client, &format!("rpc.{n}"), &*word).await;
                assert_eq!(reply_text(&reply), format!("{n}: {word}"));
                slowest = slowest.max(began.elapsed());
            }
            slowest
        }
    });
    let slowest = join_all(requesting).await.into_iter().max();
    println!(
        "{} requests took {:?}, the slowest {slowest:?}",
        REQUESTERS * EACH,
        began.elapsed()
    );
    let sum = "SELECT sum(messages)::bigint FROM litmus_pgnats.responders";
    until_number(
        &session,
        i64::try_from(REQUESTERS * EACH).expect("a small number"),
        sum,
    )
    .await;
    // The same from sessions of PostgreSQL, which share their server's one connection.
    let mut sessions = Vec::new();
    for _ in 0..16 {
        sessions.push(scene.pg.connect().await);
    }
    join_all(sessions.iter().enumerate().map(async |(n, session)| {
        let sql = format!(
            "SELECT count(*) FROM generate_series(1, 20) i
             WHERE nats_request_text('rpc.' || i % 8, i::text) = i % 8 || ': ' || i || left('{n}', 0)"
        );
        assert_eq!(number(session, &sql).await, 20);
    }))
    .await;
}

/// How requests ended: the count for each code, `ok` among them, and how long the last took.
async fn ends(
    scene: &Scene,
    subject: &str,
    count: usize,
    payload: &str,
) -> (HashMap<String, usize>, Duration) {
    let client = scene.nats.client().await;
    let began = Instant::now();
    let replies = join_all((0..count).map(|_| ask(&client, subject, payload))).await;
    let mut ends = HashMap::new();
    for reply in replies {
        let code = service_error(&reply).map_or_else(|| "ok".to_owned(), |(code, _)| code);
        *ends.entry(code).or_default() += 1;
    }
    println!("{count} requests: {ends:?} in {:?}", began.elapsed());
    (ends, began.elapsed())
}

const NAP: &str = "CREATE FUNCTION nap(q text) RETURNS text LANGUAGE plpgsql AS
     $$ BEGIN PERFORM pg_sleep(q::float); RETURN 'slept'; END $$";

/// A queue that is full answers busy at once.
#[tokio::test]
async fn a_full_queue_answers_busy() {
    let pg = Postgres::builder()
        .conf("litmus_pgnats.queue_messages", "3")
        .conf("litmus_pgnats.max_executors", "1");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(&session, NAP).await;
    respond(&session, "nap", "nap").await;
    let client = scene.nats.client().await;
    let sleeping = ask(&client, "nap", "1.5");
    let asking = async {
        scene.until_sleeping().await;
        let mut codes = Vec::new();
        let others: Vec<_> = (0..20).map(|_| ask(&client, "nap", "0")).collect();
        let began = Instant::now();
        for reply in join_all(others).await {
            codes.push(service_error(&reply));
        }
        let busy = codes.iter().flatten().filter(|(code, _)| code == "53300").count();
        println!(
            "{busy} of 20 were told that it is busy, all had an answer after {:?}",
            began.elapsed()
        );
        assert!(busy >= 14, "{codes:?}");
        assert!(
            codes
                .iter()
                .flatten()
                .all(|(code, message)| code == "53300" && !message.is_empty())
        );
        assert_eq!(codes.len(), 20);
    };
    let (slept, ()) = tokio::join!(sleeping, asking);
    assert_eq!(reply_text(&slept), "slept");
    // An SQL error for a session that asks, at once and not when its own time is over.
    let sleeping = ask(&client, "nap", "2");
    let asking = async {
        scene.until_sleeping().await;
        let waiting: Vec<_> = (0..3).map(|_| client.publish("nap", "0".into())).collect();
        join_all(waiting).await;
        round_trip(&client).await;
        eventually_eq(SOON, 3, async || counts(&session, "nap").await.queued).await;
        let (report, took) = refused(&session, "SELECT nats_request_text('nap', '0', 60000)").await;
        assert_eq!(report.code, "38000", "{report:?}");
        assert!(format!("{report:?}").contains("53300"), "{report:?}");
        println!("a session was told after {took:?}");
    };
    let (slept, ()) = tokio::join!(sleeping, asking);
    assert_eq!(reply_text(&slept), "slept");
}

/// Requests that have waited longer than a request may take are told that it is busy; nobody is left without an answer.
#[tokio::test]
async fn what_waited_too_long_is_not_run() {
    let nats = NatsServer::start().await;
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "1");
    let scene = Scene::with(pg, nats, ", responder_timeout_ms '1000'").await;
    let session = scene.pg.connect().await;
    run(&session, NAP).await;
    respond(&session, "nap", "nap").await;
    let (ends, took) = ends(&scene, "nap", 30, "0.3").await;
    let of = |code: &str| ends.get(code).copied().unwrap_or_default();
    assert_eq!(of("ok") + of("53300"), 30, "{ends:?}");
    assert!(of("ok") >= 1 && of("53300") >= 10, "{ends:?}");
    assert!(took < Duration::from_secs(8), "{took:?}: piled up");
    // And then it is as quick as ever.
    let (ends, _) = self::ends(&scene, "nap", 3, "0").await;
    assert_eq!(ends.get("ok"), Some(&3), "{ends:?}");
}

/// Two databases in a queue group answer for one another; each request has one answer.
#[tokio::test]
async fn a_queue_group_shares_the_requests() {
    let (scene, first) = Scene::keeping().await;
    let second = scene.database("second").await;
    for session in [&first, &second] {
        run(
            session,
            "CREATE FUNCTION place(q text) RETURNS text LANGUAGE sql AS 'SELECT current_database()::text';
             SELECT litmus_pgnats_register_responder('where', 'place', 'places')",
        )
        .await;
        until_live(session, "where").await;
    }
    let client = scene.nats.client().await;
    let mut places = HashMap::<String, usize>::new();
    for _ in 0..200 {
        let reply = reply_text(&ask(&client, "where", "").await);
        *places.entry(reply).or_default() += 1;
    }
    println!("answered by {places:?}");
    assert_eq!(places.len(), 2, "{places:?}");
    assert_eq!(
        counts(&first, "where").await.messages + counts(&second, "where").await.messages,
        200
    );
}
