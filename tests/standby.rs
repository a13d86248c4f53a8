//! On a hot standby NATS works as on the primary, and goes on after promotion.

mod scene;
mod support;

use futures::StreamExt;
use scene::*;
use support::*;

async fn works_on_a_standby(preload: bool) {
    let nats = NatsServer::start().await;
    let primary = Scene::with(Postgres::builder().preload(preload), nats, "").await;
    primary.echo().await;
    let mut inbox = primary.silent_responder("news").await;
    let standby = primary.pg.standby().await;
    let replayed = "SELECT count(*) FROM pg_foreign_server";
    eventually_eq(SOON, "1".to_owned(), async || standby.sql(replayed).await).await;
    assert_eq!(standby.worker_pids(RUNTIME).await.len(), usize::from(preload));

    let session = standby.connect().await;
    works(&session, "on the standby").await;
    run(&session, "SELECT nats_publish_text('news', 'standby')").await;
    assert_eq!(inbox.next().await.expect("a message").payload, "standby");

    standby.promote().await;
    run(&session, "CREATE TABLE written_after_promotion ()").await;
    works(&session, "the same session").await;
    let fresh = standby.connect().await;
    works(&fresh, "a new session").await;
    run(&fresh, "SELECT nats_publish_text('news', 'promoted')").await;
    assert_eq!(inbox.next().await.expect("a message").payload, "promoted");
    assert_eq!(standby.worker_pids(RUNTIME).await.len(), 1);
    // The old primary has a runtime of its own, which goes on.
    works(&primary.pg.connect().await, "on the primary").await;
}

#[tokio::test]
async fn with_preload() {
    works_on_a_standby(true).await;
}

/// The first call on the standby starts the runtime worker there.
#[tokio::test]
async fn without_preload() {
    works_on_a_standby(false).await;
}
