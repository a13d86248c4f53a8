//! Subscriptions: what a callback is given, whatever its signature, and which callbacks a message reaches.

mod handlers;
mod scene;
mod support;

use async_nats::HeaderMap;
use handlers::*;
use scene::*;
use support::*;

/// The source document's example, from the extension to the end of the subscription, as it is written there.
#[tokio::test]
async fn the_capture_example_of_the_source_document() {
    let nats = NatsServer::start().await;
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    let client = nats.client().await;
    let server = format!(
        "CREATE SERVER nats_fdw_server_test FOREIGN DATA WRAPPER litmus_pgnats_fdw
           OPTIONS (host '127.0.0.1', port '{}', capacity '128', username '', password 'access account token')",
        nats.port()
    );
    for sql in [
        "CREATE EXTENSION IF NOT EXISTS litmus_pgnats",
        &server,
        "SELECT litmus_pgnats_reload_conf()",
        "SELECT * FROM nats_get_server_info()",
        "CREATE TABLE IF NOT EXISTS litmus_pgnats_test_messages (received_at timestamptz DEFAULT now(), payload text)",
        "CREATE OR REPLACE FUNCTION litmus_pgnats_test_capture(msg bytea) RETURNS void LANGUAGE sql AS $$
           INSERT INTO litmus_pgnats_test_messages(payload) VALUES (convert_from(msg, 'utf8')); $$",
        "SELECT nats_subscribe('devicehub.alias.mydevice.mytag', 'litmus_pgnats_test_capture'::regproc)",
    ] {
        run(&session, sql).await;
    }
    until_live(&session, "devicehub.alias.mydevice.mytag").await;
    for payload in ["{\"value\": 1}", "grüße"] {
        say(&client, "devicehub.alias.mydevice.mytag", payload).await;
        let newest = "SELECT payload FROM litmus_pgnats_test_messages ORDER BY received_at DESC LIMIT 10";
        eventually_eq(SOON, Some(payload.to_owned()), async || {
            texts(&session, newest).await.first().cloned()
        })
        .await;
    }
    run(
        &session,
        "SELECT nats_unsubscribe('devicehub.alias.mydevice.mytag', 'litmus_pgnats_test_capture'::regproc)",
    )
    .await;
    let listed = async || {
        let connz = nats.monitor("/connz?subs=1").await.to_string();
        connz.contains("devicehub")
    };
    eventually_eq(SOON, false, listed).await;
    say(&client, "devicehub.alias.mydevice.mytag", "after the end").await;
    let all = texts(&session, "SELECT payload FROM litmus_pgnats_test_messages").await;
    assert_eq!(all.len(), 2, "{all:?}");
}

