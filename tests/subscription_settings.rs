//! Settings of server and database: callbacks run with those of now, and none of them keeps the workers from working.

mod handlers;
mod scene;
mod support;

use std::time::Duration;

use handlers::*;
use scene::*;
use support::*;

const SHOW: &str = "CREATE FUNCTION show(q text) RETURNS text LANGUAGE plpgsql AS
     $$ BEGIN RETURN current_setting(q); END $$";

/// A change of postgresql.conf, of the database and of a role counts for the messages that come after.
#[tokio::test]
async fn settings_are_those_of_now() {
    let (scene, session) = Scene::keeping().await;
    run(&session, SHOW).await;
    run(
        &session,
        "CREATE ROLE shop; GRANT USAGE ON FOREIGN SERVER nats TO shop",
    )
    .await;
    respond(&session, "show", "show").await;
    run(
        &session,
        "SET ROLE shop; SELECT litmus_pgnats_register_responder('show.shop', 'show'); RESET ROLE",
    )
    .await;
    until_live(&session, "show.shop").await;
    let client = scene.nats.client().await;
    let shown = async |subject: &str| reply_text(&ask(&client, subject, "work_mem").await);
    for subject in ["show", "show.shop"] {
        assert_eq!(shown(subject).await, "4MB");
    }
    scene.pg.append_conf("work_mem", "5MB");
    scene.pg.reload();
    for subject in ["show", "show.shop"] {
        eventually_eq(SOON, "5MB".to_owned(), async || shown(subject).await).await;
    }
    run(&session, "ALTER DATABASE postgres SET work_mem = '6MB'").await;
    for subject in ["show", "show.shop"] {
        eventually_eq(SOON, "6MB".to_owned(), async || shown(subject).await).await;
    }
    run(
        &session,
        "ALTER ROLE ALL SET work_mem = '7MB'; ALTER DATABASE postgres RESET work_mem",
    )
    .await;
    for subject in ["show", "show.shop"] {
        eventually_eq(SOON, "7MB".to_owned(), async || shown(subject).await).await;
    }
    run(&session, "ALTER ROLE shop SET work_mem = '8MB'").await;
    eventually_eq(SOON, "8MB".to_owned(), async || shown("show.shop").await).await;
    assert_eq!(shown("show").await, "7MB");
    run(
        &session,
        "ALTER ROLE ALL RESET work_mem; ALTER ROLE shop RESET ALL",
    )
    .await;
    for subject in ["show", "show.shop"] {
        eventually_eq(SOON, "5MB".to_owned(), async || shown(subject).await).await;
    }
}

