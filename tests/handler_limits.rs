//! What a role with few rights cannot use up, hold or break, and what a callback cannot do for ever.

mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use handlers::*;
use scene::*;
use support::*;

/// A scene in which the role `shop` may register, and a session of that role.
async fn a_shop(pg: PostgresBuilder) -> (Scene, Session, Session) {
    let (scene, session) = Scene::keeping_with(pg).await;
    run(&session, SHOP).await;
    run(&session, "GRANT INSERT ON got TO shop").await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    (scene, session, shop)
}

#[tokio::test]
async fn the_number_of_handlers() {
    let pg = Postgres::builder().conf("litmus_pgnats.max_handlers", "3");
    let (_scene, session, shop) = a_shop(pg).await;
    run(
        &shop,
        "SELECT nats_subscribe('news.' || n, 'keep') FROM generate_series(1, 3) n",
    )
    .await;
    let (report, _) = refused(&shop, "SELECT nats_subscribe('news.4', 'keep')").await;
    assert_eq!(report.code, "53400");
    assert_eq!(report.message, "too many subscriptions and responders");
    assert!(
        report
            .detail
            .as_ref()
            .is_some_and(|d| d.contains("\"shop\" has 3")),
        "{report:?}"
    );
    assert!(
        report
            .hint
            .as_ref()
            .is_some_and(|h| h.contains("litmus_pgnats.max_handlers")),
        "{report:?}"
    );
    // What is there may be changed, another role has its own, and room that is made may be used.
    run(&shop, "SELECT nats_subscribe('news.3', 'keep', 'group')").await;
    run(&session, "SELECT nats_subscribe('news.4', 'keep')").await;
    run(&shop, "SELECT nats_unsubscribe('news.1', 'keep')").await;
    run(&shop, "SELECT nats_subscribe('news.5', 'keep')").await;
    let (report, _) = refused(&shop, "SET litmus_pgnats.max_handlers = 9").await;
    assert_eq!(report.code, "42501");
}

/// A thousand handlers whose connections have options as long as they may be: more than the runtime worker takes.
#[tokio::test]
async fn the_size_of_what_the_runtime_is_told() {
    let (scene, session, shop) = a_shop(Postgres::builder()).await;
    run(&session, "ALTER SERVER nats OWNER TO shop").await;
    let (report, _) = refused(
        &session,
        &format!(
            "CREATE USER MAPPING FOR shop SERVER nats OPTIONS (username 'u', password '{}')",
            "x".repeat(4097)
        ),
    )
    .await;
    assert_eq!(report.message, "value for option \"password\" is too long");
    let long = "x".repeat(4096);
    run(
        &session,
        &format!(
            "CREATE USER MAPPING FOR shop SERVER nats OPTIONS (username '{long}', password '{long}');
             SET litmus_pgnats.max_handlers = 10000"
        ),
    )
    .await;
    subscribe(&session, "honest", "keep").await;
    run(
        &session,
        &format!(
            "SET ROLE shop;
             SELECT nats_subscribe('{}.' || n, 'keep') FROM generate_series(1, 3000) n; RESET ROLE",
            "s".repeat(1800)
        ),
    )
    .await;
    let state = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE problem LIKE '%take too much room%'";
    let known = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state <> 'off'";
    until_number(&session, 3001, known).await;
    let without_room = number(&session, state).await;
    println!("{without_room} of 3001 handlers have no room");
    assert!((1..3000).contains(&without_room), "{without_room}");
    say(&scene.nats.client().await, "honest", "goes on").await;
    until_got(&session, &["goes on"]).await;
    run(&shop, "SELECT 1").await;
}