/// Each type of payload with each number of further arguments, and whatever the function returns.
#[tokio::test]
async fn every_signature() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE TABLE calls (type text, payload text, subject text, reply_to text, headers jsonb, arguments int)",
    )
    .await;
    let further = ["", ", subject text", ", reply_to text", ", headers jsonb"];
    let returns = ["void", "integer", "SETOF text", "calls"];
    let results = [
        "",
        "SELECT 1",
        "VALUES ('a'), ('b')",
        "SELECT calls FROM calls LIMIT 1",
    ];
    for kind in ["bytea", "text", "json", "jsonb"] {
        for count in 0..=3 {
            let arguments = further[..=count].concat();
            let given = ["subject", "reply_to", "headers"];
            let given: String = (0..3)
                .map(|i| {
                    if i < count {
                        format!(", {}", given[i])
                    } else {
                        ", NULL".into()
                    }
                })
                .collect();
            let text = if kind == "bytea" {
                "convert_from(payload, 'utf8')"
            } else {
                "payload::text"
            };
            let name = format!("take_{kind}_{count}");
            run(
                &session,
                &format!(
                    "CREATE FUNCTION {name}(payload {kind}{arguments}) RETURNS {} LANGUAGE sql AS $$
                       INSERT INTO calls VALUES ('{kind}', {text}{given}, {count}); {} $$;
                     SELECT nats_subscribe('every.{kind}.{count}', '{name}'::regproc)",
                    returns[count], results[count]
                ),
            )
            .await;
            until_live(&session, &format!("every.{kind}.{count}")).await;
            let mut headers = HeaderMap::new();
            headers.insert("Kind", "test");
            headers.append("Tag", "fresh");
            headers.append("Tag", "fragile");
            client
                .publish_with_reply_and_headers(
                    format!("every.{kind}.{count}"),
                    "answer.here",
                    headers,
                    r#"{ "b":1, "a":[1,2 ] }"#.into(),
                )
                .await
                .expect("publish");
        }
    }
    until_number(&session, 16, "SELECT count(*) FROM calls").await;
    for kind in ["bytea", "text", "json", "jsonb"] {
        let payload = if kind == "jsonb" {
            r#"{"a": [1, 2], "b": 1}"#
        } else {
            r#"{ "b":1, "a":[1,2 ] }"#
        };
        for count in 0..=3 {
            let row = session
                .query_one(
                    "SELECT payload, subject, reply_to, headers::text FROM calls WHERE type = $1 AND arguments = $2",
                    &[&kind, &i32::try_from(count).expect("a small number")],
                )
                .await
                .unwrap_or_else(|e| panic!("{kind} with {count}: {e:?}"));
            let subject = format!("every.{kind}.{count}");
            let given = |i: usize, value: &str| (count > i).then(|| value.to_owned());
            assert_eq!(row.get::<_, String>(0), payload, "{kind} with {count}");
            assert_eq!(row.get::<_, Option<String>>(1), given(0, &subject));
            assert_eq!(row.get::<_, Option<String>>(2), given(1, "answer.here"));
            let headers = r#"{"Tag": ["fresh", "fragile"], "Kind": "test"}"#;
            assert_eq!(row.get::<_, Option<String>>(3), given(2, headers));
        }
    }
}

/// What a message does not have is NULL; an empty payload is empty; the largest that NATS takes arrives whole.
#[tokio::test]
async fn messages_of_every_shape() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE TABLE shapes (size int, digest text, reply_to text, headers jsonb);
         CREATE FUNCTION measure(payload bytea, subject text, reply_to text, headers jsonb) RETURNS void
         LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO shapes VALUES (length(payload), md5(payload), reply_to, headers);
         END $$",
    )
    .await;
    subscribe(&session, "shapes", "measure").await;
    let bytes: Vec<u8> = (0..1_048_576_u32).map(|n| (n % 251) as u8).collect();
    for payload in [&b""[..], &[0, 255, 10, 13], &bytes] {
        say(&client, "shapes", payload).await;
        let digest = session
            .query_one("SELECT md5($1::bytea)", &[&payload])
            .await
            .expect("a digest")
            .get::<_, String>(0);
        let row = eventually(SOON, async || {
            let found = session
                .query_opt("SELECT * FROM shapes WHERE digest = $1", &[&digest])
                .await;
            found.expect("read a table")
        })
        .await;
        assert_eq!(
            row.get::<_, i32>(0),
            i32::try_from(payload.len()).expect("a size")
        );
        assert_eq!(row.get::<_, Option<String>>(2), None);
        let headers = session
            .query_one(
                "SELECT bool_and(headers IS NULL OR headers = '{}') FROM shapes",
                &[],
            )
            .await;
        assert!(headers.expect("headers").get::<_, bool>(0));
    }
}

/// `*` stands for one token, `>` for one and more; the callback learns which subject it was.
#[tokio::test]
async fn wildcards() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE FUNCTION star(payload text, subject text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO got (payload) VALUES ('star ' || subject) $$;
         CREATE FUNCTION rest(payload text, subject text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO got (payload) VALUES ('rest ' || subject) $$",
    )
    .await;
    subscribe(&session, "w.*", "star").await;
    subscribe(&session, "w.*.c", "star").await;
    subscribe(&session, "w.>", "rest").await;
    for subject in ["w", "w.a", "w.b.c", "w.b.d", "other"] {
        say(&client, subject, "").await;
    }
    let sorted = "SELECT payload FROM got ORDER BY payload";
    let expected = "rest w.a,rest w.b.c,rest w.b.d,star w.a,star w.b.c".to_owned();
    eventually_eq(SOON, expected, async || texts(&session, sorted).await.join(",")).await;
}

