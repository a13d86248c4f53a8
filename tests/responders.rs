//! Responders: a request is answered with what the function returns, or with an error that says so at once.

mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use handlers::*;
use scene::*;
use support::*;

/// The source document's example, as it is written there.
#[tokio::test]
async fn the_example_of_the_source_document() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE OR REPLACE FUNCTION litmus_pgnats_test_responder(payload text, subject text, reply_to text)
         RETURNS text LANGUAGE sql AS $$ SELECT 'echo: ' || payload; $$;
         SELECT litmus_pgnats_register_responder('litmus.test.responder', 'litmus_pgnats_test_responder'::regproc);",
    )
    .await;
    // The same session's next call waits until the responder is there.
    let ask = "SELECT nats_request_text('litmus.test.responder', 'hello', 5000)";
    assert_eq!(text(&session, ask).await, "echo: hello");
    until_live(&session, "litmus.test.responder").await;
    let reply = self::ask(&scene.nats.client().await, "litmus.test.responder", "outside").await;
    assert_eq!(reply_text(&reply), "echo: outside");
    run(
        &session,
        "SELECT litmus_pgnats_unregister_responder('litmus.test.responder')",
    )
    .await;
    let (report, _) = refused(&session, ask).await;
    assert_eq!(report.code, "HV00M", "nobody is there any more: {report:?}");
}

/// Each type of payload with each type of result, and with each number of further arguments.
#[tokio::test]
async fn every_signature() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    let kinds = ["bytea", "text", "json", "jsonb"];
    for takes in kinds {
        for gives in kinds {
            let name = format!("{takes}_to_{gives}");
            let text = if takes == "bytea" {
                "convert_from(q, 'utf8')"
            } else {
                "q::text"
            };
            let result = if gives == "bytea" {
                format!("convert_to({text}, 'utf8')")
            } else {
                format!("({text})::{gives}")
            };
            let sql = format!(
                "CREATE FUNCTION {name}(q {takes}) RETURNS {gives} LANGUAGE sql AS $$ SELECT {result} $$"
            );
            run(&session, &sql).await;
            run(
                &session,
                &format!("SELECT litmus_pgnats_register_responder('{name}', '{name}')"),
            )
            .await;
            until_live(&session, &name).await;
            let reply = reply_text(&ask(&client, &name, r#"{ "b":"ü", "a":[1,2 ] }"#).await);
            let expected = if takes == "jsonb" || gives == "jsonb" {
                r#"{"a": [1, 2], "b": "ü"}"#
            } else {
                r#"{ "b":"ü", "a":[1,2 ] }"#
            };
            assert_eq!(reply, expected, "{name}");
        }
    }
    let further = ["", ", subject text", ", reply_to text", ", headers jsonb"];
    let shown = ["", ", subject", ", left(reply_to, 6)", ", headers->>'Kind'"];
    for count in 0..=3 {
        let sql = format!(
            "CREATE FUNCTION args_{count}(q text{}) RETURNS text LANGUAGE sql AS $$ SELECT concat_ws(' ', q{}) $$",
            further[..=count].concat(),
            shown[..=count].concat()
        );
        run(&session, &sql).await;
        respond(&session, &format!("args.{count}"), &format!("args_{count}")).await;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Kind", "test");
        let reply = client
            .request_with_headers(format!("args.{count}"), headers, "q".into())
            .await
            .expect("a reply");
        let words = ["q", &format!("args.{count}"), "_INBOX", "test"];
        assert_eq!(reply_text(&reply), words[..=count].join(" "));
    }
}

/// NULL, nothing and the empty value are an empty reply; the largest that NATS takes arrives whole.
#[tokio::test]
async fn results_of_every_size() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE FUNCTION sized(q text) RETURNS bytea LANGUAGE sql AS
           $$ SELECT CASE WHEN q <> '' THEN convert_to(repeat('x', q::int), 'utf8') END $$;
         CREATE FUNCTION strict_one(q text, subject text, reply_to text, headers jsonb) RETURNS text
           LANGUAGE sql STRICT AS $$ SELECT 'called' $$;
         CREATE FUNCTION nothing(q json) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb'",
    )
    .await;
    for name in ["sized", "nothing"] {
        respond(&session, name, name).await;
    }
    // It would not be called for a request without headers.
    let strict = "SELECT litmus_pgnats_register_responder('strict_one', 'strict_one')";
    let (report, _) = refused(&session, strict).await;
    assert_eq!(report.code, "42P13");
    for (subject, payload, size) in [
        ("sized", "", 0),
        ("sized", "0", 0),
        ("nothing", "{}", 0),
        ("sized", "100000", 100_000),
        ("sized", "1048576", 1_048_576),
    ] {
        let reply = ask(&client, subject, payload).await;
        assert_eq!(service_error(&reply), None, "{subject} {payload}");
        assert_eq!(reply.payload.len(), size, "{subject} {payload}");
    }
    // What NATS does not take is an error, and not silence.
    let too_large = service_error(&ask(&client, "sized", "2000000").await);
    assert!(
        too_large.is_some_and(|(code, _)| code == "54000"),
        "a reply beyond max_payload"
    );
    assert_eq!(ask(&client, "sized", "3").await.payload, "xxx");
}

