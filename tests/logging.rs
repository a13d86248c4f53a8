//! What the workers write to the server log: in one format, as much as the parameter says, and never a flood.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

const FAIL: &str =
    "CREATE FUNCTION fail(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is broken'; END $$;";

/// The lines of the extension's workers of these levels, without what stands before the level.
fn lines(log: &str, levels: &[&str]) -> Vec<String> {
    let of_workers = log.lines().filter(|line| line.contains("] litmus_pgnats "));
    of_workers
        .filter_map(|line| {
            levels
                .iter()
                .find_map(|level| line.split_once(&format!(" {level}:  ")))
        })
        .map(|(_, text)| text.to_owned())
        .collect()
}

/// Whoever looks for litmus_pgnats finds all that its workers say, whatever log_line_prefix is.
#[tokio::test]
async fn every_line_says_whose_it_is() {
    let pg = Postgres::builder().conf("litmus_pgnats.queue_messages", "1");
    let mut scene = Scene::with(pg, NatsServer::start().await, "").await;
    let session = scene.pg.connect().await;
    run(&session, FAIL).await;
    run(
        &session,
        "CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.3)'",
    )
    .await;
    subscribe(&session, "fail", "fail").await;
    subscribe(&session, "nap", "nap").await;
    let client = scene.nats.client().await;
    say(&client, "fail", "x").await;
    count_off(&client, "nap", 1..=50).await;
    until_errors(&session, "fail", 1).await;
    eventually(SOON, async || counts(&session, "nap").await.dropped > 0).await;
    run(&session, "DROP FUNCTION fail").await;
    scene.nats.kill9();
    scene.nats.restart().await;
    until_live(&session, "nap").await;
    let log = scene.pg.log();
    let lines = lines(&log, &["WARNING", "LOG"]);
    for words in [
        "callback public.fail failed",
        "were dropped: the queue is full",
        "connection to the NATS server lost",
        "connected to",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(words)),
            "{words}: {lines:#?}"
        );
    }
    for line in &lines {
        let is_ours = line.starts_with("litmus_pgnats: ") || line.starts_with("litmus_pgnats/");
        assert!(is_ours, "{line}");
    }
}

/// The parameter holds for executors too, and takes effect while they run.
#[tokio::test]
async fn the_level_is_for_all_workers() {
    let pg = Postgres::builder().conf("litmus_pgnats.log_level", "error");
    let scene = Scene::with(pg, NatsServer::start().await, "").await;
    let session = scene.pg.connect().await;
    run(&session, FAIL).await;
    subscribe(&session, "fail", "fail").await;
    let client = scene.nats.client().await;
    say(&client, "fail", "x").await;
    until_errors(&session, "fail", 1).await;
    assert_eq!(lines(&scene.pg.log(), &["WARNING"]), Vec::<String>::new());
    scene.pg.append_conf("litmus_pgnats.log_level", "warning");
    scene.pg.reload();
    eventually(SOON, async || {
        say(&client, "fail", "x").await;
        !lines(&scene.pg.log(), &["WARNING"]).is_empty()
    })
    .await;
}

/// What happens again and again does not fill the log: a reload that fails is in it twenty times, then counted.
#[tokio::test]
async fn a_flood_is_limited() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    run(&session, "ALTER SERVER nats OPTIONS (SET port '1')").await;
    for _ in 0..100 {
        refused(&session, "SELECT litmus_pgnats_reload_conf_force()").await;
    }
    let log = scene.pg.log();
    let times = log.matches("could not connect with the new options").count();
    println!("{times} lines of 100");
    assert!((1..=40).contains(&times), "{times} lines");
}