/// Time-outs that the whole server has hold in callbacks, and do not end the workers between them.
#[tokio::test]
async fn timeouts_of_the_server() {
    let (mut scene, _) = Scene::keeping().await;
    for (name, time) in [
        ("statement_timeout", "1s"),
        ("idle_session_timeout", "700ms"),
        ("idle_in_transaction_session_timeout", "700ms"),
        ("lock_timeout", "500ms"),
    ] {
        scene.pg.append_conf(name, time);
    }
    scene.pg.restart(Stop::Fast).await;
    let session = scene.pg.connect().await;
    run(
        &session,
        "SET idle_session_timeout = 0; SET statement_timeout = 0;
         CREATE FUNCTION nap(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(60)'",
    )
    .await;
    subscribe(&session, "nap", "nap").await;
    subscribe(&session, "news", "keep").await;
    let client = scene.nats.client().await;
    say(&client, "news", "1").await;
    until_got(&session, &["1"]).await;
    let executor = scene.executor().await;
    say(&client, "nap", "x").await;
    until_errors(&session, "nap", 1).await;
    let last = "SELECT last_error FROM litmus_pgnats.subscriptions WHERE subject = 'nap'";
    let timed_out = texts(&session, last).await;
    assert!(timed_out[0].contains("57014"), "{timed_out:?}");
    // A lock that is not to be had.
    run(&session, "BEGIN; LOCK got").await;
    say(&client, "news", "2").await;
    until_errors(&session, "news", 1).await;
    run(&session, "ROLLBACK").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    say(&client, "news", "3").await;
    until_got(&session, &["1", "3"]).await;
    assert_eq!(scene.executors().await, [executor]);
}

/// A server that is read only for the moment: what reads works, what writes says why not, and all is well afterwards.
#[tokio::test]
async fn a_server_that_is_read_only() {
    let (mut scene, session) = Scene::keeping().await;
    run(&session, SHOW).await;
    subscribe(&session, "news", "keep").await;
    respond(&session, "show", "show").await;
    scene.pg.append_conf("default_transaction_read_only", "on");
    scene.pg.restart(Stop::Fast).await;
    let session = scene.pg.connect().await;
    until_live(&session, "news").await;
    until_live(&session, "show").await;
    let client = scene.nats.client().await;
    let read_only = reply_text(&ask(&client, "show", "transaction_read_only").await);
    assert_eq!(read_only, "on");
    say(&client, "news", "1").await;
    until_errors(&session, "news", 1).await;
    let (report, _) = refused(&session, "SELECT nats_subscribe('more', 'keep')").await;
    assert_eq!(report.code, "25006", "{report:?}");
    scene.pg.append_conf("default_transaction_read_only", "off");
    scene.pg.reload();
    eventually(SOON, async || {
        say(&client, "news", "2").await;
        !got(&session).await.is_empty()
    })
    .await;
}

/// A database that lets nobody in any more has no executor, and nobody tries again and again.
#[tokio::test]
async fn a_database_that_allows_no_connections() {
    let (mut scene, session) = Scene::keeping().await;
    subscribe(&session, "own", "keep").await;
    let other = scene.database("closed").await;
    subscribe(&other, "closed", "keep").await;
    other.close().await;
    run(&session, "ALTER DATABASE closed ALLOW_CONNECTIONS false").await;
    scene.pg.restart(Stop::Fast).await;
    let session = scene.pg.connect().await;
    until_live(&session, "own").await;
    let client = scene.nats.client().await;
    say(&client, "own", "1").await;
    until_got(&session, &["1"]).await;
    let mark = scene.pg.log().len();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let log = scene.pg.log();
    let lines = log[mark..]
        .lines()
        .filter(|line| line.contains("closed") || line.contains("FATAL"))
        .count();
    assert!(lines <= 3, "{lines} lines in 4 s: {}", &log[mark..]);
    assert_eq!(scene.executor_databases().await, ["postgres"]);
    // Open again, a call brings the handlers back.
    run(&session, "ALTER DATABASE closed ALLOW_CONNECTIONS true").await;
    let other = scene.pg.connect_as("postgres", "closed").await;
    run(&other, "SELECT nats_publish_text('x', '')").await;
    until_live(&other, "closed").await;
    say(&client, "closed", "2").await;
    until_got(&other, &["2"]).await;
}

/// Custom parameters are known to no catalogue, but rules of row security go by them: a handler has its own role's, and
/// nothing of what the bootstrap superuser has set for itself.
#[tokio::test]
async fn custom_parameters_are_those_of_the_role() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE TABLE stock (tenant text, item text);
         INSERT INTO stock VALUES ('7', 'of the superuser'), ('42', 'of shop'), ('9', 'of the database');
         ALTER TABLE stock ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON stock USING (tenant = current_setting('app.tenant', true));
         GRANT SELECT ON stock TO PUBLIC;
         CREATE FUNCTION look(q text) RETURNS text LANGUAGE sql STABLE AS
           $$ SELECT concat_ws(' ', (SELECT string_agg(item, ', ') FROM public.stock), current_setting(q, true)) $$;
         CREATE ROLE shop; CREATE ROLE other; GRANT USAGE ON FOREIGN SERVER nats TO shop, other;
         ALTER ROLE postgres SET app.tenant = '7'; ALTER ROLE postgres SET \"App.Secret\" = 'sesame';
         ALTER ROLE shop SET app.tenant = '42'; ALTER ROLE shop SET other_app.\"Mixed\" = 'case'",
    )
    .await;
    for role in ["shop", "other"] {
        let register =
            format!("SET ROLE {role}; SELECT litmus_pgnats_register_responder('{role}', 'look'); RESET ROLE");
        run(&session, &register).await;
        until_live(&session, role).await;
    }
    respond(&session, "superuser", "look").await;
    let client = scene.nats.client().await;
    let seen = async |role: &str, parameter: &str| reply_text(&ask(&client, role, parameter).await);
    assert_eq!(seen("shop", "app.tenant").await, "of shop 42");
    assert_eq!(seen("shop", "other_app.mixed").await, "of shop case");
    assert_eq!(seen("shop", "app.secret").await, "of shop ");
    assert_eq!(seen("other", "app.tenant").await, "");
    assert_eq!(seen("other", "app.secret").await, "");
    assert!(seen("superuser", "app.secret").await.ends_with("sesame"));
    // What changes while the executors are there.
    run(
        &session,
        "ALTER DATABASE postgres SET app.tenant = '9'; ALTER ROLE shop IN DATABASE postgres SET app.tenant = '7'",
    )
    .await;
    assert_eq!(seen("other", "app.tenant").await, "of the database 9");
    assert_eq!(seen("shop", "app.tenant").await, "of the superuser 7");
    run(&session, "ALTER ROLE shop IN DATABASE postgres RESET ALL").await;
    assert_eq!(seen("shop", "app.tenant").await, "of shop 42");
    run(&session, "ALTER ROLE shop RESET ALL").await;
    assert_eq!(seen("shop", "app.tenant").await, "of the database 9");
}

/// A parameter that cannot be set any more is a warning at each change of the settings, as at a login, and not at each message.
#[tokio::test]
async fn a_parameter_that_is_gone_is_warned_of_once() {
    let (scene, session) = Scene::keeping().await;
    // Nothing has loaded PL/pgSQL here, which reserves the prefix.
    run(
        &session,
        "ALTER ROLE postgres SET plpgsql.nonsense = 'x'; ALTER ROLE postgres SET default_transaction_isolation = 'serializable'",
    )
    .await;
    run(
        &session,
        "CREATE FUNCTION keep_slowly(msg bytea) RETURNS void LANGUAGE plpgsql AS
           $$ BEGIN INSERT INTO public.got (payload) VALUES (convert_from(msg, 'utf8')); END $$",
    )
    .await;
    subscribe(&session, "news", "keep_slowly").await;
    let client = scene.nats.client().await;
    for n in 1..=9 {
        say(&client, "news", n.to_string()).await;
        until_number(&session, n, "SELECT count(*) FROM got").await;
    }
    let log = scene.pg.log();
    assert!(!log.contains("must be called before any query"), "{log}");
    let warnings: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(EXECUTOR) && line.contains("WARNING:  invalid configuration parameter"))
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
}
