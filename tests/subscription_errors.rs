//! A message whose callback fails leaves nothing, is logged and counted, and disturbs no other message.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::proc;
use support::*;

/// Keeps the message, and then fails with every tenth.
const PICKY: &str = "CREATE FUNCTION picky(msg text) RETURNS void LANGUAGE plpgsql AS $$
     BEGIN
       INSERT INTO got (payload) VALUES (msg);
       IF msg ~ '0$' THEN
         PERFORM 1 / 0;
       END IF;
     END $$";

fn without_tens(last: usize) -> Vec<String> {
    let numbers = numbers(1..=last);
    numbers.into_iter().filter(|n| !n.ends_with('0')).collect()
}

/// Every tenth fails after it has written: all others are there, in order, and nothing of the failed ones.
#[tokio::test]
async fn a_poison_message_every_tenth() {
    let (scene, session) = Scene::keeping().await;
    run(&session, PICKY).await;
    subscribe(&session, "p", "picky").await;
    count_off(&scene.nats.client().await, "p", 1..=2000).await;
    until_errors(&session, "p", 200).await;
    eventually_eq(LONG, without_tens(2000), async || got(&session).await).await;
    let counts = counts(&session, "p").await;
    assert_eq!(
        (counts.errors, counts.dropped, counts.queued),
        (200, 0, 0),
        "{counts:?}"
    );
    let row = session
        .query_one(
            "SELECT last_error, last_error_at > now() - interval '2 minutes' AND last_error_at <= clock_timestamp()
             FROM litmus_pgnats.subscriptions",
            &[],
        )
        .await
        .expect("the view");
    assert!(row.get::<_, String>(0).contains("division by zero"));
    assert!(
        row.get::<_, bool>(1),
        "last_error_at is not the time of the error"
    );
}

/// The log says what an administrator needs: subject, function, SQLSTATE and where in the function it was.
#[tokio::test]
async fn an_error_is_logged() {
    let (scene, session) = Scene::keeping().await;
    run(&session, PICKY).await;
    subscribe(&session, "poisonous.subject", "picky").await;
    let mark = scene.pg.log().len();
    say(&scene.nats.client().await, "poisonous.subject", "10").await;
    let line = scene.pg.wait_log_after(mark, "poisonous.subject", SOON).await;
    assert!(!line.contains("PANIC") && !line.contains("FATAL"), "{line}");
    scene.pg.wait_log_after(mark, "PL/pgSQL function", SOON).await;
    let log = scene.pg.log();
    for part in ["picky", "22012", "division by zero", "PERFORM"] {
        assert!(log[mark..].contains(part), "no {part} in {}", &log[mark..]);
    }
}

/// Thousands of errors are thousands in the count, but not in the log.
#[tokio::test]
async fn the_log_is_not_flooded() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION fail(msg text) RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN RAISE EXCEPTION 'message % fails', msg USING ERRCODE = 'ZX123'; END $$",
    )
    .await;
    subscribe(&session, "f", "fail").await;
    let mark = scene.pg.log().len();
    count_off(&scene.nats.client().await, "f", 1..=5000).await;
    until_errors(&session, "f", 5000).await;
    let log = scene.pg.log();
    let lines = log[mark..].lines().filter(|line| line.contains("ZX123")).count();
    let all = log[mark..].lines().count();
    println!("5,000 errors: {lines} of {all} lines in the log");
    assert!((1..=100).contains(&lines), "{lines} lines");
    assert!(all < 1000, "{all} lines");
    let last = texts(&session, "SELECT last_error FROM litmus_pgnats.subscriptions").await;
    assert!(last[0].contains("message 5000 fails"), "{last:?}");
}

/// Duplicates are refused by a UNIQUE constraint, and only they.
#[tokio::test]
async fn a_unique_constraint_holds() {
    let (scene, session) = Scene::keeping().await;
    run(&session, "CREATE UNIQUE INDEX ON got (payload)").await;
    subscribe(&session, "u", "keep").await;
    let client = scene.nats.client().await;
    for n in 1..=500 {
        publish(&client, "u", n.to_string().into()).await;
        publish(&client, "u", (n / 2 + 1).to_string().into()).await;
    }
    round_trip(&client).await;
    until_errors(&session, "u", 500).await;
    eventually_eq(SOON, numbers(1..=500), async || got(&session).await).await;
}

