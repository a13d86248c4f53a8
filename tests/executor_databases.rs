//! Whatever needs a database without connections gets it: executors leave when they are asked, and come back where
//! there is something to come back to.

mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use handlers::*;
use scene::*;
use support::*;

/// PostgreSQL itself waits up to 5 s for others to leave a database; the rest is for a busy disk.
const CEILING: Duration = Duration::from_secs(10);

/// A database `used` with a live subscription `used` that naps on request, besides the one in `postgres`; no session.
async fn used() -> (Scene, Session, async_nats::Client) {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "own", "keep").await;
    let other = scene.database("used").await;
    run(
        &other,
        "CREATE SEQUENCE naps;
         CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO got (payload) VALUES (msg);
           -- Ended in its sleep, it is called again, and does not sleep then.
           IF msg = 'nap' AND nextval('naps') % 2 = 1 THEN PERFORM pg_sleep(600); END IF;
         END $$",
    )
    .await;
    subscribe(&other, "used", "nap").await;
    let client = scene.nats.client().await;
    say(&client, "used", "before").await;
    until_got(&other, &["before"]).await;
    other.close().await;
    nobody_in(&scene, "used").await;
    (scene, session, client)
}

/// Waits until no client is connected to a database.
async fn nobody_in(scene: &Scene, database: &str) {
    let clients = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend'"
    );
    eventually_eq(SOON, "0".to_owned(), async || scene.pg.sql(&clients).await).await;
}

/// Runs a statement that needs the database for itself.
async fn alone(session: &Session, sql: &str) {
    let began = Instant::now();
    run(session, sql).await;
    println!("{sql}: {:?}", began.elapsed());
    assert!(began.elapsed() < CEILING, "{sql}: {:?}", began.elapsed());
}

/// The handlers of the other database do not notice.
async fn the_other_goes_on(session: &Session, client: &async_nats::Client) {
    run(session, "TRUNCATE got").await;
    say(client, "own", "goes on").await;
    until_got(session, &["goes on"]).await;
}

/// With idle executors, with one in the middle of a callback, and with messages that wait.
#[tokio::test]
async fn drop_database() {
    for sql in ["DROP DATABASE used", "DROP DATABASE used WITH (FORCE)"] {
        for busy in [false, true] {
            let (scene, session, client) = used().await;
            if busy {
                count_off(&client, "used", 1..=10).await;
                say(&client, "used", "nap").await;
                count_off(&client, "used", 1..=100).await;
                scene.until_sleeping().await;
            }
            alone(&session, sql).await;
            eventually_eq(SOON, vec!["own".to_owned()], async || scene.subjects().await).await;
            eventually_eq(SOON, vec!["postgres".to_owned()], async || {
                scene.executor_databases().await
            })
            .await;
            let places = "SELECT DISTINCT database FROM litmus_pgnats.connections";
            eventually_eq(SOON, vec!["postgres".to_owned()], async || {
                texts(&session, places).await
            })
            .await;
            the_other_goes_on(&session, &client).await;
            // A new database of that name has nothing of the old one.
            run(&session, "CREATE DATABASE used").await;
            let anew = scene.pg.connect_as("postgres", "used").await;
            run(&anew, &create_server(scene.nats.port(), "")).await;
            run(&anew, KEEP).await;
            subscribe(&anew, "used", "keep").await;
            say(&client, "used", "anew").await;
            until_got(&anew, &["anew"]).await;
        }
    }
}

/// A database that could not be dropped after all has its executors back.
#[tokio::test]
async fn drop_database_refused() {
    let (scene, session, client) = used().await;
    let guest = scene.pg.connect_as("postgres", "used").await;
    let (report, took) = refused(&session, "DROP DATABASE used").await;
    println!("refused after {took:?}");
    assert_eq!(report.code, "55006", "{report:?}");
    until_live(&guest, "used").await;
    say(&client, "used", "still").await;
    until_got(&guest, &["before", "still"]).await;
    the_other_goes_on(&session, &client).await;
}

