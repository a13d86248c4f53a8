//! Attempts of a callback to become more than the role that registered it, and to leave something for the next one.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

/// A role `thief` that runs SQL from messages on subject `run`, and notes who it is on subject `who`.
async fn a_thief(pg: PostgresBuilder) -> (Scene, Session, async_nats::Client) {
    let (scene, session) = Scene::keeping_with(pg).await;
    run(
        &session,
        "CREATE ROLE thief LOGIN; GRANT USAGE ON FOREIGN SERVER nats TO thief;
         GRANT CREATE, USAGE ON SCHEMA public TO thief; GRANT INSERT ON got TO thief; CREATE TABLE secrets (x text);
         CREATE FUNCTION run_it(msg text) RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE msg; END';
         CREATE FUNCTION who(msg text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.got (payload) VALUES (current_user || ' ' || session_user || ' ' || msg) $$",
    )
    .await;
    let thief = scene.pg.connect_as("thief", "postgres").await;
    run(
        &thief,
        "SELECT nats_subscribe('run', 'run_it'), nats_subscribe('who', 'who')",
    )
    .await;
    until_live(&session, "run").await;
    until_live(&session, "who").await;
    let client = scene.nats.client().await;
    (scene, session, client)
}

const HARMLESS: &str =
    "SELECT (SELECT count(*) FROM secrets) + (SELECT count(*) FROM pg_roles WHERE rolsuper)
                               + (SELECT count(*) FROM pg_roles WHERE rolname = 'evil')";

/// Every way back to the user whom the worker belongs to is closed.
#[tokio::test]
async fn changing_the_role() {
    let (_scene, session, client) =
        a_thief(Postgres::builder().conf("litmus_pgnats.max_executors", "1")).await;
    let steal = "CREATE ROLE evil SUPERUSER";
    let attempts = [
        "SET ROLE postgres",
        "RESET ROLE",
        "SET ROLE none",
        "SET SESSION AUTHORIZATION postgres",
        "RESET SESSION AUTHORIZATION",
        "SET SESSION AUTHORIZATION DEFAULT",
        "SELECT set_config('role', 'postgres', false)",
        "SELECT set_config('role', 'none', true)",
        "SELECT set_config('session_authorization', 'postgres', false)",
        "ALTER ROLE thief SUPERUSER",
        "ALTER SYSTEM SET shared_preload_libraries = ''",
    ];
    for (n, attempt) in attempts.into_iter().enumerate() {
        // Alone, and followed by what it would be good for: in the same statement, and by the next message.
        say(&client, "run", attempt).await;
        say(&client, "run", format!("{attempt}; {steal}")).await;
        say(&client, "run", steal).await;
        say(&client, "run", "INSERT INTO secrets VALUES ('stolen')").await;
        let n = i64::try_from(n).expect("a small number") + 1;
        until_errors(&session, "run", 4 * n).await;
        assert_eq!(number(&session, HARMLESS).await, 1, "{attempt}");
    }
    say(&client, "who", "still").await;
    eventually(SOON, async || {
        let got = got(&session).await;
        got.last()
            .is_some_and(|seen| seen.starts_with("thief ") && seen.ends_with(" still"))
    })
    .await;
}

/// Settings that a role may store for itself give it nothing that it could not have in a session.
#[tokio::test]
async fn settings_of_the_role() {
    let (scene, session, client) = a_thief(Postgres::builder()).await;
    let thief = scene.pg.connect_as("thief", "postgres").await;
    for (name, value) in [
        ("role", "postgres"),
        ("session_authorization", "postgres"),
        ("session_replication_role", "replica"),
        ("local_preload_libraries", "plpgsql"),
        ("log_statement", "all"),
        ("litmus_pgnats.max_executors", "1000"),
    ] {
        // Refused, or not heeded.
        let stored = thief
            .batch_execute(&format!("ALTER ROLE thief SET {name} = '{value}'"))
            .await;
        println!("{name}: {:?}", stored.as_ref().err().map(db_error));
    }
    let mark = scene.pg.log().len();
    say(&client, "run", "INSERT INTO public.secrets VALUES ('stolen')").await;
    say(&client, "run", "CREATE ROLE evil SUPERUSER").await;
    until_errors(&session, "run", 2).await;
    for _ in 0..100 {
        say(&client, "who", "am I").await;
    }
    eventually_eq(SOON, 100, async || got(&session).await.len()).await;
    let others = "SELECT count(*) FROM got WHERE payload NOT LIKE 'thief % am I'";
    assert_eq!(number(&session, others).await, 0);
    assert_eq!(number(&session, HARMLESS).await, 1);
    // What is no longer valid is said once, as it is at login, and not with each message.
    let lines = scene.pg.log()[mark..].lines().count();
    assert!(lines < 60, "{lines} lines in the log");
}

/// What runs at the end of the transaction runs as the role too: deferred triggers above all.
#[tokio::test]
async fn deferred_triggers() {
    let (_scene, session, client) = a_thief(Postgres::builder()).await;
    run(
        &session,
        "SET ROLE thief;
         CREATE TABLE trap (payload text);
         CREATE FUNCTION spring() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO public.got (payload) VALUES ('deferred as ' || current_user);
           BEGIN
             EXECUTE NEW.payload;
           EXCEPTION WHEN OTHERS THEN
             INSERT INTO public.got (payload) VALUES ('refused ' || SQLSTATE);
           END;
           RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER spring AFTER INSERT ON trap DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION spring();
         RESET ROLE",
    )
    .await;
    let mut expected = Vec::new();
    for attempt in [
        "CREATE ROLE evil SUPERUSER",
        "INSERT INTO public.secrets VALUES (1)",
        "RESET ROLE; CREATE ROLE evil SUPERUSER",
        "RESET SESSION AUTHORIZATION; CREATE ROLE evil SUPERUSER",
    ] {
        say(
            &client,
            "run",
            format!("INSERT INTO public.trap VALUES ($q${attempt}$q$)"),
        )
        .await;
        expected.extend(["deferred as thief", "refused 42501"]);
        until_got(&session, &expected).await;
        assert_eq!(number(&session, HARMLESS).await, 1, "{attempt}");
    }
    assert_eq!(counts(&session, "run").await.errors, 0);
    // Deferring again is refused or does not help.
    let defer = "SET CONSTRAINTS ALL DEFERRED; INSERT INTO public.trap VALUES ('CREATE ROLE evil SUPERUSER')";
    for _ in 0..5 {
        say(&client, "run", defer).await;
    }
    say(&client, "who", "am I").await;
    eventually(SOON, async || {
        got(&session).await.iter().any(|seen| seen.ends_with("am I"))
    })
    .await;
    eventually(SOON, async || counts(&session, "run").await.queued == 0).await;
    assert_eq!(number(&session, HARMLESS).await, 1);
    let others =
        "SELECT count(*) FROM got WHERE payload LIKE 'deferred as %' AND payload <> 'deferred as thief'";
    assert_eq!(number(&session, others).await, 0);
}

/// What one role's callback sets, locks or prepares, the next one's does not meet.
#[tokio::test]
async fn an_executor_keeps_nothing_for_the_next_role() {
    let (_scene, session, client) =
        a_thief(Postgres::builder().conf("litmus_pgnats.max_executors", "1")).await;
    // The superuser's own callback calls functions without schema, and would find the thief's first.
    run(
        &session,
        "GRANT CREATE ON DATABASE postgres TO thief;
         CREATE FUNCTION public.greet() RETURNS text LANGUAGE sql AS $$ SELECT 'hello' $$;
         CREATE FUNCTION trusting(msg text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO public.got (payload) VALUES (concat_ws(' ', greet(), current_setting('search_path'),
             current_setting('work_mem'), nullif(current_setting('thief.mark', true), ''), current_user));
         END $$;
         SELECT nats_subscribe('trusting', 'trusting')",
    )
    .await;
    until_live(&session, "trusting").await;
    say(&client, "trusting", "").await;
    let honest = "hello \"$user\", public 4MB postgres";
    until_got(&session, &[honest]).await;
    let leavings = [
        "CREATE SCHEMA evil",
        "CREATE FUNCTION evil.greet() RETURNS text LANGUAGE plpgsql AS $f$ BEGIN
           INSERT INTO public.secrets VALUES ('as ' || current_user); RETURN 'evil'; END $f$",
        "GRANT USAGE ON SCHEMA evil TO PUBLIC",
        "SET search_path = evil, public",
        "SELECT set_config('search_path', 'evil, public', false)",
        "SELECT set_config('work_mem', '64kB', false), set_config('thief.mark', 'was here', false)",
        "SET statement_timeout = 1",
        "SET default_transaction_read_only = on",
        "SET session_replication_role = replica",
        "CREATE TEMPORARY TABLE got (payload text)",
        "SELECT pg_advisory_lock(42)",
        "PREPARE p AS SELECT 1",
        "LISTEN thief",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    ];
    for leaving in leavings {
        say(&client, "run", leaving).await;
    }
    eventually(SOON, async || counts(&session, "run").await.queued == 0).await;
    say(&client, "who", "done").await;
    eventually_eq(SOON, 2, async || got(&session).await.len()).await;
    run(&session, "TRUNCATE got").await;
    for _ in 0..2 {
        say(&client, "trusting", "").await;
    }
    until_got(&session, &[honest, honest]).await;
    assert_eq!(number(&session, HARMLESS).await, 1);
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    until_number(&session, 0, locks).await;
}

/// Nothing can be left in the executor's session by way of temporary objects.
#[tokio::test]
async fn temporary_objects_are_refused() {
    let (_scene, session, client) = a_thief(Postgres::builder()).await;
    for (n, sql) in [
        "CREATE TEMPORARY TABLE t ()",
        "CREATE TEMPORARY VIEW v AS SELECT 1",
        "DISCARD ALL",
        "CREATE TABLE pg_temp.t ()",
        "LOAD 'plpgsql'",
    ]
    .into_iter()
    .enumerate()
    {
        say(&client, "run", sql).await;
        let n = i64::try_from(n).expect("a small number") + 1;
        until_errors(&session, "run", n).await;
    }
}

/// A registration within a function of somebody else's rights is that role's, as every other object would be.
#[tokio::test]
async fn security_definer_functions() {
    let (_scene, session, client) = a_thief(Postgres::builder()).await;
    run(
        &session,
        "CREATE FUNCTION for_me() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public AS
           $$ SELECT nats_subscribe('definer', 'who') $$;
         SET ROLE thief; SELECT for_me(); RESET ROLE",
    )
    .await;
    until_live(&session, "definer").await;
    let roles = "SELECT role::text FROM litmus_pgnats.subscriptions WHERE subject = 'definer'";
    assert_eq!(texts(&session, roles).await, ["postgres"]);
    say(&client, "definer", "1").await;
    eventually(SOON, async || {
        let got = got(&session).await;
        got.len() == 1 && got[0].starts_with("postgres ")
    })
    .await;
}