/// An error that shows at the end of the transaction: a deferred constraint fails for its own message alone.
#[tokio::test]
async fn an_error_at_commit() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE TABLE known (n text PRIMARY KEY);
         INSERT INTO known SELECT n::text FROM generate_series(1, 300) n WHERE n % 10 <> 0;
         ALTER TABLE got ADD FOREIGN KEY (payload) REFERENCES known DEFERRABLE INITIALLY DEFERRED",
    )
    .await;
    subscribe(&session, "late", "keep").await;
    let mark = scene.pg.log().len();
    count_off(&scene.nats.client().await, "late", 1..=300).await;
    until_errors(&session, "late", 30).await;
    eventually_eq(SOON, without_tens(300), async || got(&session).await).await;
    scene.pg.wait_log_after(mark, "23503", SOON).await;
}

/// A payload that is not of the function's type fails as its own message.
#[tokio::test]
async fn payloads_of_the_wrong_form() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    for kind in ["text", "json", "jsonb"] {
        let sql = format!(
            "CREATE FUNCTION keep_{kind}(msg {kind}) RETURNS void LANGUAGE sql AS
               $$ INSERT INTO got (payload) VALUES (msg::text) $$"
        );
        run(&session, &sql).await;
        subscribe(&session, kind, &format!("keep_{kind}")).await;
        for payload in [&b"\"a\""[..], b"\"\xff\"", b"\"b\"", b"\"\0\"", b"\"c\""] {
            say(&client, kind, payload).await;
        }
        until_errors(&session, kind, 2).await;
        until_got(&session, &["\"a\"", "\"b\"", "\"c\""]).await;
        if kind != "text" {
            for payload in ["", "{", "{} trailing", "nonsense"] {
                say(&client, kind, payload).await;
            }
            until_errors(&session, kind, 6).await;
        }
        say(&client, kind, "\"d\"").await;
        until_got(&session, &["\"a\"", "\"b\"", "\"c\"", "\"d\""]).await;
        run(&session, "TRUNCATE got").await;
    }
}

/// Errors of every kind, each between two messages that work.
#[tokio::test]
async fn every_kind_of_error() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION endless(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN endless(n + 1); END';
         CREATE FUNCTION run_it(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO got (payload) VALUES (msg);
           EXECUTE msg;
         END $$",
    )
    .await;
    subscribe(&session, "run", "run_it").await;
    let client = scene.nats.client().await;
    let mut expected = Vec::new();
    let failing = [
        "SELECT 1 / 0",
        "SELECT * FROM no_such_table",
        "not even SQL",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "VACUUM got",
        "SELECT endless(1)",
        "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)",
        "DO $do$ BEGIN RAISE EXCEPTION E'several\\nlines, %%s %%n and \\x7f' USING ERRCODE = 'XX000'; END $do$",
        "DO $do$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P01', MESSAGE = 'as if terminated'; END $do$",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1; FETCH 1000 FROM nothing",
        "COPY got FROM STDIN",
    ];
    for (n, sql) in failing.into_iter().enumerate() {
        say(&client, "run", sql).await;
        let good = format!("SELECT {n}");
        say(&client, "run", &*good).await;
        expected.push(good);
        eventually_eq(SOON, expected.clone(), async || got(&session).await).await;
        let failed = i64::try_from(n).expect("a small number") + 1;
        until_errors(&session, "run", failed).await;
    }
    // An error that the callback handles is none.
    let handled = "DO $do$ BEGIN PERFORM 1 / 0; EXCEPTION WHEN OTHERS THEN NULL; END $do$";
    say(&client, "run", handled).await;
    expected.push(handled.into());
    eventually_eq(SOON, expected, async || got(&session).await).await;
    let failed = i64::try_from(failing.len()).expect("a small number");
    assert_eq!(counts(&session, "run").await.errors, failed);
}

/// pg_cancel_backend on an executor ends the callback that runs, and that alone.
#[tokio::test]
async fn cancelling_a_callback() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION stuck(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO got (payload) VALUES (msg);
           IF msg = 'stuck' THEN PERFORM pg_sleep(600); END IF;
         END $$",
    )
    .await;
    subscribe(&session, "s", "stuck").await;
    let client = scene.nats.client().await;
    for payload in ["before", "stuck", "after"] {
        say(&client, "s", payload).await;
    }
    let executor = scene.until_sleeping().await;
    run(&session, &format!("SELECT pg_cancel_backend({executor})")).await;
    until_got(&session, &["before", "after"]).await;
    until_errors(&session, "s", 1).await;
    let last = texts(&session, "SELECT last_error FROM litmus_pgnats.subscriptions").await;
    assert!(last[0].contains("cancel"), "{last:?}");
    assert!(proc::alive(executor), "the executor ended");
    // A cancel that finds nothing to cancel does nothing.
    run(&session, &format!("SELECT pg_cancel_backend({executor})")).await;
    say(&client, "s", "idle").await;
    until_got(&session, &["before", "after", "idle"]).await;
    assert_eq!(counts(&session, "s").await.errors, 1);
}