/// Under the new name they come back by themselves.
#[tokio::test]
async fn rename_database() {
    let (scene, session, client) = used().await;
    for (busy, sql, name) in [
        (false, "ALTER DATABASE used RENAME TO renamed", "renamed"),
        (true, "ALTER DATABASE renamed RENAME TO \"Re named\"", "Re named"),
    ] {
        if busy {
            say(&client, "used", "nap").await;
            scene.until_sleeping().await;
        }
        alone(&session, sql).await;
        the_other_goes_on(&session, &client).await;
        let renamed = scene.pg.connect_as("postgres", name).await;
        until_live(&renamed, "used").await;
        run(&renamed, "TRUNCATE got").await;
        say(&client, "used", name).await;
        eventually(SOON, async || got(&renamed).await.contains(&name.to_owned())).await;
        eventually(SOON, async || {
            scene.executor_databases().await.contains(&name.to_owned())
        })
        .await;
        renamed.close().await;
        nobody_in(&scene, name).await;
    }
}

/// The original goes on; the copy has handlers of its own.
#[tokio::test]
async fn create_database_from_a_template() {
    let (scene, session, client) = used().await;
    for (busy, name) in [(false, "copy"), (true, "another")] {
        if busy {
            say(&client, "used", "nap").await;
            scene.until_sleeping().await;
        }
        alone(&session, &format!("CREATE DATABASE {name} TEMPLATE used")).await;
        the_other_goes_on(&session, &client).await;
        let original = scene.pg.connect_as("postgres", "used").await;
        let copy = scene.pg.connect_as("postgres", name).await;
        run(&copy, "SELECT nats_publish_text('x', 'first call')").await;
        for session in [&original, &copy] {
            until_live(session, "used").await;
            run(session, "TRUNCATE got").await;
        }
        say(&client, "used", name).await;
        for session in [&original, &copy] {
            eventually(SOON, async || got(session).await.contains(&name.to_owned())).await;
        }
        original.close().await;
        copy.close().await;
        nobody_in(&scene, "used").await;
    }
}

/// Moving a database to another tablespace needs it empty of connections too.
#[tokio::test]
async fn move_database() {
    let (scene, session, client) = used().await;
    run(&session, "SET allow_in_place_tablespaces = on").await;
    run(&session, "CREATE TABLESPACE place LOCATION ''").await;
    alone(&session, "ALTER DATABASE used SET TABLESPACE place").await;
    let moved = scene.pg.connect_as("postgres", "used").await;
    until_live(&moved, "used").await;
    say(&client, "used", "moved").await;
    until_got(&moved, &["before", "moved"]).await;
    the_other_goes_on(&session, &client).await;
}

/// Handlers that wait, for a stream that is missing say, hold up neither other databases at a start nor the session's next
/// call.
#[tokio::test]
async fn what_waits_in_one_database_delays_no_other() {
    let nats = NatsServer::builder().jetstream().start().await;
    let pg = Postgres::builder().conf("max_worker_processes", "24");
    let scene = Scene::with(pg, nats, "").await;
    for n in 1..=7 {
        let session = scene.database(&format!("waiting{n}")).await;
        let began = Instant::now();
        run(&session, "SELECT nats_subscribe_stream('missing', 'keep')").await;
        run(&session, "SELECT nats_publish_text('x', '')").await;
        println!("next call after {:?}", began.elapsed());
        let problem = "SELECT problem FROM litmus_pgnats.stream_subscriptions WHERE state = 'waiting'";
        let problem = text(&session, problem).await;
        assert_eq!(problem, "stream \"missing\" does not exist");
    }
    // Read last, as the newest.
    let last = scene.database("last").await;
    subscribe(&last, "news", "keep").await;
    let runtime = scene.runtime().await;
    run(&last, &format!("SELECT pg_terminate_backend({runtime})")).await;
    scene.next_runtime(runtime).await;
    let began = Instant::now();
    until_live(&last, "news").await;
    println!("live after {:?}", began.elapsed());
    // Each of the others would have waited for three seconds.
    assert!(began.elapsed() < CEILING, "{:?}", began.elapsed());
}
