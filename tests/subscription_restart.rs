//! What is registered comes back by itself: after restarts of PostgreSQL, of the runtime worker and of NATS, and it
//! follows the options of the foreign server.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::proc;
use support::*;

/// A scene with a subscription and a responder.
async fn registered(pg: PostgresBuilder) -> (Scene, Session) {
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS $$ SELECT 'to ' || q $$",
    )
    .await;
    subscribe(&session, "news", "keep").await;
    respond(&session, "rpc", "answer").await;
    (scene, session)
}

/// Both handlers are live and work, each once.
async fn all_work(scene: &Scene, session: &Session, word: &str) {
    until_live(session, "news").await;
    until_live(session, "rpc").await;
    run(session, "TRUNCATE got").await;
    let client = scene.nats.client().await;
    say(&client, "news", word).await;
    assert_eq!(reply_text(&ask(&client, "rpc", word).await), format!("to {word}"));
    until_got(session, &[word]).await;
    eventually_eq(SOON, vec!["news".to_owned(), "rpc".into()], async || {
        scene.subjects().await
    })
    .await;
}

/// A restart of PostgreSQL, orderly or not: nobody has to call anything.
#[tokio::test]
async fn a_restart_of_postgresql() {
    let (mut scene, session) = registered(Postgres::builder()).await;
    all_work(&scene, &session, "before").await;
    for mode in [Stop::Fast, Stop::Immediate] {
        scene.pg.restart(mode).await;
        eventually_eq(SOON, 2, async || scene.subjects().await.len()).await;
        all_work(&scene, &scene.pg.connect().await, &format!("{mode:?}")).await;
    }
    scene.pg.kill9();
    scene.pg.start_again().await;
    eventually_eq(SOON, 2, async || scene.subjects().await.len()).await;
    all_work(&scene, &scene.pg.connect().await, "killed").await;
}

/// Without preloading it is the first call of a session that brings them back, whichever call it is.
#[tokio::test]
async fn a_restart_without_preloading() {
    let (mut scene, session) = registered(Postgres::builder().preload(false)).await;
    all_work(&scene, &session, "before").await;
    for call in [
        "SELECT nats_publish_text('a', 'x')",
        "SELECT nats_subscribe('news', 'keep')",
        "SELECT nats_get_server_info()",
    ] {
        scene.pg.restart(Stop::Fast).await;
        let session = scene.pg.connect().await;
        run(&session, call).await;
        all_work(&scene, &session, "after").await;
    }
}

/// The end of the runtime worker.
#[tokio::test]
async fn a_restart_of_the_runtime() {
    let (scene, session) = registered(Postgres::builder()).await;
    let mut runtime = scene.runtime().await;
    for n in 1..=3 {
        proc::signal(runtime, libc::SIGTERM);
        runtime = scene.next_runtime(runtime).await;
        all_work(&scene, &session, &n.to_string()).await;
    }
}

/// NATS goes away and comes back: the view says so meanwhile.
#[tokio::test]
async fn a_restart_of_nats() {
    let (mut scene, session) = registered(Postgres::builder()).await;
    scene.nats.restart().await;
    all_work(&scene, &session, "orderly").await;
    scene.nats.kill9();
    for (subject, view) in [("news", "subscriptions"), ("rpc", "responders")] {
        until_state(&session, subject, "waiting").await;
        let problem = format!("SELECT coalesce(problem, '') FROM litmus_pgnats.{view}");
        let problems = texts(&session, &problem).await;
        assert!(problems.iter().all(|problem| !problem.is_empty()), "{problems:?}");
    }
    scene.nats.restart().await;
    all_work(&scene, &session, "killed").await;
}

/// PostgreSQL starts while NATS is away.
#[tokio::test]
async fn a_start_without_nats() {
    let (mut scene, _) = registered(Postgres::builder()).await;
    scene.nats.kill9();
    scene.pg.restart(Stop::Fast).await;
    let session = scene.pg.connect().await;
    until_state(&session, "news", "waiting").await;
    scene.nats.restart().await;
    all_work(&scene, &session, "back").await;
}

/// Registering while NATS is away succeeds, and takes effect when it is back.
#[tokio::test]
async fn registering_without_nats() {
    let (mut scene, session) = registered(Postgres::builder()).await;
    scene.nats.kill9();
    until_state(&session, "news", "waiting").await;
    run(&session, "SELECT nats_subscribe('later', 'keep')").await;
    run(&session, "SELECT nats_unsubscribe('news', 'keep')").await;
    until_state(&session, "later", "waiting").await;
    scene.nats.restart().await;
    until_live(&session, "later").await;
    eventually_eq(SOON, vec!["later".to_owned(), "rpc".into()], async || {
        scene.subjects().await
    })
    .await;
    say(&scene.nats.client().await, "later", "1").await;
    until_got(&session, &["1"]).await;
}

