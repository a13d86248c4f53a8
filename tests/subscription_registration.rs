//! Registering is transactional, idempotent, and refused where it cannot work: nothing is left of what was refused.

mod handlers;
mod scene;
mod support;

use handlers::*;
use scene::*;
use support::*;

/// The subjects in the extension's own table.
const REGISTERED: &str = "SELECT subject FROM litmus_pgnats.handler ORDER BY subject";

/// Publishes to each subject its own name, and then to `end`, which keep is subscribed to: just these are kept.
async fn hears(scene: &Scene, session: &Session, subjects: &[&str], expected: &[&str]) {
    let client = scene.nats.client().await;
    run(session, "TRUNCATE got").await;
    for subject in subjects {
        say(&client, subject, *subject).await;
    }
    let mut expected: Vec<String> = expected.iter().map(|&subject| subject.to_owned()).collect();
    // Subscriptions run side by side, so the first end may come before the others; not so the second one.
    for _ in 0..2 {
        say(&client, "end", "end").await;
        expected.push("end".into());
        expected.sort();
        let kept = "SELECT payload FROM got ORDER BY payload COLLATE \"C\"";
        eventually_eq(SOON, expected.clone(), async || texts(session, kept).await).await;
    }
}

/// A rollback leaves nothing, of the whole transaction or of a part; what is committed works from then on.
#[tokio::test]
async fn it_is_part_of_the_transaction() {
    let (scene, session) = Scene::keeping().await;
    let other = scene.pg.connect().await;
    subscribe(&session, "end", "keep").await;
    run(&session, "BEGIN; SELECT nats_subscribe('rolled.back', 'keep')").await;
    assert_eq!(
        scene.subjects().await,
        ["end"],
        "before the end of the transaction"
    );
    run(&session, "ROLLBACK").await;
    run(
        &session,
        "BEGIN;
         SELECT nats_subscribe('first', 'keep');
         SAVEPOINT s;
         SELECT nats_subscribe('second', 'keep');
         ROLLBACK TO s;
         SELECT nats_subscribe('third', 'keep');
         RELEASE s;
         DO $$ BEGIN
           PERFORM nats_subscribe('fourth', 'keep');
           RAISE EXCEPTION 'undone';
         EXCEPTION WHEN OTHERS THEN NULL;
         END $$",
    )
    .await;
    let all = ["rolled.back", "first", "second", "third", "fourth"];
    hears(&scene, &other, &all, &[]).await;
    run(&session, "COMMIT").await;
    until_live(&session, "first").await;
    until_live(&session, "third").await;
    assert_eq!(texts(&session, REGISTERED).await, ["end", "first", "third"]);
    hears(&scene, &other, &all, &["first", "third"]).await;
    assert_eq!(scene.subjects().await, ["end", "first", "third"]);

    // Taking back likewise.
    run(
        &session,
        "BEGIN; SELECT nats_unsubscribe('first', 'keep'); ROLLBACK",
    )
    .await;
    hears(&scene, &other, &all, &["first", "third"]).await;
    run(
        &session,
        "BEGIN; SELECT nats_unsubscribe('first', 'keep'); SELECT nats_subscribe('first', 'keep');
         SELECT nats_unsubscribe('third', 'keep'); COMMIT",
    )
    .await;
    run(&session, "SELECT nats_publish_text('x', '')").await;
    until_live(&session, "first").await;
    hears(&scene, &other, &all, &["first"]).await;
    run(
        &session,
        "BEGIN; SELECT nats_subscribe('first', 'keep'); SELECT nats_unsubscribe('first', 'keep'); COMMIT",
    )
    .await;
    // Nobody has waited until it has taken effect.
    eventually_eq(SOON, vec!["end".to_owned()], async || scene.subjects().await).await;
    hears(&scene, &other, &all, &[]).await;
}

/// Once a call of the session that took a subscription back has had an answer, nothing reaches it any more.
#[tokio::test]
async fn a_session_does_not_reach_what_it_took_back() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    subscribe(&session, "end", "keep").await;
    // A publish has no answer: it follows what was said before, but the statement does not wait for that.
    let answered = "SELECT nats_get_server_info()";
    for n in 0..50 {
        run(&session, "SELECT nats_subscribe('s', 'keep')").await;
        run(&session, &format!("SELECT nats_publish_text('s', 'yes {n}')")).await;
        run(&session, answered).await;
        run(&session, "SELECT nats_unsubscribe('s', 'keep')").await;
        run(&session, &format!("SELECT nats_publish_text('s', 'no {n}')")).await;
        run(&session, answered).await;
        say(&client, "s", format!("no, from outside {n}")).await;
    }
    run(&session, "SELECT nats_publish_text('end', 'end')").await;
    eventually(SOON, async || got(&session).await.contains(&"end".to_owned())).await;
    let heard = texts(
        &session,
        "SELECT payload FROM got WHERE payload LIKE 'no%' ORDER BY id",
    )
    .await;
    assert_eq!(heard, [""; 0]);
    println!(
        "{} of 50 that were published before were kept",
        got(&session).await.len() - 1
    );
}

