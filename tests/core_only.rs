//! A NATS server that offers core publish and subscribe alone, without headers and JetStream, as Litmus Edge's proxy
//! does: subscriptions and responders work all the same.

mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use async_nats::Client;
use handlers::*;
use scene::*;
use support::*;

async fn joined() -> (Postgres, CoreNats, Session, Client) {
    let nats = CoreNats::start();
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    run(&session, &create_server(nats.port(), "")).await;
    run(&session, KEEP).await;
    let client = async_nats::connect(nats.url()).await.expect("a client");
    (pg, nats, session, client)
}

/// Publishes from outside: this server does not say when nobody is there, so a flush has to do.
async fn tell(client: &Client, subject: &str, payload: &str) {
    publish(client, subject, payload.into()).await;
    client.flush().await.expect("flush");
}

/// Messages arrive in order, with wildcards, and with NULL for the headers that there are not.
#[tokio::test]
async fn subscriptions() {
    let (_pg, nats, session, client) = joined().await;
    run(
        &session,
        "CREATE FUNCTION keep_all(msg text, subject text, reply_to text, headers jsonb) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO got (payload) VALUES (concat_ws(' ', subject, msg, reply_to, nullif(headers, '{}'))) $$",
    )
    .await;
    subscribe(&session, "news", "keep").await;
    subscribe(&session, "wild.*.>", "keep_all").await;
    run(&session, "SELECT nats_publish_text('news', 'from the session')").await;
    until_got(&session, &["from the session"]).await;
    tell(&client, "wild.a", "no").await;
    tell(&client, "wild.a.b.c", "yes").await;
    until_got(&session, &["from the session", "wild.a.b.c yes"]).await;
    run(&session, "TRUNCATE got").await;
    count_off(&client, "news", 1..=5000).await;
    eventually_eq(LONG, numbers(1..=5000), async || got(&session).await).await;
    run(&session, "SELECT nats_unsubscribe('news', 'keep')").await;
    eventually_eq(SOON, vec!["wild.*.>".to_owned()], async || nats.subjects()).await;
    assert_eq!(nats.refused(), [""; 0]);
}

/// Requests are answered. An error has no headers to be told in, but it must not break the connection.
#[tokio::test]
async fn responders() {
    let (_pg, nats, session, client) = joined().await;
    run(
        &session,
        "CREATE FUNCTION answer(q text, subject text) RETURNS text LANGUAGE plpgsql AS $$
         BEGIN
           IF q = 'fail' THEN RAISE EXCEPTION 'it failed'; END IF;
           IF q = 'null' THEN RETURN NULL; END IF;
           RETURN subject || ': ' || q;
         END $$",
    )
    .await;
    respond(&session, "rpc.*", "answer").await;
    assert_eq!(reply_text(&ask(&client, "rpc.a", "q").await), "rpc.a: q");
    assert_eq!(
        text(&session, "SELECT nats_request_text('rpc.b', 'q', 10000)").await,
        "rpc.b: q"
    );
    assert_eq!(
        text(&session, "SELECT nats_request_text('rpc.b', 'null', 10000)").await,
        ""
    );
    let failing = tokio::time::timeout(Duration::from_secs(1), client.request("rpc.a", "fail".into())).await;
    println!("an error without headers: {failing:?}");
    until_errors(&session, "rpc.*", 1).await;
    let began = Instant::now();
    let outcome = session
        .query_one("SELECT nats_request_text('rpc.a', 'fail', 2000)", &[])
        .await;
    println!(
        "and for a session, after {:?}: {:?}",
        began.elapsed(),
        outcome.map(|row| row.get::<_, String>(0))
    );
    for n in 1..=100 {
        let reply = ask(&client, "rpc.c", n.to_string()).await;
        assert_eq!(reply_text(&reply), format!("rpc.c: {n}"));
    }
    assert_eq!(nats.refused(), [""; 0], "sent to a server without headers");
    assert_eq!(nats.subjects(), ["rpc.*"]);
}

/// The members of a queue group share the work here too.
#[tokio::test]
async fn queue_groups() {
    let (pg, nats, session, client) = joined().await;
    pg.sql("CREATE DATABASE second").await;
    let second = pg.connect_as("postgres", "second").await;
    run(&second, &create_server(nats.port(), "")).await;
    run(&second, KEEP).await;
    for session in [&session, &second] {
        run(session, "SELECT nats_subscribe('work', 'keep', 'workers')").await;
        until_live(session, "work").await;
    }
    count_off(&client, "work", 1..=100).await;
    let all = async || got(&session).await.len() + got(&second).await.len();
    eventually_eq(SOON, 100, all).await;
}
