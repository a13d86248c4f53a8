//! A handler follows its function, schema, server and role when they are renamed, and ends with them.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

const REGISTERED: &str = "SELECT subject FROM litmus_pgnats.handler ORDER BY subject";
const FUNCTION: &str = "SELECT function FROM litmus_pgnats.subscriptions";

/// Functions of every kind that a drop may meet: subscriptions `drop.<kind>`, and one that stays.
async fn several() -> (Scene, Session) {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE ROLE owner; CREATE SCHEMA attic AUTHORIZATION owner; GRANT USAGE ON FOREIGN SERVER nats TO owner;
         CREATE FUNCTION plain(msg bytea) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION over(msg bytea) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION over(msg text) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION attic.in_schema(msg bytea) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION owned(msg bytea) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION answers(q text) RETURNS text LANGUAGE sql AS 'SELECT q';
         ALTER FUNCTION owned OWNER TO owner;
         SELECT nats_subscribe('stays', 'keep');
         SELECT nats_subscribe('drop.plain', 'plain');
         SELECT nats_subscribe('drop.over.bytea', 'over(bytea)'::regprocedure);
         SELECT nats_subscribe('drop.over.text', 'over(text)'::regprocedure);
         SELECT nats_subscribe('drop.schema', 'attic.in_schema');
         SELECT nats_subscribe('drop.owned', 'owned');
         SELECT litmus_pgnats_register_responder('drop.responder', 'answers')",
    )
    .await;
    for subject in ["stays", "drop.plain", "drop.responder"] {
        until_live(&session, subject).await;
    }
    (scene, session)
}

/// That just these subjects are left, in the table and in NATS.
#[track_caller]
fn left(scene: &Scene, session: &Session, subjects: &[&str]) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let expected: Vec<String> = subjects.iter().map(|&subject| subject.to_owned()).collect();
    async move {
        assert_eq!(texts(session, REGISTERED).await, expected, "{caller}");
        eventually_eq(SOON, expected, async || scene.subjects().await).await;
    }
}

/// Whatever drops a function takes its handlers along, and nobody else's.
#[tokio::test]
async fn dropping_the_function() {
    let (scene, session) = several().await;
    let mut all = vec![
        "drop.over.bytea",
        "drop.over.text",
        "drop.owned",
        "drop.plain",
        "drop.responder",
        "drop.schema",
        "stays",
    ];
    left(&scene, &session, &all).await;
    for (sql, gone) in [
        ("DROP FUNCTION over(text)", "drop.over.text"),
        ("DROP FUNCTION plain", "drop.plain"),
        ("DROP ROUTINE answers(text)", "drop.responder"),
        ("DROP SCHEMA attic CASCADE", "drop.schema"),
        ("DROP OWNED BY owner CASCADE", "drop.owned"),
        (
            "DROP FUNCTION IF EXISTS over(bytea), no_such_function(int)",
            "drop.over.bytea",
        ),
    ] {
        run(&session, &format!("BEGIN; {sql}; ROLLBACK")).await;
        assert_eq!(
            texts(&session, REGISTERED).await,
            all,
            "after a rolled back {sql}"
        );
        session.take_notices();
        run(&session, sql).await;
        let said = format!("on subject \"{gone}\" ends with its function");
        let notices = session.take_notices();
        assert!(
            notices.iter().any(|n| n.message.contains(&said)),
            "{sql}: {notices:?}"
        );
        all.retain(|subject| *subject != gone);
        left(&scene, &session, &all).await;
    }
    say(&scene.nats.client().await, "stays", "1").await;
    until_got(&session, &["1"]).await;
}

/// Dropped while it runs and while messages wait for it.
#[tokio::test]
async fn dropping_a_busy_function() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION slow(msg bytea) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.2)'",
    )
    .await;
    subscribe(&session, "slow", "slow").await;
    subscribe(&session, "stays", "keep").await;
    let client = scene.nats.client().await;
    count_off(&client, "slow", 1..=1000).await;
    scene.until_sleeping().await;
    run(&session, "DROP FUNCTION slow").await;
    left(&scene, &session, &["stays"]).await;
    say(&client, "stays", "1").await;
    until_got(&session, &["1"]).await;
    eventually(SOON, async || scene.sleeping().await.is_empty()).await;
}

/// A new body counts from the next message on; a function that was dropped, and then made anew, is another one.
#[tokio::test]
async fn replacing_the_function() {
    let (scene, session) = Scene::keeping().await;
    subscribe(&session, "a", "keep").await;
    let client = scene.nats.client().await;
    say(&client, "a", "1").await;
    until_got(&session, &["1"]).await;
    let new = |word: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION keep(msg bytea) RETURNS void LANGUAGE sql AS
               $$ INSERT INTO public.got (payload) VALUES ('{word} ' || convert_from(msg, 'utf8')) $$"
        )
    };
    run(&session, &new("new")).await;
    say(&client, "a", "2").await;
    until_got(&session, &["1", "new 2"]).await;
    run(&session, "DROP FUNCTION keep").await;
    run(&session, &new("other")).await;
    left(&scene, &session, &[]).await;
}