/// In a prepared transaction it either takes effect when that commits, from whatever session, or is refused.
#[tokio::test]
async fn prepared_transactions() {
    let pg = Postgres::builder().conf("max_prepared_transactions", "5");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(&session, "BEGIN; SELECT nats_subscribe('prepared', 'keep')").await;
    match session.batch_execute("PREPARE TRANSACTION 'p'").await {
        Err(error) => {
            assert_eq!(sqlstate(&error), "0A000");
            assert_eq!(texts(&session, REGISTERED).await, [""; 0]);
        }
        Ok(()) => {
            session.close().await;
            let other = scene.pg.connect().await;
            run(&other, "COMMIT PREPARED 'p'").await;
            run(&other, "SELECT nats_publish_text('x', '')").await;
            until_live(&other, "prepared").await;
            say(&scene.nats.client().await, "prepared", "1").await;
            until_got(&other, &["1"]).await;
        }
    }
}

/// Twice is once: in one session, in one transaction, and in two sessions at the same time.
#[tokio::test]
async fn registering_twice() {
    let (scene, session) = Scene::keeping().await;
    let other = scene.pg.connect().await;
    for sql in [
        "SELECT nats_subscribe('twice', 'keep')",
        "SELECT nats_subscribe('twice', 'keep'::regproc, NULL)",
        "BEGIN; SELECT nats_subscribe('twice', 'public.keep'); SELECT nats_subscribe('twice', 'keep'); COMMIT",
    ] {
        run(&session, sql).await;
    }
    run(&session, "BEGIN; SELECT nats_subscribe('race', 'keep')").await;
    let racing = other.batch_execute("SELECT nats_subscribe('race', 'keep')");
    let committing = async {
        // The other session waits for this one, or registers by itself.
        let waits = format!(
            "SELECT wait_event_type = 'Lock' OR state = 'idle' FROM pg_stat_activity WHERE pid = {}",
            other.pid()
        );
        eventually(SOON, async || scene.pg.sql(&waits).await == "t").await;
        run(&session, "COMMIT").await;
    };
    let (raced, ()) = tokio::join!(racing, committing);
    raced.expect("no error for the second one");
    assert_eq!(texts(&session, REGISTERED).await, ["race", "twice"]);
    until_live(&session, "twice").await;
    until_live(&session, "race").await;
    let client = scene.nats.client().await;
    say(&client, "twice", "1").await;
    until_got(&session, &["1"]).await;
    say(&client, "race", "2").await;
    until_got(&session, &["1", "2"]).await;
}

/// Another queue group takes the place of the old one; there is still one subscription.
#[tokio::test]
async fn another_queue_group() {
    let (scene, session) = Scene::keeping().await;
    let groups = "SELECT coalesce(queue_group, 'none') FROM litmus_pgnats.subscriptions";
    for (sql, group) in [
        ("SELECT nats_subscribe('q', 'keep')", "none"),
        ("SELECT nats_subscribe('q', 'keep', 'one')", "one"),
        ("SELECT nats_subscribe('q', 'keep', 'two')", "two"),
        ("SELECT nats_subscribe('q', 'keep')", "none"),
    ] {
        run(&session, sql).await;
        run(&session, "SELECT nats_publish_text('x', '')").await;
        until_live(&session, "q").await;
        assert_eq!(texts(&session, groups).await, [group], "{sql}");
    }
    say(&scene.nats.client().await, "q", "1").await;
    until_got(&session, &["1"]).await;
    // In a different group it would be there twice.
    eventually_eq(SOON, vec!["q".to_owned()], async || scene.subjects().await).await;
}

/// Each wrong signature is refused, and the error says which are right.
#[tokio::test]
async fn wrong_signatures_are_refused() {
    let (_scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE TYPE mood AS ENUM ('good');
         CREATE FUNCTION no_payload() RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION integer_payload(int) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION enum_payload(mood) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION integer_subject(bytea, int) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION json_reply(text, text, json) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION text_headers(text, text, text, text) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION json_headers(text, text, text, json) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION five(text, text, text, jsonb, int) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION many(VARIADIC text[]) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION on_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE PROCEDURE procedure_of_text(text) LANGUAGE sql AS '';
         CREATE FUNCTION gives_integer(text) RETURNS int LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION gives_nothing(text) RETURNS void LANGUAGE sql AS '';
         CREATE FUNCTION gives_rows(text) RETURNS SETOF text LANGUAGE sql AS 'SELECT $1'",
    )
    .await;
    let never = [
        "no_payload",
        "integer_payload",
        "enum_payload",
        "integer_subject",
        "json_reply",
        "text_headers",
        "json_headers",
        "five",
        "many",
        "on_row",
        "procedure_of_text",
        "max(text)",
    ];
    let subscribing = never.map(|function| ("nats_subscribe", function));
    let answering = never.map(|function| ("litmus_pgnats_register_responder", function));
    let results = ["gives_integer", "gives_nothing", "gives_rows"]
        .map(|function| ("litmus_pgnats_register_responder", function));
    for (call, function) in subscribing.into_iter().chain(answering).chain(results) {
        let cast = if function.contains('(') {
            "regprocedure"
        } else {
            "regproc"
        };
        let sql = format!("SELECT {call}('a', '{function}'::{cast})");
        let (report, _) = refused(&session, &sql).await;
        assert_eq!(report.code, "42P13", "{sql}: {report:?}");
        let said = format!("{:?} {:?}", report.detail, report.hint);
        for word in ["bytea", "text", "json", "jsonb", "subject", "reply_to", "headers"] {
            assert!(said.contains(word), "{sql}: no {word} in {report:?}");
        }
    }
    assert_eq!(texts(&session, REGISTERED).await, [""; 0]);
}