/// An error of the function is a reply with its SQLSTATE and message, and nothing else of the server's.
#[tokio::test]
async fn errors_are_replies() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        r"CREATE FUNCTION inner_secret() RETURNS void LANGUAGE plpgsql AS $$
          BEGIN
            RAISE EXCEPTION E'no such\r\nNats-Injected: account' USING ERRCODE = 'P0042', DETAIL = 'internal detail',
              HINT = 'internal hint';
          END $$;
          CREATE FUNCTION fails(q json) RETURNS text LANGUAGE plpgsql AS $$
          BEGIN
            INSERT INTO got (payload) VALUES (q::text);
            PERFORM inner_secret();
            RETURN 'never';
          END $$",
    )
    .await;
    respond(&session, "fails", "fails").await;
    let began = Instant::now();
    let reply = ask(&client, "fails", "{}").await;
    assert!(began.elapsed() < 5 * PROMPT);
    let headers = reply.headers.clone().expect("headers");
    let (code, message) = service_error(&reply).expect("an error");
    assert_eq!(code, "P0042");
    assert!(
        message.starts_with("no such") && message.contains("account"),
        "{message:?}"
    );
    assert!(headers.get("Nats-Injected").is_none(), "{headers:?}");
    let all = format!("{headers:?} {:?}", reply.payload);
    for secret in ["internal", "inner_secret", "PL/pgSQL", "line "] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
    let (report, took) = refused(&session, "SELECT nats_request_text('fails', '{}', 60000)").await;
    assert_eq!(report.code, "38000", "{report:?}");
    assert!(took < 5 * PROMPT, "{took:?}");
    let said = format!("{report:?}");
    assert!(said.contains("P0042") && said.contains("no such"), "{said}");
    // A payload that is no JSON.
    let (code, _) = service_error(&ask(&client, "fails", "{").await).expect("an error");
    assert_eq!(code, "22P02");
    assert_eq!(got(&session).await, [""; 0], "the failed requests' effects");
    assert_eq!(counts(&session, "fails").await.errors, 3);
    scene.pg.wait_log("P0042", SOON).await;
}

/// The reply comes when the transaction is committed: the requester sees what the responder did.
#[tokio::test]
async fn effects_come_before_the_reply() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE FUNCTION note(q text) RETURNS text LANGUAGE sql AS
           $$ INSERT INTO got (payload) VALUES (q) RETURNING payload $$;
         ALTER TABLE got ADD CONSTRAINT once UNIQUE (payload) DEFERRABLE INITIALLY DEFERRED",
    )
    .await;
    respond(&session, "note", "note").await;
    for n in 1..=100 {
        let reply = ask(&client, "note", n.to_string()).await;
        assert_eq!(reply_text(&reply), n.to_string());
        let sql = format!("SELECT count(*) FROM got WHERE payload = '{n}'");
        assert_eq!(number(&session, &sql).await, 1, "request {n}");
    }
    // An error at commit is the reply, and not the result that came to nothing.
    let (code, _) = service_error(&ask(&client, "note", "50").await).expect("an error");
    assert_eq!(code, "23505");
    assert_eq!(reply_text(&ask(&client, "note", "101").await), "101");
    assert_eq!(got(&session).await, numbers(1..=101));
}