/// A reply that no frame holds is an error for its requester, and the executor goes on.
#[tokio::test]
async fn the_size_of_a_reply() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION large(q text) RETURNS text LANGUAGE sql AS
           $$ SELECT CASE q WHEN 'large' THEN repeat('x', 70000000) ELSE pg_backend_pid()::text END $$",
    )
    .await;
    respond(&session, "rpc", "large").await;
    let client = scene.nats.client().await;
    let before = reply_text(&ask(&client, "rpc", "pid").await);
    let (code, message) = service_error(&ask(&client, "rpc", "large").await).expect("an error");
    assert_eq!(code, "54000");
    assert_eq!(
        message,
        "reply of 70000000 bytes exceeds the limit of 67108864 bytes"
    );
    assert_eq!(reply_text(&ask(&client, "rpc", "pid").await), before);
}

/// A role that never ends its transaction keeps its own row locked, and nobody from registering.
#[tokio::test]
async fn a_lock_on_a_row_of_its_own() {
    let (scene, session, shop) = a_shop(Postgres::builder()).await;
    run(&shop, "SELECT nats_subscribe('shop', 'keep')").await;
    until_live(&session, "shop").await;
    run(&shop, "BEGIN; SELECT nats_subscribe('shop', 'keep', 'group')").await;
    // As after a restore: the next look wants to write what the names mean.
    run(
        &session,
        "UPDATE litmus_pgnats.handler_binding SET system_identifier = 1 WHERE subject <> 'shop'",
    )
    .await;
    let began = Instant::now();
    run(
        &session,
        "SET lock_timeout = '2s'; SELECT nats_subscribe('news', 'keep')",
    )
    .await;
    until_live(&session, "news").await;
    println!("registered after {:?}", began.elapsed());
    say(&scene.nats.client().await, "news", "1").await;
    until_got(&session, &["1"]).await;
    run(&shop, "COMMIT").await;
}

#[tokio::test]
async fn a_temporary_function_is_refused() {
    let (_scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION pg_temp.keep(msg text) RETURNS text LANGUAGE sql AS 'SELECT msg'",
    )
    .await;
    for call in [
        "SELECT nats_subscribe('news', 'pg_temp.keep')",
        "SELECT litmus_pgnats_register_responder('rpc', 'pg_temp.keep')",
    ] {
        let (report, _) = refused(&session, call).await;
        assert_eq!(report.code, "42P13");
        assert!(
            report.message.starts_with("temporary function pg_temp_"),
            "{report:?}"
        );
    }
}

/// The administrator's limit holds for a role that has set none for itself, or a longer one.
#[tokio::test]
async fn a_callback_that_takes_too_long() {
    let pg = Postgres::builder().conf("litmus_pgnats.callback_timeout", "300ms");
    let (scene, session, shop) = a_shop(pg).await;
    run(
        &session,
        "CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS
           $$ SELECT pg_sleep(CASE msg WHEN 'long' THEN 600 ELSE 0 END);
              INSERT INTO public.got (payload) VALUES (msg) $$;
         ALTER ROLE shop SET statement_timeout = '1h'",
    )
    .await;
    run(&shop, "SELECT nats_subscribe('nap', 'nap')").await;
    until_live(&session, "nap").await;
    let client = scene.nats.client().await;
    for word in ["first", "long", "last"] {
        say(&client, "nap", word).await;
    }
    until_got(&session, &["first", "last"]).await;
    assert_eq!(counts(&session, "nap").await.errors, 1);
    scene
        .pg
        .wait_log("canceling statement due to statement timeout", SOON)
        .await;
}

/// Rights that came by membership in another role, and go with it, are looked at for each message.
#[tokio::test]
async fn usage_of_the_server_by_membership() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE ROLE staff; CREATE ROLE clerk LOGIN; GRANT staff TO clerk;
         GRANT USAGE ON FOREIGN SERVER nats TO staff; GRANT INSERT ON got TO clerk;
         SET ROLE clerk; SELECT nats_subscribe('news', 'keep'); RESET ROLE",
    )
    .await;
    until_live(&session, "news").await;
    let client = scene.nats.client().await;
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
    run(&session, "REVOKE staff FROM clerk").await;
    say(&client, "news", "2").await;
    until_errors(&session, "news", 1).await;
    let last = "SELECT last_error FROM litmus_pgnats.subscriptions";
    assert_eq!(
        text(&session, last).await,
        "42501: permission denied for foreign server nats"
    );
    run(&session, "GRANT staff TO clerk").await;
    say(&client, "news", "3").await;
    until_got(&session, &["1", "3"]).await;
}

