//! Functions that take `litmus_pgnats.message[]`: what they are given, and that one bad message spoils no other.

mod handlers;
mod scene;
mod support;

use async_nats::HeaderMap;
use handlers::*;
use scene::*;

const MANY: &str = "CREATE TABLE calls (id bigint GENERATED ALWAYS AS IDENTITY, size integer);
    CREATE FUNCTION keep_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
      INSERT INTO public.got (payload) SELECT convert_from(payload, 'utf8') FROM unnest(messages);
      INSERT INTO public.calls (size) VALUES (cardinality(messages)) $$;";

#[tokio::test]
async fn a_batch_callback_gets_all_that_waits_in_order() {
    let (scene, session) = Scene::keeping().await;
    run(&session, MANY).await;
    run(
        &session,
        "SELECT nats_subscribe('many', 'keep_many', batch_size => 100)",
    )
    .await;
    until_live(&session, "many").await;
    let client = scene.nats.client().await;
    count_off(&client, "many", 1..=5000).await;
    until_number(&session, 5000, "SELECT count(*) FROM got").await;
    assert_eq!(got(&session).await, numbers(1..=5000));
    let most = number(&session, "SELECT max(size)::bigint FROM calls").await;
    assert!((2..=100).contains(&most), "{most}");
}

#[tokio::test]
async fn every_column_of_a_message() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION look_at(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
           INSERT INTO public.got (payload)
           SELECT concat_ws('|', subject, convert_from(payload, 'utf8'), coalesce(reply_to, '-'), coalesce(headers->>'a', '-'),
             coalesce(stream_sequence::text, '-'), coalesce(delivery_count::text, '-'),
             \"time\" BETWEEN now() - interval '1 min' AND now() + interval '1 min')
           FROM unnest(messages) $$",
    )
    .await;
    subscribe(&session, "any.*", "look_at").await;
    let client = scene.nats.client().await;
    say(&client, "any.1", "grün").await;
    let mut headers = HeaderMap::new();
    headers.insert("a", "b");
    let sent = client
        .publish_with_reply_and_headers("any.2", "back", headers, "".into())
        .await;
    sent.expect("publish");
    until_got(&session, &["any.1|grün|-|-|-|-|t", "any.2||back|b|-|-|t"]).await;
}

/// Every tenth of a thousand fails, alone.
#[tokio::test]
async fn bad_messages_are_isolated() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION picky(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
           INSERT INTO public.got (payload) SELECT (1 / (convert_from(payload, 'utf8')::int % 10))::text
             || ' ' || convert_from(payload, 'utf8') FROM unnest(messages) $$",
    )
    .await;
    subscribe(&session, "picky", "picky").await;
    let client = scene.nats.client().await;
    count_off(&client, "picky", 1..=1000).await;
    until_errors(&session, "picky", 100).await;
    until_number(&session, 900, "SELECT count(*) FROM got").await;
    let state = counts(&session, "picky").await;
    assert_eq!((state.messages, state.dropped), (1000, 0), "{state:?}");
    let sorted = number(
        &session,
        "SELECT count(*) FROM (SELECT split_part(payload, ' ', 2)::int AS n, lag(split_part(payload, ' ', 2)::int)
           OVER (ORDER BY id) AS before FROM got) o WHERE n < before",
    )
    .await;
    assert_eq!(sorted, 0, "out of order");
}

#[tokio::test]
async fn what_is_refused() {
    let (_scene, session) = Scene::keeping().await;
    run(&session, MANY).await;
    for (sql, message) in [
        (
            "SELECT nats_subscribe('a', 'keep', batch_size => 5)",
            "function public.keep(bytea) takes one message at a time",
        ),
        (
            "SELECT nats_subscribe('a', 'keep_many', batch_size => 0)",
            "batch_size is out of range",
        ),
        (
            "SELECT nats_subscribe('a', 'keep_many', batch_size => 10001)",
            "batch_size is out of range",
        ),
        (
            "SELECT litmus_pgnats_register_responder('a', 'keep_many')",
            "function public.keep_many(litmus_pgnats.message[]) cannot be a responder",
        ),
    ] {
        let (report, _) = refused(&session, sql).await;
        assert_eq!(report.message, message, "{sql}");
    }
    // It follows a renaming.
    run(
        &session,
        "SELECT nats_subscribe('a', 'keep_many'); ALTER FUNCTION keep_many RENAME TO \"Keep\"",
    )
    .await;
    let function = text(&session, "SELECT function FROM litmus_pgnats.subscriptions").await;
    assert_eq!(function, "public.\"Keep\"(litmus_pgnats.message[])");
}

/// `transaction_timeout` is meant for one piece of work, not for the many messages that an executor puts into a transaction.
#[tokio::test]
async fn a_transaction_timeout_is_for_one_message() {
    // PostgreSQL has the parameter from 17 on.
    if support::major() < 17 {
        return;
    }
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS
           $$ SELECT pg_sleep(CASE WHEN msg = 'fast' THEN 0 WHEN msg = 'slow' THEN 0.1 ELSE 60 END);
              INSERT INTO public.got (payload) VALUES (msg) $$;
         ALTER ROLE postgres SET transaction_timeout = '1 s'",
    )
    .await;
    subscribe(&session, "nap", "nap").await;
    let client = scene.nats.client().await;
    // So that the function is known to be fast, and is given many messages at once.
    for n in 1..=20 {
        say(&client, "nap", "fast").await;
        until_number(&session, n, "SELECT count(*) FROM got").await;
    }
    for _ in 0..30 {
        client.publish("nap", "slow".into()).await.expect("publish");
    }
    until_number(&session, 50, "SELECT count(*) FROM got").await;
    until_errors(&session, "nap", 0).await;
    say(&client, "nap", "for ever").await;
    until_errors(&session, "nap", 1).await;
    let last = text(&session, "SELECT last_error FROM litmus_pgnats.subscriptions").await;
    assert!(last.starts_with("57014"), "{last}");
}
