//! A standby subscribes to nothing; once it is promoted it takes over, without a restart.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

/// A primary with a subscription and a responder, and its standby, which has replayed them.
async fn pair(preload: bool) -> (Scene, Session, Postgres) {
    let (scene, session) = Scene::keeping_with(Postgres::builder().preload(preload)).await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS $$ SELECT pg_is_in_recovery()::text || ' ' || q $$",
    )
    .await;
    subscribe(&session, "news", "keep").await;
    respond(&session, "rpc", "answer").await;
    let standby = scene.pg.standby().await;
    let replayed = "SELECT count(*) FROM litmus_pgnats.handler";
    eventually_eq(SOON, "2".to_owned(), async || standby.sql(replayed).await).await;
    (scene, session, standby)
}

/// Only the primary's handlers run; the standby's sessions use NATS all the same, and can register nothing.
#[tokio::test]
async fn nothing_runs_on_a_standby() {
    let (scene, session, standby) = pair(true).await;
    scene.echo().await;
    let client = scene.nats.client().await;
    let on_standby = standby.connect().await;
    works(&on_standby, "a call on the standby").await;
    assert_eq!(scene.subjects().await, ["echo", "news", "rpc"]);
    // One may have looked whether there is anything to do, and left.
    eventually_eq(SOON, [0; 0].to_vec(), async || {
        standby.worker_pids(EXECUTOR).await
    })
    .await;
    for view in ["subscriptions", "responders"] {
        let states = texts(&on_standby, &format!("SELECT state FROM litmus_pgnats.{view}")).await;
        assert_eq!(states.len(), 1);
        assert_ne!(states[0], "live");
    }
    for sql in [
        "SELECT nats_subscribe('other', 'keep')",
        "SELECT nats_unsubscribe('news', 'keep')",
        "SELECT litmus_pgnats_unregister_responder('rpc')",
    ] {
        let (report, _) = refused(&on_standby, sql).await;
        assert_eq!(report.code, "25006", "{sql}: {report:?}");
    }
    for n in 1..=20 {
        say(&client, "news", n.to_string()).await;
        assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "false q");
    }
    eventually_eq(SOON, numbers(1..=20), async || got(&session).await).await;
    // A handler that comes and one that goes while the standby follows change nothing there.
    subscribe(&session, "later", "keep").await;
    run(&session, "SELECT nats_unsubscribe('news', 'keep')").await;
    let mut expected = vec!["echo".to_owned(), "later".into(), "rpc".into()];
    eventually_eq(SOON, expected.clone(), async || scene.subjects().await).await;
    eventually_eq(SOON, [0; 0].to_vec(), async || {
        standby.worker_pids(EXECUTOR).await
    })
    .await;

    // Both are primaries then, and both have their handlers.
    standby.promote().await;
    expected = ["echo", "later", "later", "rpc", "rpc"]
        .map(str::to_owned)
        .to_vec();
    eventually_eq(LONG, expected, async || scene.subjects().await).await;
}

/// The primary fails, the standby is promoted: from then on its own handlers run, and its callbacks can write.
#[tokio::test]
async fn promotion_with_preload() {
    let (mut scene, _, standby) = pair(true).await;
    let client = scene.nats.client().await;
    say(&client, "news", "before").await;
    eventually_eq(SOON, "1".to_owned(), async || {
        standby.sql("SELECT count(*) FROM got").await
    })
    .await;
    scene.pg.stop(Stop::Immediate).await;
    scene.until_silent().await;
    standby.promote().await;
    // Nobody calls anything.
    eventually_eq(SOON, vec!["news".to_owned(), "rpc".into()], async || {
        scene.subjects().await
    })
    .await;
    let session = standby.connect().await;
    until_live(&session, "news").await;
    say(&client, "news", "after").await;
    until_got(&session, &["before", "after"]).await;
    assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "false q");
    subscribe(&session, "registered.there", "keep").await;
    say(&client, "registered.there", "too").await;
    until_got(&session, &["before", "after", "too"]).await;
}

/// Without preloading the first call after the promotion brings them to life; one before it does not.
#[tokio::test]
async fn promotion_without_preload() {
    let (mut scene, _, standby) = pair(false).await;
    let on_standby = standby.connect().await;
    run(&on_standby, "SELECT nats_publish_text('x', 'a call before')").await;
    scene.pg.stop(Stop::Fast).await;
    scene.until_silent().await;
    standby.promote().await;
    run(&on_standby, "SELECT nats_publish_text('x', 'a call after')").await;
    eventually_eq(SOON, vec!["news".to_owned(), "rpc".into()], async || {
        scene.subjects().await
    })
    .await;
    let client = scene.nats.client().await;
    say(&client, "news", "after").await;
    let session = standby.connect().await;
    until_got(&session, &["after"]).await;
    assert_eq!(reply_text(&ask(&client, "rpc", "q").await), "false q");
}
