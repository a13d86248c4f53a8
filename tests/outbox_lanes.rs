//! Whatever waits in the outbox, and however much of it: what can be delivered does not wait for it.

mod handlers;
mod outgoing;
mod scene;
mod support;

use std::time::Instant;

use handlers::*;
use outgoing::*;
use scene::*;
use support::*;

/// More commits than an outbox relay remembers wait for a server that is away.
#[tokio::test]
async fn a_server_that_is_away_holds_up_no_other() {
    let (scene, session, kept) = scene_with(Postgres::builder()).await;
    let away = Port::take();
    run(
        &session,
        &format!(
            "CREATE SERVER away FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}')",
            away.number()
        ),
    )
    .await;
    run(
        &session,
        "WITH written AS (INSERT INTO litmus_pgnats.outbox_batch (batch, server, role)
           SELECT n, 'away', 'postgres'::regrole FROM generate_series(1, 1010000) n RETURNING batch)
         INSERT INTO litmus_pgnats.outbox (batch, subject, payload) SELECT batch, 'kept.away', '' FROM written",
    )
    .await;
    run(&session, "SET litmus_pgnats.server = 'nats'").await;
    let began = Instant::now();
    run(&session, &put("there")).await;
    assert_eq!(kept.payloads(1).await, ["there"]);
    println!("the first message behind 1,010,000 others: {:?}", began.elapsed());
    let began = Instant::now();
    for n in 1..=20 {
        run(&session, &put(n)).await;
        kept.payloads(n + 1).await;
    }
    println!("a message after that: {:?}", began.elapsed() / 20);
    assert_eq!(scene.pg.worker_pids(OUTBOX_RELAY).await.len(), 1);
    // What there was no room for is delivered too, once the others are gone.
    run(
        &session,
        "DELETE FROM litmus_pgnats.outbox WHERE batch <= 1009990 AND subject = 'kept.away'",
    )
    .await;
    let port = scene.nats.port();
    run(
        &session,
        &format!("ALTER SERVER away OPTIONS (SET port '{port}'); SELECT litmus_pgnats_reload_conf()"),
    )
    .await;
    until_empty(&session).await;
    kept.payloads(31).await;
}

/// Messages to ten thousand subjects that no stream takes are tried for ever.
#[tokio::test]
async fn refused_subjects_hold_up_no_other() {
    let conf = Postgres::builder().conf("litmus_pgnats.outbox_retry_time", "-1");
    let (_scene, session, kept) = scene_with(conf).await;
    run(
        &session,
        "SELECT nats_publish_text_outbox('nowhere.' || n, 'x') FROM generate_series(1, 10000) n",
    )
    .await;
    let began = Instant::now();
    run(&session, &put(1)).await;
    kept.payloads(1).await;
    println!(
        "the first message behind 10,000 that are refused: {:?}",
        began.elapsed()
    );
    let mut longest = std::time::Duration::ZERO;
    for n in 2..=30 {
        let began = Instant::now();
        run(&session, &put(n)).await;
        kept.payloads(n).await;
        longest = longest.max(began.elapsed());
    }
    println!("the slowest of 29 messages after that: {longest:?}");
    assert!(longest.as_secs() < 8, "{longest:?}");
    until_number(&session, 10_000, WAITING).await;
}