/// responder_timeout_ms of the foreign server is the function's statement timeout.
#[tokio::test]
async fn responder_timeout() {
    let nats = NatsServer::start().await;
    let scene = Scene::with(Postgres::builder(), nats, ", responder_timeout_ms '400'").await;
    let session = scene.pg.connect().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE FUNCTION nap(q text) RETURNS text LANGUAGE plpgsql AS
           $$ BEGIN PERFORM pg_sleep(q::float); RETURN 'slept ' || q; END $$",
    )
    .await;
    respond(&session, "nap", "nap").await;
    let began = Instant::now();
    let (code, message) = service_error(&ask(&client, "nap", "60").await).expect("an error");
    let took = began.elapsed();
    println!("timed out after {took:?}: {message}");
    assert_eq!(code, "57014", "{message}");
    assert!(
        took >= Duration::from_millis(390) && took < 10 * PROMPT,
        "{took:?}"
    );
    assert_eq!(reply_text(&ask(&client, "nap", "0").await), "slept 0");
    let (report, _) = refused(&session, "SELECT nats_request_text('nap', '60', 60000)").await;
    assert_eq!(report.code, "38000", "{report:?}");
    // Another limit, by ALTER SERVER and a reload.
    run(
        &session,
        "ALTER SERVER nats OPTIONS (SET responder_timeout_ms '30000'); SELECT litmus_pgnats_reload_conf()",
    )
    .await;
    eventually(SOON, async || {
        let reply = ask(&client, "nap", "0.8").await;
        service_error(&reply).is_none()
    })
    .await;
}

/// One responder for a subject: another function takes its place, between two requests and for good.
#[tokio::test]
async fn another_function_replaces_it() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE FUNCTION first(q text) RETURNS text LANGUAGE sql AS $$ SELECT 'first' $$;
         CREATE FUNCTION second(q json) RETURNS text LANGUAGE sql AS $$ SELECT 'second' $$",
    )
    .await;
    let mut replaced = Vec::new();
    for (function, group) in [
        ("first", "NULL"),
        ("second", "NULL"),
        ("first", "'group'"),
        ("first", "'group'"),
    ] {
        let sql = format!("SELECT litmus_pgnats_register_responder('rpc', '{function}', {group})");
        run(&session, &sql).await;
        assert_eq!(
            text(&session, "SELECT nats_request_text('rpc', '{}')").await,
            function
        );
        for notice in session.take_notices() {
            replaced.push(notice.message);
        }
        let registered = "SELECT function || ' ' || coalesce(quote_literal(queue_group), 'NULL')
                          FROM litmus_pgnats.responders";
        let registered = texts(&session, registered).await;
        assert_eq!(registered.len(), 1, "{registered:?}");
        assert!(
            registered[0].contains(function) && registered[0].ends_with(group),
            "{registered:?}"
        );
        assert_eq!(reply_text(&ask(&client, "rpc", "{}").await), function);
        eventually_eq(SOON, vec!["rpc".to_owned()], async || scene.subjects().await).await;
    }
    assert_eq!(
        replaced,
        [
            "the responder public.first(text) on subject \"rpc\" is replaced",
            "the responder public.second(json) on subject \"rpc\" is replaced",
        ]
    );
    // Rolled back, it is still the one that was.
    run(
        &session,
        "BEGIN; SELECT litmus_pgnats_register_responder('rpc', 'second'); ROLLBACK",
    )
    .await;
    assert_eq!(reply_text(&ask(&client, "rpc", "{}").await), "first");
    run(
        &session,
        "BEGIN; SELECT litmus_pgnats_unregister_responder('rpc'); ROLLBACK",
    )
    .await;
    assert_eq!(reply_text(&ask(&client, "rpc", "{}").await), "first");
}

/// A message without a reply subject has nobody to answer to, and harms nobody.
#[tokio::test]
async fn a_message_that_is_no_request() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT q'",
    )
    .await;
    respond(&session, "rpc.*", "answer").await;
    for n in 0..10 {
        say(&client, "rpc.a", n.to_string()).await;
    }
    assert_eq!(reply_text(&ask(&client, "rpc.b", "q").await), "q");
    assert_eq!(counts(&session, "rpc.*").await.errors, 0);
}