/// Another address, by ALTER SERVER and a reload: the handlers move there.
#[tokio::test]
async fn options_are_followed() {
    let (mut scene, session) = registered(Postgres::builder()).await;
    let other = NatsServer::start().await;
    let move_there = format!("ALTER SERVER nats OPTIONS (SET port '{}')", other.port());
    run(&session, &move_there).await;
    run(&session, "SELECT litmus_pgnats_reload_conf()").await;
    let old = std::mem::replace(&mut scene.nats, other);
    all_work(&scene, &session, "moved").await;
    let connz = async || {
        old.monitor("/connz?subs=1")
            .await
            .to_string()
            .contains("\"news\"")
    };
    eventually_eq(SOON, false, connz).await;
    run(&session, "SELECT litmus_pgnats_reload_conf_force()").await;
    all_work(&scene, &session, "forced").await;
}

/// Reloads, forced or not, while messages come: none twice, none before another that came earlier; without a change of
/// the options none is lost either.
#[tokio::test]
async fn reloads_under_load() {
    let (scene, session) = registered(Postgres::builder()).await;
    let client = scene.nats.client().await;
    for (call, may_lose) in [
        ("SELECT litmus_pgnats_reload_conf()", false),
        ("SELECT litmus_pgnats_reload_conf_force()", true),
    ] {
        run(&session, "TRUNCATE got").await;
        let publishing = async {
            for n in 0..100 {
                count_off(&client, "news", n * 100 + 1..=n * 100 + 100).await;
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            round_trip(&client).await;
        };
        let reloading = async {
            let other = scene.pg.connect().await;
            for _ in 0..5 {
                run(&other, call).await;
                tokio::time::sleep(std::time::Duration::from_millis(150)).await;
            }
        };
        tokio::join!(publishing, reloading);
        until_live(&session, "news").await;
        eventually(SOON, async || {
            run(&session, "SELECT nats_publish_text('news', '10001')").await;
            got(&session).await.contains(&"10001".to_owned())
        })
        .await;
        let disorder =
            "SELECT count(*) FROM (SELECT payload::int <= lag(payload::int) OVER (ORDER BY id) AS bad
                                              FROM got WHERE payload <> '10001') s WHERE bad";
        assert_eq!(
            number(&session, disorder).await,
            0,
            "{call}: twice, or out of order"
        );
        let kept = number(&session, "SELECT count(*) FROM got WHERE payload <> '10001'").await;
        println!(
            "{call} five times: {} of 10,000 messages were lost",
            10_000 - kept
        );
        assert!(may_lose || kept == 10_000, "{call}: {kept} of 10,000");
        assert!(kept > 5000, "{call}: {kept} of 10,000");
    }
}

/// What psql registers and leaves takes effect, though no call of that session follows.
#[tokio::test]
async fn sessions_that_end_at_once() {
    let (scene, session) = registered(Postgres::builder()).await;
    let mut expected = vec!["news".to_owned(), "rpc".into()];
    for n in 10..30 {
        scene
            .pg
            .sql(&format!("SELECT nats_subscribe('psql.{n}', 'keep')"))
            .await;
        expected.push(format!("psql.{n}"));
    }
    expected.sort();
    eventually_eq(SOON, expected, async || scene.subjects().await).await;
    scene
        .pg
        .sql("SELECT nats_unsubscribe('psql.' || n, 'keep') FROM generate_series(10, 29) n")
        .await;
    all_work(&scene, &session, "after").await;
}

/// Registered as soon as the server lets somebody in, while the runtime worker is only starting.
#[tokio::test]
async fn registering_right_after_the_start() {
    let (mut scene, session) = Scene::keeping().await;
    drop(session);
    let mut expected = Vec::new();
    for n in 10..30 {
        scene.pg.restart(Stop::Immediate).await;
        let session = scene.pg.connect().await;
        run(&session, &format!("SELECT nats_subscribe('start.{n}', 'keep')")).await;
        expected.push(format!("start.{n}"));
        eventually_eq(SOON, expected.clone(), async || scene.subjects().await).await;
        let live = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state = 'live'";
        until_number(&session, n - 9, live).await;
    }
}
