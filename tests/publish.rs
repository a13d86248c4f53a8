//! What a publish sends: every type, headers, forms of the call, sizes and encodings, as an outside subscriber sees it.

mod stage;
mod support;

use async_nats::Message;
use stage::*;

const MIB: usize = 1 << 20;

/// Header values by name.
fn header(message: &Message, name: &str) -> Vec<String> {
    let headers = message.headers.as_ref().expect("headers");
    headers.get_all(name).map(|value| value.to_string()).collect()
}

/// Each type has its own form on the wire: json keeps what was typed, jsonb is canonical, bytea is raw.
#[tokio::test]
async fn every_type_leaves_in_its_own_form() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("t.>").await, stage.pg.connect().await);
    let cases: [(&str, &str, &[u8]); 5] = [
        ("text", "'hello'", b"hello"),
        (
            "json",
            r#"'{ "b":1,  "a":[1,2 ], "b":2 }'"#,
            br#"{ "b":1,  "a":[1,2 ], "b":2 }"#,
        ),
        (
            "jsonb",
            r#"'{ "b":1,  "a":[1,2 ], "b":2 }'"#,
            br#"{"a": [1, 2], "b": 2}"#,
        ),
        ("binary", r"'\x00ff0d0a00'", b"\x00\xff\r\n\x00"),
        ("binary", "'\\x'", b""),
    ];
    for (name, payload, expected) in cases {
        run(
            &session,
            &format!("SELECT nats_publish_{name}('t.{name}', {payload})"),
        )
        .await;
        let message = inbox.next().await;
        assert_eq!(&message.payload[..], expected, "{name}");
        assert_eq!(message.subject.as_str(), format!("t.{name}"));
        assert_eq!((&message.reply, &message.headers), (&None, &None), "{name}");
    }
}

/// Toasted values arrive whole: they are stored compressed or out of line.
#[tokio::test]
async fn stored_values_are_detoasted() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("t").await, stage.pg.connect().await);
    run(
        &session,
        "CREATE TABLE v (t text, j json, b bytea); ALTER TABLE v ALTER b SET STORAGE EXTERNAL",
    )
    .await;
    run(&session, "INSERT INTO v SELECT repeat('x', 100000), to_json(repeat('y', 100000)), decode(repeat('00ff', 50000), 'hex')").await;
    run(&session, "SELECT nats_publish_text('t', t), nats_publish_json('t', j), nats_publish_jsonb('t', j::jsonb), nats_publish_binary('t', b) FROM v").await;
    assert_eq!(inbox.text().await, "x".repeat(100_000));
    let json = format!("\"{}\"", "y".repeat(100_000));
    assert_eq!([inbox.text().await, inbox.text().await], [json.clone(), json]);
    assert_eq!(&inbox.next().await.payload[..], [0, 0xff].repeat(50_000));
}

/// Every form of the specification, with the arguments in their places and by their names.
#[tokio::test]
async fn every_documented_form_works() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("sub.ject").await, stage.pg.connect().await);
    let id = Some("1");
    let cases = [
        ("nats_publish_text('sub.ject', 'hello')", None, None),
        (
            "nats_publish_text('sub.ject', 'hello', 'reply.subject')",
            Some("reply.subject"),
            None,
        ),
        (
            r#"nats_publish_text('sub.ject', 'hello', NULL, '{"Nats-Msg-Id": "1"}'::jsonb)"#,
            None,
            id,
        ),
        (
            r#"nats_publish_text('sub.ject', 'hello', 'r', '{"Nats-Msg-Id": "1"}')"#,
            Some("r"),
            id,
        ),
        (
            r#"nats_publish_text(payload => 'hello', headers => '{"Nats-Msg-Id": "1"}', subject => 'sub.ject')"#,
            None,
            id,
        ),
        (
            "nats_publish_text('sub.ject', reply => 'r', payload => 'hello')",
            Some("r"),
            None,
        ),
        (
            "nats_publish_json('sub.ject', 'null'::json, 'r')",
            Some("r"),
            None,
        ),
        (
            r#"nats_publish_jsonb('sub.ject', 'null'::jsonb, 'r', '{"Nats-Msg-Id": "1"}')"#,
            Some("r"),
            id,
        ),
        (
            r#"nats_publish_binary('sub.ject', 'hello'::bytea, NULL, '{"Nats-Msg-Id": "1"}')"#,
            None,
            id,
        ),
        ("nats_publish_text('sub.ject', 'hello', NULL, NULL)", None, None),
        ("nats_publish_text('sub.ject', 'hello', NULL, '{}')", None, None),
    ];
    for (call, reply, id) in cases {
        run(&session, &format!("SELECT {call}")).await;
        let message = inbox.next().await;
        assert_eq!(
            message.reply.as_ref().map(|reply| reply.as_str()),
            reply,
            "{call}"
        );
        match id {
            Some(id) => assert_eq!(header(&message, "Nats-Msg-Id"), [id], "{call}"),
            None => assert_eq!(message.headers, None, "{call}"),
        }
    }
    let kind: String = value(
        &session,
        "SELECT pg_typeof(nats_publish_text('sub.ject', ''))::text",
    )
    .await;
    assert_eq!(kind, "void");
}