/// Messages go on arriving under every new name, and the view shows it.
#[tokio::test]
async fn renaming() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE SCHEMA attic; CREATE ROLE owner; GRANT USAGE ON FOREIGN SERVER nats TO owner;
         GRANT INSERT ON got TO owner; SET ROLE owner; SELECT nats_subscribe('a', 'keep'); RESET ROLE",
    )
    .await;
    until_live(&session, "a").await;
    let client = scene.nats.client().await;
    let mut expected: Vec<String> = Vec::new();
    for (sql, what, value) in [
        ("ALTER FUNCTION keep RENAME TO keep_all", FUNCTION, "keep_all"),
        (
            "ALTER FUNCTION keep_all SET SCHEMA attic; GRANT USAGE ON SCHEMA attic TO owner",
            FUNCTION,
            "attic",
        ),
        ("ALTER SCHEMA attic RENAME TO \"the Loft\"", FUNCTION, "the Loft"),
        (
            "ALTER ROUTINE \"the Loft\".keep_all(bytea) RENAME TO \"keep 'it'\"",
            FUNCTION,
            "keep 'it'",
        ),
        (
            "ALTER SERVER nats RENAME TO \"other nats\"",
            "SELECT server FROM litmus_pgnats.subscriptions",
            "other nats",
        ),
        (
            "ALTER ROLE owner RENAME TO \"new Owner\"",
            "SELECT role::text FROM litmus_pgnats.subscriptions",
            "new Owner",
        ),
    ] {
        run(&session, sql).await;
        // The session's next call waits until the change has been taken up.
        run(&session, "SELECT nats_publish_text('x', '')").await;
        until_live(&session, "a").await;
        let seen = texts(&session, what).await;
        assert!(seen.len() == 1 && seen[0].contains(value), "{sql}: {seen:?}");
        say(&client, "a", sql).await;
        expected.push(sql.to_owned());
        eventually_eq(SOON, expected.clone(), async || got(&session).await).await;
    }
    // What was renamed back in time never changed.
    run(
        &session,
        "BEGIN; ALTER FUNCTION \"the Loft\".\"keep 'it'\" RENAME TO x; ROLLBACK",
    )
    .await;
    say(&client, "a", "last").await;
    expected.push("last".into());
    eventually_eq(SOON, expected, async || got(&session).await).await;
    // Under its new name it can be taken back.
    run(
        &session,
        "SELECT nats_unsubscribe('a', '\"the Loft\".\"keep ''it''\"')",
    )
    .await;
    left(&scene, &session, &[]).await;
}