/// A server takes the name of one that was dropped and has left its handlers.
#[tokio::test]
async fn a_server_with_the_name_of_a_dropped_one() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        &format!(
            "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q';
             SELECT nats_subscribe('news', 'keep'), litmus_pgnats_register_responder('rpc', 'answer');
             DROP SERVER nats CASCADE;
             CREATE SERVER other FOREIGN DATA WRAPPER litmus_pgnats_fdw
               OPTIONS (host '127.0.0.1', port '{}');
             SELECT nats_subscribe('news', 'keep'), litmus_pgnats_register_responder('rpc', 'answer');
             ALTER SERVER other RENAME TO nats",
            scene.nats.port()
        ),
    )
    .await;
    let handlers = "SELECT server || ' ' || subject FROM litmus_pgnats.handler ORDER BY 1";
    assert_eq!(texts(&session, handlers).await, ["nats news", "nats rpc"]);
    until_live(&session, "news").await;
    until_live(&session, "rpc").await;
    let client = scene.nats.client().await;
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
}

/// Two roles register the same at once: one has it, the other is told so.
#[tokio::test]
async fn the_second_of_two_roles() {
    let (scene, session, shop) = a_shop(Postgres::builder()).await;
    run(
        &session,
        "CREATE ROLE rival LOGIN; GRANT USAGE ON FOREIGN SERVER nats TO rival",
    )
    .await;
    let rival = scene.pg.connect_as("rival", "postgres").await;
    run(&shop, "BEGIN; SELECT nats_subscribe('news', 'keep')").await;
    let second = tokio::spawn(async move {
        let outcome = rival.batch_execute("SELECT nats_subscribe('news', 'keep')").await;
        db_error(&outcome.expect_err("it is the other's"))
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    until_number(&session, 1, waits).await;
    run(&shop, "COMMIT").await;
    let report = second.await.expect("a report");
    assert_eq!(report.code, "42501");
    assert_eq!(
        report.message,
        "permission denied for the subscription on subject \"news\""
    );
}

/// Two sessions of one role register a responder each on one subject at once: the later one is it.
#[tokio::test]
async fn the_later_of_two_responders() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION first(q text) RETURNS text LANGUAGE sql AS $$ SELECT 'first' $$;
         CREATE FUNCTION second(q text) RETURNS text LANGUAGE sql AS $$ SELECT 'second' $$",
    )
    .await;
    run(
        &session,
        "BEGIN; SELECT litmus_pgnats_register_responder('rpc', 'first')",
    )
    .await;
    let other = scene.pg.connect().await;
    let second = tokio::spawn(async move {
        run(&other, "SELECT litmus_pgnats_register_responder('rpc', 'second')").await;
    });
    let watcher = scene.pg.connect().await;
    until_number(&watcher, 1, "SELECT count(*) FROM pg_locks WHERE NOT granted").await;
    run(&session, "COMMIT").await;
    second.await.expect("a registration");
    until_live(&session, "rpc").await;
    let functions = "SELECT function FROM litmus_pgnats.responders";
    assert_eq!(texts(&session, functions).await, ["public.second(text)"]);
    let reply = ask(&scene.nats.client().await, "rpc", "").await;
    assert_eq!(reply_text(&reply), "second");
}

/// DDL of other functions, and rights on other objects, are no change of the handlers.
#[tokio::test]
async fn what_is_no_change() {
    let pg = Postgres::builder()
        .conf("max_prepared_transactions", "2")
        .conf("log_min_messages", "debug1");
    let (_scene, session) = Scene::keeping_with(pg).await;
    subscribe(&session, "news", "keep").await;
    run(
        &session,
        "CREATE FUNCTION other() RETURNS int LANGUAGE sql AS 'SELECT 1';
         BEGIN; DROP FUNCTION other(); GRANT SELECT ON got TO PUBLIC; PREPARE TRANSACTION 'p'",
    )
    .await;
    run(&session, "COMMIT PREPARED 'p'").await;
    let (report, _) = refused(
        &session,
        "BEGIN; DROP FUNCTION keep(bytea); PREPARE TRANSACTION 'p'",
    )
    .await;
    assert_eq!(report.code, "0A000");
}