/// A header may have several values, an empty one, and text that is not ASCII.
#[tokio::test]
async fn headers_arrive_with_all_their_values() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("h").await, stage.pg.connect().await);
    let headers = r#"{"a": "1", "b": ["2", "3", "2"], "empty": "", "none": [], "text": "grüße: ; \t"}"#;
    session
        .execute(
            "SELECT nats_publish_text('h', 'x', NULL, $1::text::jsonb)",
            &[&headers],
        )
        .await
        .expect("publish");
    let message = inbox.next().await;
    assert_eq!(header(&message, "a"), ["1"]);
    assert_eq!(header(&message, "b"), ["2", "3", "2"]);
    assert_eq!(header(&message, "empty"), [""]);
    assert_eq!(header(&message, "none").len(), 0);
    assert_eq!(header(&message, "text"), ["grüße: ; \t".trim_end()]);
    assert_eq!(message.payload, "x");
}

/// An empty payload is a message like any other.
#[tokio::test]
async fn an_empty_payload_is_a_message() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("e").await, stage.pg.connect().await);
    run(
        &session,
        "SELECT nats_publish_text('e', ''), nats_publish_binary('e', ''), nats_publish_text('e', 'end')",
    )
    .await;
    assert_eq!(inbox.texts_until("end").await, ["", ""]);
}

/// Subjects and payloads are UTF-8; nothing is cut, escaped or normalized.
#[tokio::test]
async fn unicode_goes_through() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("ünï.*").await, stage.pg.connect().await);
    let text = "žluťoučký 主题 🦀 e\u{301} \u{feff}";
    let sql = "SELECT nats_publish_text('ünï.主题🦀', $1), nats_publish_jsonb('ünï.j', to_jsonb($1::text))";
    session.execute(sql, &[&text]).await.expect("publish");
    let message = inbox.next().await;
    assert_eq!(message.subject.as_str(), "ünï.主题🦀");
    assert_eq!(std::str::from_utf8(&message.payload), Ok(text));
    assert_eq!(inbox.text().await, format!("\"{text}\""));
}

/// The limit is the server's own, to the byte, and headers count; one byte more is an error before anything leaves.
#[tokio::test]
async fn payloads_up_to_max_payload() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("big").await, stage.pg.connect().await);
    let headers = r#"{"k": "v"}"#;
    let frame = "NATS/1.0\r\nk: v\r\n\r\n".len();
    for (size, headers) in [(MIB, None), (MIB - frame, Some(headers))] {
        let publish = |size: usize| {
            let size = i32::try_from(size).expect("small");
            let sql =
                "SELECT nats_publish_binary('big', decode(repeat('a5', $1), 'hex'), NULL, $2::text::jsonb)";
            let session = &session;
            async move { session.execute(sql, &[&size, &headers]).await }
        };
        publish(size).await.expect("at the limit");
        assert!(inbox.next().await.payload == vec![0xa5; size], "{size} bytes");
        let refused = support::db_error(&publish(size + 1).await.expect_err("over the limit"));
        assert_eq!(refused.code, "54000", "{refused:?}");
        assert!(
            refused
                .detail
                .as_ref()
                .is_some_and(|d| d.contains("1048577 bytes")),
            "{refused:?}"
        );
    }
    run(&session, "SELECT nats_publish_text('big', 'end')").await;
    assert_eq!(inbox.texts_until("end").await.len(), 0);
}

/// A server may be configured for more or less, and the new limit applies after a reconnect.
#[tokio::test]
async fn the_limit_is_the_servers() {
    let small = || support::NatsServer::builder().config("max_payload: 1000");
    let mut stage = Stage::with(small(), support::Postgres::builder()).await;
    let (mut inbox, session) = (stage.subscribe("s").await, stage.pg.connect().await);
    run(&session, "SELECT nats_publish_text('s', repeat('x', 1000))").await;
    assert_eq!(inbox.next().await.payload.len(), 1000);
    let refused = failure(&session, "SELECT nats_publish_text('s', repeat('x', 1001))").await;
    assert_eq!(refused.code, "54000");
    let in_two_bytes = failure(&session, "SELECT nats_publish_text('s', repeat('é', 501))").await;
    assert_eq!(in_two_bytes.code, "54000", "bytes count, not characters");
    let larger = support::NatsServer::builder().config("max_payload: 2000");
    stage.nats.restart_with(larger).await;
    let statement = "SELECT nats_publish_text('s', repeat('x', 2000))";
    support::eventually(SOON, async || session.batch_execute(statement).await).await;
}

