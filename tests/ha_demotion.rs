//! A primary becomes a standby, and primary again, while callbacks run that do not end by themselves.

mod patroni;
mod scene;
mod support;

use std::time::{Duration, Instant};

use patroni::*;
use scene::*;
use support::*;

/// Longest time for a stop, whatever callbacks do; it should be a second or two.
const STOPS_WITHIN: Duration = Duration::from_secs(15);
/// Within how long of a promotion's end handlers are live; it should be a second.
const LIVE_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_primary_is_demoted_under_way_and_promoted_again() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let news = News::listen(&client, "ha.news").await;
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "2");
    let mut scene = Scene::with(pg, nats, ", notify_subject 'ha.news'").await;
    let port = scene.pg.port();
    let session = scene.pg.connect().await;
    run(&session, NUMBERS).await;
    run(
        &session,
        "CREATE FUNCTION slow(n text) RETURNS void LANGUAGE sql AS $$
           SELECT pg_sleep(120); INSERT INTO public.numbers VALUES (n::int) $$;
         SELECT nats_subscribe('ha.slow', 'slow')",
    )
    .await;
    news.until(port, &["Master"]).await;
    let mut roles = vec!["Master"];
    for stop in [Stop::Fast, Stop::Immediate] {
        for subject in ["ha.slow", "ha.load"] {
            until_state(&session_of(&scene).await, subject, "live").await;
        }
        for n in 0..500 {
            client
                .publish("ha.slow", n.to_string().into())
                .await
                .expect("publish");
        }
        round_trip(&client).await;
        let watcher = session_of(&scene).await;
        let sleeping = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually(SOON, async || {
            watcher.query_one(sleeping, &[]).await.is_ok_and(|row| row.get(0))
        })
        .await;

        let began = Instant::now();
        scene.pg.stop(stop).await;
        println!("{stop:?}: stopped in {:?}", began.elapsed());
        assert!(began.elapsed() < STOPS_WITHIN);
        let signal = scene.pg.data_dir().join("standby.signal");
        std::fs::write(&signal, "").expect("write standby.signal");
        give_to_server(&signal);
        scene.pg.start_again().await;
        roles.push("Replica");
        news.until(port, &roles).await;
        let session = session_of(&scene).await;
        assert_eq!(
            state_of(&session, "ha.load").await,
            Ok(("off".into(), Some("this server is a standby".into())))
        );
        run(&session, "SELECT nats_publish_text('ha.hello', 'from a standby')").await;
        client.publish("ha.load", "1".into()).await.expect("publish");
        round_trip(&client).await;

        scene.pg.promote().await;
        let began = Instant::now();
        until_state(&session, "ha.load", "live").await;
        println!("live within {:?} of the promotion", began.elapsed());
        assert!(began.elapsed() < LIVE_WITHIN);
        roles.push("Master");
        news.until(port, &roles).await;
        // Neither what the standby got nor what was in execution.
        assert_eq!(records(&session).await.len(), 0);
    }
}

async fn session_of(scene: &Scene) -> Session {
    scene.pg.connect().await
}
