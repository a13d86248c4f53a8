//! NATS goes away and comes back: what was published is kept as promised, and whoever waits is told.

mod scene;
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use scene::*;
use support::*;

const LOST: &str = "connection to the NATS server lost";
const CONNECTED: &str = "connected to NATS server";

async fn with_stream(options: &str) -> (Scene, Kept) {
    let nats = NatsServer::builder().jetstream().start().await;
    let kept = Kept::start(&nats).await;
    (Scene::with(Postgres::builder(), nats, options).await, kept)
}

/// Kills NATS; returns when the runtime worker has noticed.
async fn lose_nats(scene: &mut Scene) {
    let mark = scene.pg.log().len();
    scene.nats.kill9();
    scene.pg.wait_log_after(mark, LOST, SOON).await;
}

fn numbers(range: std::ops::RangeInclusive<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn publish(from: usize, to: usize) -> String {
    format!("SELECT nats_publish_text('kept.a', i::text) FROM generate_series({from}, {to}) i")
}

/// As many messages as `capacity` says are held; with one more the statement fails and says what became of it.
#[tokio::test]
async fn publishes_are_buffered_up_to_capacity_and_arrive_in_order() {
    let (mut scene, kept) = with_stream(", capacity '100'").await;
    let session = scene.pg.connect().await;
    run(&session, &publish(1, 10)).await;
    kept.payloads(10).await;
    lose_nats(&mut scene).await;
    for n in 11..=20 {
        run(&session, &publish(n, n)).await;
    }
    run(&session, &publish(21, 80)).await;
    // A session that comes later finds the same buffer.
    let other = scene.pg.connect().await;
    run(&other, "SET litmus_pgnats.connect_timeout = '700ms'").await;
    let (report, took) = refused(&other, &publish(81, 120)).await;
    println!("refused after {took:?}: {report:?}");
    assert_eq!(report.code, "53400");
    let detail = report.detail.expect("a detail");
    assert!(detail.starts_with("30 of 40 messages were buffered."), "{detail}");
    // The runtime lets messages wait for nine tenths of the time.
    let limit = Duration::from_millis(630);
    assert!((limit..limit + PROMPT).contains(&took), "took {took:?}");

    scene.nats.restart().await;
    assert_eq!(kept.payloads(110).await, numbers(1..=110));
    run(&session, &publish(111, 120)).await;
    assert_eq!(kept.payloads(120).await, numbers(1..=120));
}

/// Each statement that succeeded after the runtime worker noticed the outage keeps its word, and none that failed is
/// delivered half. Statements of one message, so the buffer takes it or does not.
#[tokio::test]
async fn a_success_after_the_loss_is_noticed_is_a_promise() {
    let (mut scene, kept) = with_stream(", capacity '20'").await;
    let session = scene.warm_session().await;
    run(&session, "SET litmus_pgnats.connect_timeout = '200ms'").await;
    lose_nats(&mut scene).await;
    let mut promised = Vec::new();
    let mut attempt = 0;
    let mut refusals = 0;
    while refusals < 3 && attempt < 100 {
        attempt += 1;
        match session.batch_execute(&publish(attempt, attempt)).await {
            Ok(()) => promised.push(attempt.to_string()),
            Err(error) => {
                assert_eq!(sqlstate(&error), "53400");
                refusals += 1;
            }
        }
    }
    assert_eq!(promised, numbers(1..=20));
    scene.nats.restart().await;
    eventually(SOON, async || session.batch_execute(&publish(1000, 1000)).await).await;
    promised.push("1000".into());
    assert_eq!(kept.payloads(promised.len()).await, promised);
}

/// An error that nobody was told, because the statement failed by itself, is not the next statement's.
#[tokio::test]
async fn a_failed_statement_leaves_no_error_behind() {
    let (mut scene, kept) = with_stream(", capacity '2'").await;
    let session = scene.warm_session().await;
    run(&session, "SET litmus_pgnats.connect_timeout = '200ms'").await;
    lose_nats(&mut scene).await;
    let fails = "SELECT nats_publish_text('kept.a', i::text), 1 / (5 - i) FROM generate_series(1, 5) i";
    let (report, _) = refused(&session, fails).await;
    assert_eq!(report.code, "22012");
    run(&session, "SELECT 1").await;
    let (report, _) = refused(&session, &publish(6, 6)).await;
    let detail = report.detail.expect("a detail");
    assert!(detail.starts_with("0 of 1 messages"), "its own error: {detail}");
    scene.nats.restart().await;
    run(&session, "SELECT nats_get_server_info()").await;
    assert_eq!(kept.payloads(2).await, numbers(1..=2));
    lose_nats(&mut scene).await;
    run(&session, &publish(7, 8)).await;
    scene.nats.restart().await;
    assert_eq!(kept.payloads(4).await, ["1", "2", "7", "8"]);
}

/// NATS comes back: a call that waits goes on at once, and without any call it takes about a second.
#[tokio::test]
async fn recovery_is_quick() {
    let mut scene = Scene::start().await;
    let session = scene.warm_session().await;
    lose_nats(&mut scene).await;
    // The waits between the attempts have grown to their longest by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mark = scene.pg.log().len();
    scene.nats.restart().await;
    let began = Instant::now();
    scene.pg.wait_log_after(mark, CONNECTED, SOON).await;
    println!("by itself: back after {:?}", began.elapsed());
    assert!(began.elapsed() < 2 * PROMPT, "{:?}", began.elapsed());

    // At first a call waits for NATS to be back.
    lose_nats(&mut scene).await;
    let waiting = async {
        run(&session, "SELECT nats_get_server_info()").await;
        Instant::now()
    };
    let (back, began) = tokio::join!(waiting, async {
        scene.until_waiting(session.pid()).await;
        scene.nats.restart().await;
        Instant::now()
    });
    println!(
        "a call that waited: back after {:?}",
        back.saturating_duration_since(began)
    );
    assert!(back.saturating_duration_since(began) < 2 * PROMPT);
}

/// A request whose answer can no longer come fails at once, not when its own time is over.
#[tokio::test]
async fn requests_in_flight_fail_when_nats_dies() {
    let mut scene = Scene::start().await;
    let mut slow = scene.silent_responder("slow").await;
    let sessions = [scene.warm_session().await, scene.warm_session().await];
    let asking = sessions.each_ref().map(async |session| {
        let (report, _) = refused(session, "SELECT nats_request_text('slow', 'x', 60000)").await;
        (report, Instant::now())
    });
    let asking = futures::future::join_all(asking);
    let (answers, killed) = tokio::join!(asking, async {
        for _ in 0..2 {
            slow.next().await.expect("a request");
        }
        scene.nats.kill9();
        Instant::now()
    });
    for (report, ended) in answers {
        println!(
            "failed {:?} after the kill",
            ended.saturating_duration_since(killed)
        );
        assert_eq!(report.code, "08006", "{report:?}");
        assert!(ended.saturating_duration_since(killed) < PROMPT);
    }
    scene.nats.restart().await;
    scene.echo().await;
    works(&sessions[0], "after").await;
}

/// A request made during the outage waits for NATS within its own time and the connect timeout.
#[tokio::test]
async fn requests_wait_for_nats_to_return() {
    let mut scene = Scene::start().await;
    let session = scene.warm_session().await;
    lose_nats(&mut scene).await;
    let ask = "SELECT nats_request_text('echo', 'x', 300)";
    let (report, took) = refused(&session, ask).await;
    assert_eq!(report.code, "08001", "{report:?}");
    assert!(took < PROMPT, "{took:?}");
    run(&session, "SET litmus_pgnats.connect_timeout = '300ms'").await;
    let (report, took) = refused(&session, "SELECT nats_request_text('echo', 'x', 60000)").await;
    assert_eq!(report.code, "08001", "{report:?}");
    assert!(took < PROMPT, "{took:?}");
    scene.nats.restart().await;
    scene.echo().await;
    works(&session, "after").await;
}

/// A stopped server answers nothing, yet its connections stand: messages wait in them and arrive when it goes on.
#[tokio::test]
async fn a_pause_of_nats_loses_nothing() {
    let (scene, kept) = with_stream("").await;
    scene.echo().await;
    let session = scene.warm_session().await;
    scene.nats.pause().await;
    run(&session, &publish(1, 1000)).await;
    let (report, took) = refused(&session, "SELECT nats_request_text('echo', 'x', 300)").await;
    assert_eq!(
        report.hint.as_deref(),
        Some("Give a larger timeout_ms if the responder is slow.")
    );
    assert!(took < PROMPT, "{took:?}");
    scene.nats.resume();
    assert_eq!(kept.payloads(1000).await, numbers(1..=1000));
    works(&session, "after").await;
}

/// A statement that publishes much while NATS dies comes to an end: an error, or a success.
#[tokio::test]
async fn a_bulk_statement_ends_when_nats_dies() {
    let mut scene = Scene::start().await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(scene.warm_session().await);
    }
    let mut inbox = scene.silent_responder("bulk").await;
    let bulk = "SELECT count(nats_publish_text('bulk', repeat('x', 100))) FROM generate_series(1, 1000000)";
    let all = futures::future::join_all(sessions.iter().map(|session| session.batch_execute(bulk)));
    let killing = async {
        inbox.next().await.expect("a message");
        scene.nats.kill9();
        Instant::now()
    };
    let (outcomes, killed) = tokio::join!(tokio::time::timeout(2 * SOON, all), killing);
    println!("ended {:?} after the kill", killed.elapsed());
    for outcome in outcomes.expect("no statement hangs") {
        let report = outcome.err().map(|error| db_error(&error));
        println!("bulk: {report:?}");
        let code = report.map(|report| report.code);
        assert!(
            matches!(code.as_deref(), None | Some("53400" | "57P03")),
            "{code:?}"
        );
    }
    scene.nats.restart().await;
    scene.echo().await;
    for session in &sessions {
        works(session, "after").await;
    }
}