/// Text leaves a LATIN1 database as UTF-8, comes back converted, and what LATIN1 lacks is a clear error.
#[tokio::test]
async fn a_latin1_database_speaks_utf8_outside() {
    let stage = Stage::start().await;
    let session = other_encoding(&stage, "LATIN1").await;
    let (mut inbox, text) = (stage.subscribe("grün").await, "Größe");
    let sql = "SELECT nats_publish_text('grün', $1), nats_publish_json('grün', to_json($1::text)), \
        nats_publish_jsonb('grün', to_jsonb($1::text), NULL, jsonb_build_object('k', $1::text))";
    session.execute(sql, &[&text]).await.expect("publish");
    assert_eq!(inbox.text().await, text);
    assert_eq!(inbox.text().await, format!("\"{text}\""));
    let message = inbox.next().await;
    assert_eq!(&message.payload[..], format!("\"{text}\"").as_bytes());
    assert_eq!(header(&message, "k"), [text]);

    stage.respond("echo.*", |request| request.payload.to_vec()).await;
    stage.respond("euro.*", |_| "\"€\"".into()).await;
    let echoed = "SELECT nats_request_text('echo.a', 'Größe') || length(nats_request_text('echo.a', 'Größe')) \
        || nats_request_json('echo.a', '\"ö\"')::text || nats_request_jsonb('echo.a', '\"ö\"')::text";
    assert_eq!(value::<String>(&session, echoed).await, "Größe5\"ö\"\"ö\"");
    for kind in [
        "text('euro.a', '')",
        "json('euro.a', '1')",
        "jsonb('euro.a', '1')",
    ] {
        let refused = failure(&session, &format!("SELECT nats_request_{kind}")).await;
        assert_eq!(refused.code, "22P05", "untranslatable_character: {refused:?}");
        assert!(refused.message.contains("\"LATIN1\""), "{refused:?}");
    }
    let euro: Vec<u8> = value(&session, "SELECT nats_request_binary('euro.a', '')").await;
    assert_eq!(euro, "\"€\"".as_bytes());
    let refused = failure(&session, "SELECT nats_publish_text('grün..x', '')").await;
    assert_eq!(
        refused.detail.as_deref(),
        Some("The subject \"grün..x\" has an empty token.")
    );
}

/// Names and options of such a database are text too: what NATS is told of them is UTF-8.
#[tokio::test]
async fn a_latin1_database_presents_its_credential_as_utf8() {
    let (stage, stub) = (Stage::start().await, support::WireStub::start());
    let session = other_encoding(&stage, "LATIN1").await;
    let credential = ", username 'Jürgen', password 'pässwört'";
    create_server(&session, "\"größer\"", stub.port(), credential).await;
    let missing = failure(
        &session,
        "SET litmus_pgnats.server = 'ö'; SELECT nats_publish_text('a', '')",
    )
    .await;
    assert_eq!(missing.message, "foreign server \"ö\" does not exist");
    run(
        &session,
        "SET litmus_pgnats.server = 'größer'; SELECT nats_publish_text('a', '')",
    )
    .await;
    let connect = stub.connect().await;
    assert_eq!([&connect["user"], &connect["pass"]], ["Jürgen", "pässwört"]);
    let name = connect["name"].as_str().expect("a name");
    assert!(name.ends_with("/other/größer"), "{name}");
}

/// A SQL_ASCII database may hold bytes that are no text anywhere else: text is refused, bytea is not.
#[tokio::test]
async fn bytes_that_are_not_utf8_do_not_leave_as_text() {
    let stage = Stage::start().await;
    let session = other_encoding(&stage, "SQL_ASCII").await;
    let mut inbox = stage.subscribe("b").await;
    let refused = failure(&session, r"SELECT nats_publish_text('b', E'\xff')").await;
    assert_eq!(refused.code, "22021", "{refused:?}");
    run(
        &session,
        r"SELECT nats_publish_binary('b', '\xff'), nats_publish_text('b', 'grün')",
    )
    .await;
    assert_eq!(&inbox.next().await.payload[..], b"\xff");
    assert_eq!(inbox.text().await, "grün");
}

/// A session in a new database of this encoding, with the extension and the server.
async fn other_encoding(stage: &Stage, encoding: &str) -> support::Session {
    let session = stage.pg.connect().await;
    run(
        &session,
        &format!("CREATE DATABASE other ENCODING '{encoding}' TEMPLATE template0"),
    )
    .await;
    let session = stage.pg.connect_as("postgres", "other").await;
    run(&session, "CREATE EXTENSION litmus_pgnats").await;
    create_server(&session, "nats", stage.nats.port(), "").await;
    session
}
