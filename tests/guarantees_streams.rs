//! Crash tests that count, while the stream itself does not stay what it is: its store is put back, it is deleted and made
//! again, it is a memory stream that loses its node. What the stream has in the end was executed, and nothing was twice.

mod events;
mod handlers;
mod scene;
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_nats::jetstream::{self, consumer, stream};
use events::*;
use futures::StreamExt;
use handlers::*;
use scene::*;
use support::*;

/// What happens to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Its store is replaced by a copy that was made a while ago.
    PutBack,
    /// It is deleted, and made again.
    MadeAgain,
    /// The server that keeps it in memory restarts.
    Lost,
}

fn copy(from: &Path, to: &Path) {
    // The first copy has nothing to replace.
    let _ = std::fs::remove_dir_all(to);
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status();
    assert!(copied.expect("cp").success(), "copy {from:?} to {to:?}");
}

fn config(storage: stream::StorageType) -> stream::Config {
    stream::Config {
        name: "events".into(),
        subjects: vec!["events.>".into()],
        storage,
        ..Default::default()
    }
}

/// Publishes numbers until told to end, each once, whether it is stored or not. `last` is the last one.
async fn publish_numbers(url: String, last: &AtomicI64, ended: &AtomicBool) {
    let client = async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .reconnect_delay_callback(|_| Duration::from_millis(50));
    let context = jetstream::new(client.connect(url).await.expect("a client"));
    while !ended.load(Ordering::SeqCst) {
        let n = last.fetch_add(1, Ordering::SeqCst) + 1;
        // The outcome does not matter: what the stream has in the end is what counts.
        if let Ok(sent) = context.publish("events.n", n.to_string().into()).await {
            let _ = tokio::time::timeout(Duration::from_secs(1), sent.into_future()).await;
        }
        // The subscription keeps up with that.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Kills a worker of this name, which has PostgreSQL restart.
async fn kill(pg: &Postgres, name: &str) {
    let process = eventually(LONG, async || {
        let session = pg.try_connect_as("postgres", "postgres").await.ok()?;
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE backend_type = '{name}' LIMIT 1");
        let rows = session.query(&sql, &[]).await.ok()?;
        proc::Process::find(rows.first()?.get(0))
    });
    process.await.signal(libc::SIGKILL);
}

/// Waits until messages were executed that are published from now on.
async fn until_executed(pg: &Postgres, last: &AtomicI64) {
    let since = last.load(Ordering::SeqCst);
    eventually(LONG, async || {
        let session = pg.try_connect_as("postgres", "sink").await.ok()?;
        let count = "SELECT count(*) FROM took WHERE n > $1";
        let row = session.query_one(count, &[&since]).await.ok()?;
        (row.get::<_, i64>(0) >= 20).then_some(())
    })
    .await;
}

/// The numbers that the stream has.
async fn held(nats: &NatsServer) -> BTreeSet<i64> {
    let context = jetstream::new(nats.client().await);
    let stream = context.get_stream("events").await.expect("the stream");
    let messages = stream.cached_info().state.messages;
    let ordered = stream
        .create_consumer(consumer::pull::OrderedConfig::default())
        .await;
    let mut all = ordered.expect("a consumer").messages().await.expect("messages");
    let mut numbers = BTreeSet::new();
    for _ in 0..messages {
        let message = all.next().await.expect("a message").expect("no error");
        let text = String::from_utf8(message.payload.to_vec()).expect("text");
        numbers.insert(text.parse().expect("a number"));
    }
    numbers
}

/// Changes the stream three times, while messages come and workers are killed.
async fn through(change: Change, nats: NatsConfig, encoding: &str, strict: &str) {
    let storage = match change {
        Change::Lost => stream::StorageType::Memory,
        _ => stream::StorageType::File,
    };
    let nats = nats.start().await;
    let mut scene = Scene::with(Postgres::builder(), nats, "").await;
    let pg = scene.pg.connect().await;
    run(
        &pg,
        &format!("CREATE DATABASE sink TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"),
    )
    .await;
    let session = scene.pg.connect_as("postgres", "sink").await;
    run(&session, &create_server(scene.nats.port(), "")).await;
    jetstream::new(scene.nats.client().await)
        .create_stream(config(storage))
        .await
        .expect("create a stream");
    run(
        &session,
        &format!(
            "CREATE TABLE took (n bigint);
             CREATE FUNCTION take(msg text, subject text) RETURNS void LANGUAGE sql {strict} AS $$
               INSERT INTO public.took VALUES (msg::bigint) $$;
             SELECT nats_subscribe_stream('events', 'take', ack_wait => '2 s', max_deliveries => 0)"
        ),
    )
    .await;
    until(&session, "live").await;
    drop((pg, session));
    let (last, ended) = (AtomicI64::new(0), AtomicBool::new(false));
    let (store, copied) = (
        scene.nats.jetstream_dir(),
        scene.nats.jetstream_dir().with_extension("copy"),
    );
    let (url, nats, pg) = (scene.nats.url(), &mut scene.nats, &scene.pg);
    let changes = async {
        for _ in 0..3 {
            until_executed(pg, &last).await;
            kill(pg, EXECUTOR).await;
            match change {
                Change::PutBack => {
                    nats.stop().await;
                    copy(&store, &copied);
                    nats.restart().await;
                    until_executed(pg, &last).await;
                    kill(pg, EXECUTOR).await;
                    nats.stop().await;
                    copy(&copied, &store);
                    nats.restart().await;
                }
                Change::MadeAgain => {
                    let context = jetstream::new(nats.client().await);
                    context.delete_stream("events").await.expect("delete");
                    context.create_stream(config(storage)).await.expect("create");
                }
                Change::Lost => {
                    nats.restart().await;
                    let context = jetstream::new(nats.client().await);
                    context.create_stream(config(storage)).await.expect("create");
                }
            }
            kill(pg, RUNTIME).await;
        }
        // So that the last stream has something to be lost, or to come twice.
        let enough = last.load(Ordering::SeqCst) + 40;
        eventually(LONG, async || last.load(Ordering::SeqCst) > enough).await;
        until_executed(pg, &last).await;
        ended.store(true, Ordering::SeqCst);
    };
    tokio::join!(publish_numbers(url, &last, &ended), changes);
    let held = held(&scene.nats).await;
    let session = eventually(LONG, async || {
        scene.pg.try_connect_as("postgres", "sink").await.ok()
    })
    .await;
    let took = async || -> Vec<i64> {
        let rows = session.query("SELECT n FROM took", &[]).await.expect("numbers");
        rows.iter().map(|row| row.get(0)).collect()
    };
    eventually(LONG, async || {
        let took: BTreeSet<i64> = took().await.into_iter().collect();
        let missing: Vec<i64> = held.difference(&took).copied().take(5).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(missing)
    })
    .await;
    let all = took().await;
    let distinct: BTreeSet<i64> = all.iter().copied().collect();
    println!(
        "{change:?} {encoding} {strict}: {} published, {} in the stream, {} executed, {} distinct",
        last.load(Ordering::SeqCst),
        held.len(),
        all.len(),
        distinct.len()
    );
    assert_eq!(all.len(), distinct.len(), "twice");
    assert!(held.len() > 20, "hardly anything is in the stream");
    assert!(all.len() > held.len(), "nothing was lost with the former streams");
    assert_eq!(
        number(&session, "SELECT count(*) FROM litmus_pgnats.dead_letter").await,
        0
    );
}

#[tokio::test]
async fn the_store_is_put_back_in_the_middle() {
    through(Change::PutBack, NatsServer::builder().jetstream(), "UTF8", "").await;
}

#[tokio::test]
async fn the_stream_is_made_again_in_the_middle() {
    through(
        Change::MadeAgain,
        NatsServer::builder().jetstream(),
        "LATIN1",
        "STRICT",
    )
    .await;
}

#[tokio::test]
async fn a_memory_stream_is_lost_in_the_middle() {
    through(Change::Lost, NatsServer::builder().jetstream(), "UTF8", "STRICT").await;
}

#[tokio::test]
async fn the_store_of_the_oldest_server_is_put_back_in_the_middle() {
    through(
        Change::PutBack,
        NatsServer::builder().jetstream().old(),
        "LATIN1",
        "",
    )
    .await;
}