/// Subjects and groups that NATS would not take, functions that do not exist, and NULL.
#[tokio::test]
async fn wrong_arguments_are_refused() {
    let (_scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    let mut wrong = vec![
        (
            "SELECT nats_subscribe('a', 'no_such_function')".to_owned(),
            "42883",
        ),
        (
            "SELECT nats_subscribe('a', 'no_schema.keep')".into(),
            "3F000|42883",
        ),
        ("SELECT nats_subscribe('a', 0::regproc)".into(), "42883|42P13"),
        (
            "SELECT nats_subscribe('a', 4000000000::oid::regproc)".into(),
            "42883|42P13",
        ),
        ("SELECT nats_subscribe(NULL, 'keep')".into(), "22004"),
        ("SELECT nats_subscribe('a', NULL)".into(), "22004"),
        ("SELECT nats_unsubscribe(NULL, 'keep')".into(), "22004"),
        ("SELECT nats_unsubscribe('a', NULL)".into(), "22004"),
        (
            "SELECT litmus_pgnats_register_responder(NULL, 'answer')".into(),
            "22004",
        ),
        (
            "SELECT litmus_pgnats_register_responder('a', NULL)".into(),
            "22004",
        ),
        ("SELECT litmus_pgnats_unregister_responder(NULL)".into(), "22004"),
        ("SELECT nats_subscribe('a', 'keep', '')".into(), "42602"),
        ("SELECT nats_subscribe('a', 'keep', 'two words')".into(), "42602"),
        (
            r"SELECT nats_subscribe('a', 'keep', E'g\r\nPUB a 0\r\n')".into(),
            "42602",
        ),
    ];
    for subject in [
        "",
        " ",
        "a b",
        "a..b",
        ".a",
        "a.",
        "a.>.b",
        ">.a",
        r"a\tb",
        r"a\r\nPUB b 0\r\n\r\n",
    ] {
        let function = [
            ("nats_subscribe", "keep"),
            ("litmus_pgnats_register_responder", "answer"),
        ];
        wrong
            .extend(function.map(|(call, name)| (format!("SELECT {call}(E'{subject}', '{name}')"), "42602")));
    }
    let long = "x".repeat(100_000);
    wrong.push((format!("SELECT nats_subscribe('{long}', 'keep')"), "42602"));
    for (sql, code) in &wrong {
        let (report, _) = refused(&session, sql).await;
        assert!(
            code.split('|').any(|code| code == report.code),
            "{sql}: {report:?}"
        );
    }
    assert_eq!(texts(&session, REGISTERED).await, [""; 0]);
    run(&session, "BEGIN READ ONLY").await;
    let (report, _) = refused(&session, "SELECT nats_subscribe('a', 'keep')").await;
    assert_eq!(report.code, "25006", "{report:?}");
    run(&session, "ROLLBACK").await;
}

/// Taking back what is not there is a notice.
#[tokio::test]
async fn taking_back_what_is_not_there() {
    let (_scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    subscribe(&session, "a", "keep").await;
    respond(&session, "a", "answer").await;
    session.take_notices();
    for sql in [
        "SELECT nats_unsubscribe('b', 'keep')",
        "SELECT nats_unsubscribe('a', 'answer')",
        "SELECT litmus_pgnats_unregister_responder('b')",
    ] {
        run(&session, sql).await;
        let notices = session.take_notices();
        assert_eq!(notices.len(), 1, "{sql}: {notices:?}");
        assert_eq!(notices[0].severity, "NOTICE", "{sql}: {notices:?}");
    }
    assert_eq!(texts(&session, REGISTERED).await, ["a", "a"]);
    run(
        &session,
        "SELECT nats_unsubscribe('a', 'keep'), litmus_pgnats_unregister_responder('a')",
    )
    .await;
    assert_eq!(session.take_notices(), []);
    assert_eq!(texts(&session, REGISTERED).await, [""; 0]);
}