/// Each function on a subject gets each message once, as does one function on several subjects.
#[tokio::test]
async fn several_functions_on_one_subject() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    for n in 1..=3 {
        let sql = format!(
            "CREATE FUNCTION keep_{n}(msg text) RETURNS void LANGUAGE sql AS
               $$ INSERT INTO got (payload) VALUES ('{n} ' || msg) $$"
        );
        run(&session, &sql).await;
        subscribe(&session, "shared", &format!("keep_{n}")).await;
    }
    subscribe(&session, "another", "keep_1").await;
    say(&client, "shared", "a").await;
    say(&client, "another", "b").await;
    let sorted = "SELECT payload FROM got ORDER BY payload";
    eventually_eq(SOON, "1 a,1 b,2 a,3 a".to_owned(), async || {
        texts(&session, sorted).await.join(",")
    })
    .await;
    // One of them leaves, the others stay.
    run(
        &session,
        "TRUNCATE got; SELECT nats_unsubscribe('shared', 'keep_2')",
    )
    .await;
    run(&session, "SELECT nats_publish_text('shared', 'c')").await;
    eventually_eq(SOON, "1 c,3 c".to_owned(), async || {
        texts(&session, sorted).await.join(",")
    })
    .await;
}

/// A function with overloads is chosen by its arguments.
#[tokio::test]
async fn overloads_are_told_apart() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    run(
        &session,
        "CREATE FUNCTION keep(msg text) RETURNS void LANGUAGE sql AS
           $$ INSERT INTO got (payload) VALUES ('as text: ' || msg) $$",
    )
    .await;
    let (report, _) = refused(&session, "SELECT nats_subscribe('over', 'keep'::regproc)").await;
    assert_eq!(report.code, "42725", "{report:?}");
    run(
        &session,
        "SELECT nats_subscribe('over.text', 'keep(text)'::regprocedure)",
    )
    .await;
    run(
        &session,
        "SELECT nats_subscribe('over.bytea', 'keep(bytea)'::regprocedure)",
    )
    .await;
    until_live(&session, "over.text").await;
    until_live(&session, "over.bytea").await;
    say(&client, "over.text", "1").await;
    until_got(&session, &["as text: 1"]).await;
    say(&client, "over.bytea", "2").await;
    until_got(&session, &["as text: 1", "2"]).await;
}

/// What a session publishes after it subscribed, its own callback gets: the session waits for the subscription.
#[tokio::test]
async fn a_session_reaches_its_own_subscription() {
    let (_scene, session) = Scene::keeping().await;
    let mut expected = Vec::new();
    for n in 1..=20 {
        let sql = format!("SELECT nats_subscribe('own.{n}', 'keep')");
        run(&session, &sql).await;
        run(&session, &format!("SELECT nats_publish_text('own.{n}', '{n}')")).await;
        expected.push(n.to_string());
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        until_got(&session, &expected).await;
    }
}

/// A callback may use NATS itself: it publishes, and asks a responder of the same database.
#[tokio::test]
async fn callbacks_use_nats() {
    let (scene, session) = Scene::keeping().await;
    let client = scene.nats.client().await;
    let mut inbox = scene.silent_responder("passed.on").await;
    run(
        &session,
        "CREATE FUNCTION twice(q text) RETURNS text LANGUAGE sql AS $$ SELECT q || q $$;
         CREATE FUNCTION pass_on(msg text) RETURNS void LANGUAGE sql AS
           $$ SELECT nats_publish_text('passed.on', nats_request_text('twice', msg)) $$",
    )
    .await;
    respond(&session, "twice", "twice").await;
    subscribe(&session, "pass", "pass_on").await;
    for n in 1..=5 {
        say(&client, "pass", n.to_string()).await;
        let passed = tokio::time::timeout(SOON, futures::StreamExt::next(&mut inbox)).await;
        let passed = passed.expect("a message in time").expect("an open subscription");
        assert_eq!(passed.payload, format!("{n}{n}"));
    }
}