/// Names that change faster than anybody can look lose no handler.
#[tokio::test]
async fn renaming_in_quick_succession() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE SCHEMA a; ALTER FUNCTION keep SET SCHEMA a;
         CREATE FUNCTION public.other(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    .await;
    subscribe(&session, "s", "a.keep").await;
    let ended = std::sync::atomic::AtomicBool::new(false);
    let renaming = async {
        for _ in 0..100 {
            for sql in [
                "ALTER FUNCTION a.keep RENAME TO kept",
                "ALTER SCHEMA a RENAME TO b",
                "ALTER FUNCTION b.kept RENAME TO keep",
                "ALTER SERVER nats RENAME TO other",
                "ALTER SCHEMA b RENAME TO a",
                "ALTER SERVER other RENAME TO nats",
            ] {
                run(&session, sql).await;
            }
        }
        ended.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    // Others have the handlers looked at all the time.
    let looking = (0..3).map(async |_| {
        let session = scene.pg.connect().await;
        while !ended.load(std::sync::atomic::Ordering::SeqCst) {
            // Two grants of the same right at the same time may be an error of PostgreSQL's.
            let _ = session
                .batch_execute("GRANT EXECUTE ON FUNCTION public.other(int) TO PUBLIC")
                .await;
        }
    });
    tokio::join!(renaming, futures::future::join_all(looking));
    let now = "SELECT server || ' ' || signature FROM litmus_pgnats.handler";
    assert_eq!(texts(&session, now).await, ["nats a.keep(bytea)"]);
    run(&session, "SELECT nats_publish_text('x', '')").await;
    until_live(&session, "s").await;
    say(&scene.nats.client().await, "s", "1").await;
    until_got(&session, &["1"]).await;
    left(&scene, &session, &["s"]).await;
}

/// The function vanishes where no event trigger sees it: the handler ends with one line in the log.
#[tokio::test]
async fn a_function_that_vanished_unseen() {
    let (scene, session) = several().await;
    let mark = scene.pg.log().len();
    run(
        &session,
        "SET session_replication_role = replica; DROP FUNCTION plain; RESET session_replication_role",
    )
    .await;
    let client = scene.nats.client().await;
    for _ in 0..20 {
        say(&client, "drop.plain", "x").await;
    }
    let gone = async || !scene.subjects().await.contains(&"drop.plain".to_owned());
    eventually(SOON, gone).await;
    eventually(SOON, async || {
        let registered = texts(&session, REGISTERED).await;
        !registered.contains(&"drop.plain".to_owned())
    })
    .await;
    let log = scene.pg.log();
    let lines: Vec<&str> = log[mark..]
        .lines()
        .filter(|line| line.contains("drop.plain"))
        .collect();
    assert!(lines.len() <= 1, "{lines:#?}");
    say(&client, "stays", "1").await;
    until_got(&session, &["1"]).await;
}

/// A role that is dropped takes its handlers along, with one line in the log.
#[tokio::test]
async fn dropping_the_role() {
    let (scene, session) = Scene::keeping().await;
    run(&session, SHOP).await;
    run(&session, "GRANT INSERT ON got TO shop").await;
    let shop = scene.pg.connect_as("shop", "postgres").await;
    run(
        &shop,
        "SELECT nats_subscribe('shop.a', 'keep'); SELECT nats_subscribe('shop.b', 'keep')",
    )
    .await;
    subscribe(&session, "stays", "keep").await;
    until_live(&session, "shop.b").await;
    shop.close().await;
    let mark = scene.pg.log().len();
    // DROP OWNED takes the rights away that keep the role from being dropped.
    run(&session, "DROP OWNED BY shop; DROP ROLE shop").await;
    let client = scene.nats.client().await;
    eventually(SOON, async || {
        // A message may be what makes it look.
        say(&client, "shop.a", "x").await;
        say(&client, "shop.b", "x").await;
        scene.subjects().await == ["stays"]
    })
    .await;
    eventually_eq(SOON, vec!["stays".to_owned()], async || {
        texts(&session, REGISTERED).await
    })
    .await;
    let log = scene.pg.log();
    for subject in ["shop.a", "shop.b"] {
        let lines: Vec<&str> = log[mark..]
            .lines()
            .filter(|line| line.contains(subject))
            .collect();
        assert!(lines.len() <= 1, "{lines:#?}");
    }
    assert_eq!(got(&session).await, [""; 0]);
}

/// A foreign server that is dropped ends its handlers, or is not dropped.
#[tokio::test]
async fn dropping_the_server() {
    let (scene, session) = several().await;
    run(&session, "DROP OWNED BY owner CASCADE").await;
    run(&session, "DROP SERVER nats CASCADE").await;
    scene.until_silent().await;
    // What it has left can be taken back without it.
    run(&session, "SELECT nats_unsubscribe('drop.plain', 'plain')").await;
    let left = "SELECT count(*) FROM litmus_pgnats.handler WHERE subject = 'drop.plain'";
    assert_eq!(number(&session, left).await, 0);
    // A server of that name, made anew, has nobody's subscriptions but those that are registered.
    let server = format!(
        "CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}'{})",
        scene.nats.port(),
        support::world::server_options()
    );
    run(&session, &server).await;
    subscribe(&session, "anew", "keep").await;
    let registered = texts(&session, REGISTERED).await;
    eventually_eq(SOON, registered, async || scene.subjects().await).await;
    say(&scene.nats.client().await, "anew", "1").await;
    until_got(&session, &["1"]).await;
}

/// DROP EXTENSION ends everything; made anew it begins with nothing.
#[tokio::test]
async fn dropping_the_extension() {
    let (scene, session) = several().await;
    eventually(SOON, async || !scene.executors().await.is_empty()).await;
    run(&session, "BEGIN; DROP EXTENSION litmus_pgnats CASCADE; ROLLBACK").await;
    say(&scene.nats.client().await, "stays", "1").await;
    until_got(&session, &["1"]).await;
    run(&session, "DROP EXTENSION litmus_pgnats CASCADE").await;
    scene.until_silent().await;
    eventually_eq(SOON, [0; 0].to_vec(), async || scene.executors().await).await;
    run(&session, &create_server(scene.nats.port(), "")).await;
    left(&scene, &session, &[]).await;
    subscribe(&session, "anew", "keep").await;
    say(&scene.nats.client().await, "anew", "2").await;
    until_got(&session, &["1", "2"]).await;
    left(&scene, &session, &["anew"]).await;
}

/// DROP EXTENSION while callbacks run and messages wait.
#[tokio::test]
async fn dropping_the_extension_under_load() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION slow(msg bytea) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.3)'",
    )
    .await;
    subscribe(&session, "slow", "slow").await;
    subscribe(&session, "quick", "keep").await;
    let client = scene.nats.client().await;
    count_off(&client, "slow", 1..=500).await;
    count_off(&client, "quick", 1..=5000).await;
    scene.until_sleeping().await;
    run(&session, "DROP EXTENSION litmus_pgnats CASCADE").await;
    scene.until_silent().await;
    eventually_eq(SOON, [0; 0].to_vec(), async || scene.executors().await).await;
    let log = scene.pg.log();
    assert!(
        !log.contains("PANIC") && !log.contains("terminated by signal"),
        "{log}"
    );
}