/// A function that catches the cancel of its timeout does not keep its executor.
#[tokio::test]
async fn a_callback_that_does_not_give_up() {
    let (scene, session) = a_stubborn_callback("1").await;
    subscribe(&session, "news", "keep").await;
    let client = scene.nats.client().await;
    say(&client, "stubborn", "x").await;
    scene.until_sleeping().await;
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
    scene.pg.wait_log("goes on after its timeout", SOON).await;
}

/// The same beside an executor that is idle, and may be for an hour: nothing else is due before.
#[tokio::test]
async fn a_callback_that_does_not_give_up_beside_an_idle_executor() {
    let (scene, session) = a_stubborn_callback("2").await;
    run(
        &session,
        "CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.1)'",
    )
    .await;
    subscribe(&session, "nap.1", "nap").await;
    subscribe(&session, "nap.2", "nap").await;
    let client = scene.nats.client().await;
    eventually_eq(SOON, 2, async || {
        say(&client, "nap.1", "x").await;
        say(&client, "nap.2", "x").await;
        scene.executors().await.len()
    })
    .await;
    eventually_eq(SOON, 0, async || scene.sleeping().await.len()).await;
    // Until the time that `nap` might have taken is over too.
    tokio::time::sleep(Duration::from_secs(6)).await;
    say(&client, "stubborn", "x").await;
    scene.pg.wait_log("goes on after its timeout", SOON).await;
}

/// A scene with so many executors, and a subscription `stubborn` whose function never ends by itself.
async fn a_stubborn_callback(executors: &str) -> (Scene, Session) {
    let pg = Postgres::builder()
        .conf("litmus_pgnats.callback_timeout", "200ms")
        .conf("litmus_pgnats.executor_idle_timeout", "1h")
        .conf("litmus_pgnats.max_executors", executors);
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE FUNCTION stubborn(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
           LOOP BEGIN PERFORM pg_sleep(600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$",
    )
    .await;
    subscribe(&session, "stubborn", "stubborn").await;
    (scene, session)
}

/// Handlers whose NATS server is away take their time to begin; the executor that has found them works on.
#[tokio::test]
async fn a_server_that_is_away() {
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "1");
    let (scene, session) = Scene::keeping_with(pg).await;
    subscribe(&session, "news", "keep").await;
    run(
        &session,
        "CREATE SERVER away FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '1');
         SET litmus_pgnats.server = 'away'; SELECT nats_subscribe('far', 'keep')",
    )
    .await;
    until_state(&session, "far", "waiting").await;
    // A message that comes during the look need not wait for it to take effect either.
    let holder = scene.pg.connect().await;
    run(&holder, "BEGIN; LOCK TABLE litmus_pgnats.outbox_batch").await;
    run(&session, "SELECT nats_subscribe('farther', 'keep')").await;
    let looks =
        format!("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE backend_type = '{EXECUTOR}'");
    eventually_eq(SOON, "t".to_owned(), async || scene.pg.sql(&looks).await).await;
    let client = scene.nats.client().await;
    say(&client, "news", "0").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    run(&holder, "ROLLBACK").await;
    // The one that has found it is free again only after three seconds if it waits for it.
    let mut slowest = Duration::ZERO;
    for n in 1..=20_usize {
        let said = Instant::now();
        eventually_eq(SOON, n, async || got(&session).await.len()).await;
        slowest = slowest.max(said.elapsed());
        say(&client, "news", n.to_string()).await;
    }
    println!("the slowest of 20 messages took {slowest:?}");
    assert!(slowest < 2 * PROMPT, "{slowest:?}");
}
