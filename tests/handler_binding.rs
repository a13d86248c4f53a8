//! A handler calls the function that it was registered with, by object id: whatever takes the function's name is not called
//! with the handler's rights.

mod events;
mod handlers;
mod scene;
mod support;

use events::*;
use handlers::*;
use scene::*;
use support::*;

/// Who ran which function.
const CALLED: &str = "SELECT who || ' ' || what FROM called ORDER BY 1";
const HANDLERS: &str = "SELECT subject || ' ' || signature FROM litmus_pgnats.handler ORDER BY 1";

/// A scene in which alice and mallory may both create in schema `shared`; sessions of the superuser and of the two.
async fn two_in_a_schema() -> (Scene, Session, Session, Session, Events) {
    let (scene, session, events) = scene().await;
    run(
        &session,
        "CREATE ROLE alice LOGIN; GRANT pg_monitor TO alice; CREATE ROLE mallory LOGIN; CREATE SCHEMA shared;
         GRANT USAGE, CREATE ON SCHEMA shared TO PUBLIC; GRANT USAGE ON FOREIGN SERVER nats TO PUBLIC;
         CREATE TABLE called (who text DEFAULT current_user, what text); GRANT INSERT ON called TO PUBLIC;
         CREATE FUNCTION public.calls(what text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO public.called (what) VALUES (what) $$;",
    )
    .await;
    subscribe(&session, "stays", "keep").await;
    let alice = scene.pg.connect_as("alice", "postgres").await;
    let mallory = scene.pg.connect_as("mallory", "postgres").await;
    (scene, session, alice, mallory, events)
}

/// A function of schema `shared` that says that it was called.
fn function(name: &str, argument: &str, what: &str) -> String {
    format!(
        "CREATE FUNCTION shared.{name}({argument}) RETURNS void LANGUAGE sql AS $$ SELECT public.calls('{what}') $$"
    )
}

/// That this message has been through the whole way says that all before it have, or never will.
async fn until_all_is_done(scene: &Scene, session: &Session) {
    run(session, "TRUNCATE got").await;
    say(&scene.nats.client().await, "stays", "last").await;
    until_got(session, &["last"]).await;
}

/// DROP TABLE takes a function with a body of SQL's own along, as an event of another name; or no event trigger sees it.
#[tokio::test]
async fn a_function_of_the_same_name_is_not_called() {
    let (scene, session, alice, mallory, _) = two_in_a_schema().await;
    let client = scene.nats.client().await;
    for (case, drop) in [
        "DROP TABLE shared.t CASCADE",
        "ALTER TABLE shared.t DROP COLUMN x CASCADE",
        "SET session_replication_role = replica; DROP TABLE shared.t CASCADE; RESET session_replication_role",
    ]
    .into_iter()
    .enumerate()
    {
        run(
            &alice,
            "CREATE TABLE shared.t (x text);
             CREATE FUNCTION shared.take(msg text) RETURNS void LANGUAGE sql
               BEGIN ATOMIC INSERT INTO shared.t (x) VALUES (msg); END",
        )
        .await;
        subscribe(&alice, "taken", "shared.take").await;
        // A superuser drops, as alice may not set the parameter.
        run(&session, drop).await;
        run(&mallory, &function("take", "msg text", "of mallory")).await;
        // The first one may be what makes the runtime look what has become of the function.
        for _ in 0..2 {
            say(&client, "taken", "x").await;
            until_all_is_done(&scene, &session).await;
            assert_eq!(texts(&session, CALLED).await, [""; 0], "case {case}");
        }
        eventually_eq(SOON, vec!["stays public.keep(bytea)".to_owned()], async || {
            texts(&session, HANDLERS).await
        })
        .await;
        run(
            &session,
            "DROP FUNCTION shared.take(text); DROP TABLE IF EXISTS shared.t",
        )
        .await;
    }
}

/// A function whose last argument is variadic could be given its array by name only with a word that says so.
#[tokio::test]
async fn a_variadic_function_is_called_with_its_batch() {
    let (scene, session, alice, mallory, events) = two_in_a_schema().await;
    run(
        &alice,
        &function("many", "VARIADIC messages litmus_pgnats.message[]", "of alice"),
    )
    .await;
    run(&mallory, &function("many", "anyarray", "of mallory")).await;
    let many = "'shared.many(litmus_pgnats.message[])'::regprocedure";
    run(&alice, &format!("SELECT nats_subscribe('many', {many})")).await;
    run(
        &alice,
        &format!("SELECT nats_subscribe_stream('events', {many}, max_deliveries => 1)"),
    )
    .await;
    until_live(&session, "many").await;
    say(&scene.nats.client().await, "many", "x").await;
    events.say("events.x", "x").await;
    eventually_eq(SOON, vec!["alice of alice".to_owned(); 2], async || {
        texts(&session, CALLED).await
    })
    .await;
}

/// Functions of every kind that a handler may have, called by object id: what they are given and what they return.
#[tokio::test]
async fn every_kind_of_function() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE FUNCTION rows(msg text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.got (payload) VALUES (msg || ' a'); RETURN NEXT 'x';
           INSERT INTO public.got (payload) VALUES (msg || ' b'); RETURN NEXT 'y'; END $$;
         CREATE FUNCTION gives_a_row(msg json, OUT a int, OUT b text) LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO public.got (payload) VALUES (msg->>'k'); a := 1; b := 'b'; END $$;
         CREATE FUNCTION \"odd */ /* name\"(msg jsonb, subject text, reply_to text, headers jsonb) RETURNS void
           LANGUAGE sql AS $$ INSERT INTO public.got (payload)
             VALUES (concat_ws(' ', msg->>'k', subject, coalesce(reply_to, '-'), coalesce(headers->>'h', '-'))) $$;
         CREATE FUNCTION many_rows(messages litmus_pgnats.message[]) RETURNS SETOF litmus_pgnats.message
           LANGUAGE sql AS $$ INSERT INTO public.got (payload) SELECT convert_from(payload, 'utf8') FROM unnest(messages);
             SELECT * FROM unnest(messages) $$;",
    )
    .await;
    let client = scene.nats.client().await;
    for (function, payload, expected) in [
        ("rows", "1", vec!["1 a", "1 b"]),
        ("gives_a_row", r#"{"k": "2"}"#, vec!["2"]),
        ("\"odd */ /* name\"", r#"{"k": "3"}"#, vec!["3 kind - -"]),
        ("many_rows", "4", vec!["4"]),
    ] {
        run(&session, "TRUNCATE got").await;
        subscribe(&session, "kind", function).await;
        // The plan is kept, and made again after the fifth time.
        for n in 1..=7 {
            say(&client, "kind", payload).await;
            let all: Vec<&str> = std::iter::repeat_n(&expected, n).flatten().copied().collect();
            until_got(&session, &all).await;
        }
        run(
            &session,
            &format!("SELECT nats_unsubscribe('kind', '{function}')"),
        )
        .await;
    }
    for (kind, query, answer) in [
        ("text", "'grüße'", "grüße"),
        ("json", "'{\"a\" : 1}'", "{\"a\" : 1}"),
        ("jsonb", "'{\"a\" : 1}'", "{\"a\": 1}"),
        ("bytea", "'\\x6869'", "hi"),
    ] {
        run(
            &session,
            &format!(
                "CREATE FUNCTION answer_{kind}(q {kind}) RETURNS {kind} LANGUAGE sql AS $$ SELECT {query}::{kind} $$"
            ),
        )
        .await;
        respond(&session, "answer", &format!("answer_{kind}")).await;
        let payload = if kind.starts_with("json") { "{}" } else { "q" };
        assert_eq!(reply_text(&ask(&client, "answer", payload).await), answer);
    }
    run(
        &session,
        "CREATE FUNCTION nothing(q text) RETURNS text LANGUAGE sql AS 'SELECT NULL'",
    )
    .await;
    respond(&session, "answer", "nothing").await;
    assert_eq!(reply_text(&ask(&client, "answer", "q").await), "");
    respond(&session, "answer", "answer_json").await;
    let refused = service_error(&ask(&client, "answer", "no json").await).expect("an error");
    assert_eq!(refused.0, "22P02", "{refused:?}");
    respond(&session, "answer", "answer_text").await;
    let refused = service_error(&ask(&client, "answer", vec![0xff, 0xfe]).await).expect("an error");
    assert_eq!(refused.0, "22021", "{refused:?}");
}

/// A deployment drops a function and makes it anew: in one transaction of the handler's role, or of a superuser, the handler
/// stays, and a durable subscription goes on where it was.
#[tokio::test]
async fn a_function_that_is_made_again_in_the_same_transaction() {
    let (scene, session, alice, _, events) = two_in_a_schema().await;
    run(&alice, &function("take", "msg text", "first")).await;
    subscribe(&alice, "again", "shared.take").await;
    run(&alice, "SELECT nats_subscribe_stream('events', 'shared.take')").await;
    let client = scene.nats.client().await;
    let mut expected = Vec::new();
    let mut deployed = async |by: &Session, word: &str| {
        let again = format!(
            "BEGIN; DROP FUNCTION shared.take(text); SAVEPOINT s; {}; COMMIT",
            function("take", "msg text", word)
        );
        by.take_notices();
        run(by, &again).await;
        assert!(by.take_notices().is_empty(), "{word}");
        // The session's next call waits until the change has been taken up.
        run(by, "SELECT nats_publish_text('x', '')").await;
        say(&client, "again", "x").await;
        events.say("events.x", "x").await;
        expected.extend([format!("alice {word}"), format!("alice {word}")]);
        expected.sort();
        eventually_eq(SOON, expected.clone(), async || texts(&session, CALLED).await).await;
    };
    deployed(&alice, "second").await;
    deployed(&session, "third").await;
    let messages = "SELECT sum(messages)::bigint FROM litmus_pgnats.stream_subscriptions";
    until_number(&session, 2, messages).await;
    run(&session, "ALTER FUNCTION shared.take(text) OWNER TO alice").await;
    // With the savepoint the drop is undone.
    run(
        &alice,
        "BEGIN; SAVEPOINT s; DROP FUNCTION shared.take(text); ROLLBACK TO s; COMMIT",
    )
    .await;
    // Made again, but not in the end.
    let lost = format!(
        "BEGIN; DROP FUNCTION shared.take(text); SAVEPOINT s; {}; ROLLBACK TO s; COMMIT",
        function("take", "msg text", "fourth")
    );
    assert_eq!(texts(&session, HANDLERS).await.len(), 3);
    run(&alice, &lost).await;
    let notices = alice.take_notices();
    assert_eq!(notices.len(), 2, "{notices:?}");
    assert!(
        notices[0]
            .message
            .contains("ends with its function shared.take(text)"),
        "{notices:?}"
    );
    assert_eq!(texts(&session, HANDLERS).await, ["stays public.keep(bytea)"]);
}

/// A deployment drops a function and gives its name to the one that replaces it, where both have handlers on a subject: the
/// one that stays goes on under the new name.
#[tokio::test]
async fn a_function_that_takes_the_name_of_a_dropped_one() {
    let (scene, session, alice, _, events) = two_in_a_schema().await;
    for name in ["take", "take_next"] {
        run(&alice, &function(name, "msg text", name)).await;
        subscribe(&alice, "renamed", &format!("shared.{name}")).await;
        let stream = format!("SELECT nats_subscribe_stream('events', 'shared.{name}')");
        run(&alice, &stream).await;
    }
    alice.take_notices();
    run(
        &alice,
        "BEGIN; DROP FUNCTION shared.take(text); ALTER FUNCTION shared.take_next(text) RENAME TO take; COMMIT",
    )
    .await;
    let notices = alice.take_notices();
    let ends = notices.iter().filter(|notice| {
        notice
            .message
            .contains("ends with its function shared.take(text)")
    });
    assert_eq!(ends.count(), 2, "{notices:?}");
    let handlers = [
        "events shared.take(text)",
        "renamed shared.take(text)",
        "stays public.keep(bytea)",
    ];
    assert_eq!(texts(&session, HANDLERS).await, handlers);
    run(&alice, "SELECT nats_publish_text('x', '')").await;
    say(&scene.nats.client().await, "renamed", "x").await;
    events.say("events.x", "x").await;
    eventually_eq(SOON, vec!["alice take_next".to_owned(); 2], async || {
        texts(&session, CALLED).await
    })
    .await;
}

/// A refresh that has read a handler before its function was made again does not bind the handler to the former function.
#[tokio::test]
async fn a_refresh_beside_a_function_that_is_made_again() {
    let (scene, session, alice, _, _) = two_in_a_schema().await;
    let admin = scene.pg.connect().await;
    run(&alice, &function("take", "msg text", "first")).await;
    subscribe(&alice, "again", "shared.take").await;
    let again = format!(
        "BEGIN; DROP FUNCTION shared.take(text); {}",
        function("take", "msg text", "again")
    );
    run(&alice, &again).await;
    // The foreign server's object id is another one now, so a refresh writes the binding, and waits for alice.
    let other_server = format!(
        "DROP SERVER nats CASCADE; CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw \
         OPTIONS (host '127.0.0.1', port '{}'); GRANT USAGE ON FOREIGN SERVER nats TO PUBLIC",
        scene.nats.port()
    );
    run(&admin, &other_server).await;
    until_holds(
        &session,
        "SELECT count(*) = 1 FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats executor' \
         AND wait_event_type = 'Lock'",
    )
    .await;
    run(&alice, "COMMIT").await;
    let handlers = ["again shared.take(text)", "stays public.keep(bytea)"];
    for _ in 0..2 {
        // Causes a refresh, which would remove a handler without a function.
        run(&session, "GRANT EXECUTE ON FUNCTION public.keep(bytea) TO alice").await;
        run(&session, "SELECT nats_publish_text('x', '')").await;
        assert_eq!(texts(&session, HANDLERS).await, handlers);
    }
    until_live(&session, "again").await;
    say(&scene.nats.client().await, "again", "x").await;
    eventually_eq(SOON, vec!["alice again".to_owned()], async || {
        texts(&session, CALLED).await
    })
    .await;
}

/// A function has one row for a subject, whatever a session's settings make of its name, and even if no event trigger has seen
/// it renamed: two would be in the way of everybody's GRANT and ALTER.
#[tokio::test]
async fn one_function_has_one_handler() {
    let (_scene, session, _, mallory, _) = two_in_a_schema().await;
    run(&mallory, &function("take", "msg text", "of mallory")).await;
    run(&mallory, "SELECT nats_subscribe('own', 'shared.take')").await;
    run(
        &mallory,
        "SET quote_all_identifiers = on; SELECT nats_subscribe('own', 'shared.take')",
    )
    .await;
    let handlers = ["own shared.take(text)", "stays public.keep(bytea)"];
    assert_eq!(texts(&session, HANDLERS).await, handlers);
    run(
        &session,
        "SET quote_all_identifiers = on; ALTER FUNCTION public.keep(bytea) COST 7; RESET quote_all_identifiers",
    )
    .await;
    assert_eq!(texts(&session, HANDLERS).await, handlers);
    run(
        &session,
        "SET session_replication_role = replica; ALTER FUNCTION shared.take(text) RENAME TO taken;
         RESET session_replication_role",
    )
    .await;
    run(&mallory, "SELECT nats_subscribe('own', 'shared.taken')").await;
    let handlers = ["own shared.taken(text)", "stays public.keep(bytea)"];
    assert_eq!(texts(&session, HANDLERS).await, handlers);
    run(
        &session,
        "GRANT EXECUTE ON FUNCTION public.keep(bytea) TO mallory",
    )
    .await;
    run(&mallory, "SELECT nats_unsubscribe('own', 'shared.taken')").await;
    assert_eq!(texts(&session, HANDLERS).await, ["stays public.keep(bytea)"]);
}

/// Nobody else's function takes the place, whoever drops, and whoever makes.
#[tokio::test]
async fn a_function_that_another_role_makes_again() {
    let (scene, session, alice, mallory, _) = two_in_a_schema().await;
    run(
        &session,
        "CREATE SCHEMA shop AUTHORIZATION mallory; GRANT CREATE, USAGE ON SCHEMA shop TO alice",
    )
    .await;
    let make = |word: &str| {
        format!(
            "CREATE FUNCTION shop.take(msg text) RETURNS void LANGUAGE sql AS $$ SELECT public.calls('{word}') $$"
        )
    };
    let remake = |word: &str| format!("BEGIN; DROP FUNCTION shop.take(text); {}; COMMIT", make(word));
    let own = format!("SET ROLE mallory; {}; RESET ROLE", make("of mallory"));
    for (by, sql) in [
        // The owner of the schema may drop what is in it.
        (&mallory, remake("of mallory")),
        // A superuser drops, and mallory's is what is there at the commit.
        (
            &session,
            format!("BEGIN; DROP FUNCTION shop.take(text); {own}; COMMIT"),
        ),
        // Two transactions.
        (
            &alice,
            format!("DROP FUNCTION shop.take(text); {}", make("of alice")),
        ),
    ] {
        run(&alice, &make("first")).await;
        subscribe(&alice, "again", "shop.take").await;
        for statement in sql.split("; ") {
            run(by, statement).await;
        }
        let notices = by.take_notices();
        assert!(
            notices
                .iter()
                .any(|n| n.message.contains("ends with its function")),
            "{sql}: {notices:?}"
        );
        say(&scene.nats.client().await, "again", "x").await;
        until_all_is_done(&scene, &session).await;
        assert_eq!(texts(&session, CALLED).await, [""; 0], "{sql}");
        assert_eq!(
            texts(&session, HANDLERS).await,
            ["stays public.keep(bytea)"],
            "{sql}"
        );
        run(&session, "DROP FUNCTION shop.take(text)").await;
    }
}

/// In a copy of the database, or after a restore, names are all that is known of functions: those of the handler's role and
/// of superusers are bound, and of others the view says why not, until somebody registers again.
#[tokio::test]
async fn what_is_found_by_its_name() {
    let (scene, session, alice, mallory, events) = two_in_a_schema().await;
    run(&alice, &function("own", "msg text", "own")).await;
    run(&mallory, &function("other", "msg text", "other")).await;
    run(&mallory, &function("letter", "msg text", "letter")).await;
    for function in ["shared.own", "public.calls", "shared.other"] {
        run(
            &alice,
            &format!("SELECT nats_subscribe('{function}', '{function}')"),
        )
        .await;
    }
    for subject in ["shared.own", "public.calls", "shared.other"] {
        until_live(&session, subject).await;
    }
    run(
        &alice,
        "CREATE FUNCTION shared.fails(msg text) RETURNS void LANGUAGE sql AS 'SELECT 1/0';
         SELECT nats_subscribe_stream('events', 'shared.fails', max_deliveries => 1)",
    )
    .await;
    events.say("events.x", "x").await;
    until_number(&session, 1, "SELECT count(*) FROM litmus_pgnats.dead_letter").await;
    // What a dead letter names is another function by now.
    run(&alice, "DROP FUNCTION shared.fails(text)").await;
    run(&mallory, &function("fails", "msg text", "of mallory")).await;
    let (report, _) = refused(&alice, "SELECT litmus_pgnats.redrive(1)").await;
    assert_eq!(report.code, "42P13", "{report:?}");
    assert!(report.message.contains("does not exist any more"), "{report:?}");
    let guest = scene.pg.connect_as("postgres", "template1").await;
    for other in [session, alice, mallory] {
        other.close().await;
    }
    eventually(SOON, async || {
        guest
            .batch_execute("CREATE DATABASE copy TEMPLATE postgres")
            .await
    })
    .await;
    let copy = scene.pg.connect_as("postgres", "copy").await;
    run(&copy, "SELECT nats_publish_text('x', 'first call')").await;
    until_live(&copy, "shared.own").await;
    until_live(&copy, "public.calls").await;
    until_state(&copy, "shared.other", "disabled").await;
    let problem = "SELECT problem FROM litmus_pgnats.subscriptions WHERE subject = 'shared.other'";
    let problem = text(&copy, problem).await;
    assert!(
        problem.contains("belongs neither to role \"alice\" nor to a superuser"),
        "{problem}"
    );
    run(
        &copy,
        "SET ROLE alice; SELECT nats_subscribe('shared.other', 'shared.other')",
    )
    .await;
    until_live(&copy, "shared.other").await;
}
