//! Requests: what comes back, in every type, and whose reply it is.

mod stage;
mod support;

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use stage::*;
use support::{Session, db_error};

/// A request returns its own type, and sends it in the form in which a publish does.
#[tokio::test]
async fn a_request_returns_its_own_type() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    let json = r#"'{ "b":1, "a":[1,2 ] }'"#;
    for (name, payload, sql_type, expected) in [
        ("text", "'grüße'", "text", "grüße"),
        ("text", "''", "text", ""),
        ("json", json, "json", r#"{ "b":1, "a":[1,2 ] }"#),
        ("jsonb", json, "jsonb", r#"{"a": [1, 2], "b": 1}"#),
        ("binary", r"'\x00ff0a'", "bytea", r"\x00ff0a"),
        ("binary", r"'\x'", "bytea", r"\x"),
    ] {
        let sql = format!("SELECT pg_typeof(r)::text, r::text FROM nats_request_{name}('echo', {payload}) r");
        let row = session
            .query_one(&sql, &[])
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        assert_eq!((row.get(0), row.get(1)), (sql_type, expected), "{sql}");
    }
}

/// The documented form, named arguments, and every type's timeout.
#[tokio::test]
async fn every_documented_form_works() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    stage
        .respond("rpc.subject", |request| request.payload.to_vec())
        .await;
    for call in [
        r#"nats_request_json('rpc.subject', '{"q": "v"}'::json, 5000)"#,
        r#"nats_request_jsonb('rpc.subject', '{"q": "v"}'::jsonb, 5000)"#,
        r#"nats_request_text('rpc.subject', '{"q": "v"}', 2147483647)"#,
        r#"convert_from(nats_request_binary('rpc.subject', '{"q": "v"}'::bytea, 5000), 'utf8')"#,
        r#"nats_request_text(timeout_ms => 5000, payload => '{"q": "v"}', subject => 'rpc.subject')"#,
    ] {
        let reply: String = value(&session, &format!("SELECT {call}::text")).await;
        assert_eq!(reply, r#"{"q": "v"}"#, "{call}");
    }
}

/// A reply that its type cannot hold is an error that says what is wrong, and the session goes on.
#[tokio::test]
async fn replies_of_the_wrong_form_are_clear_errors() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    let cases: [(&str, &[u8], &str, &str, &str); 8] = [
        (
            "text",
            b"ab\xff",
            "22021",
            "reply is not valid text: not UTF-8",
            "offset 2",
        ),
        (
            "text",
            b"a\0b",
            "22021",
            "reply is not valid text: a zero byte",
            "offset 1",
        ),
        (
            "json",
            b"\"\xc3\"",
            "22021",
            "reply is not valid text: not UTF-8",
            "offset 1",
        ),
        (
            "json",
            b"{\"a\": }",
            "22P02",
            "reply is not valid JSON",
            "column 7",
        ),
        ("json", b"", "22P02", "reply is not valid JSON", "EOF"),
        (
            "jsonb",
            b"{} trailing",
            "22P02",
            "reply is not valid JSON",
            "column 4",
        ),
        ("jsonb", b"hello", "22P02", "reply is not valid JSON", "column 1"),
        // Valid JSON, but jsonb has no such character: PostgreSQL's own error.
        (
            "jsonb",
            br#""\u0000""#,
            "22P05",
            "unsupported Unicode escape sequence",
            r"\u0000",
        ),
    ];
    for (number, (name, reply, code, message, detail)) in cases.into_iter().enumerate() {
        let subject = format!("bad.{number}");
        stage.respond(&subject, |_| reply.to_vec()).await;
        let refused = failure(&session, &format!("SELECT nats_request_{name}('{subject}', '1')")).await;
        assert_eq!(
            (&*refused.code, &*refused.message),
            (code, message),
            "{refused:?}"
        );
        assert!(
            refused.detail.as_ref().is_some_and(|d| d.contains(detail)),
            "{refused:?}"
        );
        let raw: Vec<u8> = value(&session, &format!("SELECT nats_request_binary('{subject}', '')")).await;
        assert_eq!(raw, reply);
    }
}

/// A service that failed says so in headers: an SQL error with its code and text, whatever the payload.
#[tokio::test]
async fn a_service_error_is_an_sql_error() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("svc").await, stage.pg.connect().await);
    for (code, text, message, detail) in [
        (
            Some("404"),
            "no such account",
            "failed: no such account",
            Some("Its error code is 404."),
        ),
        (None, "broken", "failed: broken", None),
        (
            Some("500"),
            "It broke.",
            "failed: It broke",
            Some("Its error code is 500."),
        ),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error", text);
        if let Some(code) = code {
            headers.insert("Nats-Service-Error-Code", code);
        }
        let answering = async {
            let request = inbox.next().await;
            inbox.answer_with(&request, headers, b"not a result".into()).await;
        };
        let (refused, ()) = tokio::join!(
            failure(&session, "SELECT nats_request_text('svc', '')"),
            answering
        );
        assert_eq!(
            (&*refused.code, refused.detail.as_deref()),
            ("38000", detail),
            "{refused:?}"
        );
        assert_eq!(refused.message, format!("service on subject \"svc\" {message}"));
    }
    // Other headers are no error.
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Warning", "slow");
    let answering = async {
        let request = inbox.next().await;
        inbox.answer_with(&request, headers, b"a result".into()).await;
    };
    let (reply, ()) = tokio::join!(
        value::<String>(&session, "SELECT nats_request_text('svc', '')"),
        answering
    );
    assert_eq!(reply, "a result");
}

/// Nobody there is an error at once; somebody slow is one after the given time.
#[tokio::test]
async fn no_responder_and_no_reply_differ() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("slow").await, stage.pg.connect().await);
    let began = Instant::now();
    let nobody = failure(&session, "SELECT nats_request_text('nobody.home', '', 60000)").await;
    assert!(began.elapsed() < SOON, "took {:?}", began.elapsed());
    assert_eq!(
        nobody.message,
        "no responders are available for subject \"nobody.home\""
    );

    let began = Instant::now();
    let late = failure(&session, "SELECT nats_request_text('slow', '', 300)").await;
    assert!(
        began.elapsed() >= Duration::from_millis(300),
        "gave up after {:?}",
        began.elapsed()
    );
    assert_eq!(late.message, "no reply on subject \"slow\" within 300 ms");
    assert_ne!(nobody.code, late.code);
    assert_eq!(inbox.text().await, "");
}

/// Answers `second`, but only after the late reply to `first` has reached the NATS server.
async fn late_reply_goes_nowhere(session: &Session, inbox: &mut Inbox, first: async_nats::Message) {
    let asking = value::<String>(session, "SELECT nats_request_text('slow', 'second', 30000)");
    let answering = async {
        let second = inbox.next().await;
        assert_eq!(second.payload, "second");
        inbox.answer(&first, b"late".into()).await;
        inbox.answer(&second, b"right".into()).await;
    };
    let (reply, ()) = tokio::join!(asking, answering);
    assert_eq!(reply, "right");
}

/// The reply to a request that was given up is not the next one's: after a timeout, statement_timeout, and a cancel.
#[tokio::test]
async fn a_late_reply_is_nobody_elses() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("slow").await, stage.pg.connect().await);

    failure(&session, "SELECT nats_request_text('slow', 'first', 200)").await;
    let first = inbox.next().await;
    late_reply_goes_nowhere(&session, &mut inbox, first).await;

    run(&session, "SET statement_timeout = '200ms'").await;
    let cancelled = failure(&session, "SELECT nats_request_text('slow', 'first')").await;
    assert_eq!(cancelled.message, "canceling statement due to statement timeout");
    run(&session, "RESET statement_timeout").await;
    let first = inbox.next().await;
    late_reply_goes_nowhere(&session, &mut inbox, first).await;

    let cancelling = async {
        let first = inbox.next().await;
        stage
            .pg
            .sql(&format!("SELECT pg_cancel_backend({})", session.pid()))
            .await;
        first
    };
    let (cancelled, first) = tokio::join!(
        failure(&session, "SELECT nats_request_text('slow', 'first', 30000)"),
        cancelling
    );
    assert_eq!(cancelled.message, "canceling statement due to user request");
    late_reply_goes_nowhere(&session, &mut inbox, first).await;
}

/// Only the first reply counts; a second one to the same request is not taken for the next one's.
#[tokio::test]
async fn a_second_reply_is_dropped() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("twice").await, stage.pg.connect().await);
    for n in ["1", "2", "3"] {
        let sql = format!("SELECT nats_request_text('twice', '{n}')");
        let answering = async {
            let request = inbox.next().await;
            inbox.answer(&request, request.payload.to_vec()).await;
            inbox.answer(&request, b"once more".into()).await;
        };
        let (reply, ()) = tokio::join!(value::<String>(&session, &sql), answering);
        assert_eq!(reply, n);
    }
}

/// Payloads and replies up to the NATS server's limit of 1 MiB pass whole.
#[tokio::test]
async fn big_replies_arrive_whole() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    for size in [65_535, 65_536, 1 << 20] {
        let sql = "SELECT nats_request_binary('echo', $1) = $1, md5(nats_request_text('echo', repeat('x', $2))) = md5(repeat('x', $2))";
        let payload: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        let row = session
            .query_one(sql, &[&payload, &size])
            .await
            .expect("a big reply");
        assert_eq!((row.get(0), row.get(1)), (true, true), "{size} bytes");
    }
    let refused = failure(&session, "SELECT nats_request_text('echo', repeat('x', 1048577))").await;
    assert_eq!(refused.code, "54000");
}

/// Many sessions ask at once, each gets its own replies, also when they come in another order than they were asked in.
#[tokio::test]
async fn concurrent_requesters_get_their_own_replies() {
    const SESSIONS: usize = 32;
    let stage = Stage::start().await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    let mut held = stage.subscribe("held").await;
    let sessions: Vec<Session> = futures::future::join_all((0..SESSIONS).map(|_| stage.pg.connect())).await;
    let ask = async |number: usize| {
        let session = &sessions[number];
        let sql = "SELECT bool_and(nats_request_text('echo', $1 || '-' || n) = $1 || '-' || n) FROM generate_series(1, 50) n";
        let row = session
            .query_one(sql, &[&number.to_string()])
            .await
            .expect("requests");
        assert_eq!(row.get::<_, Option<bool>>(0), Some(true), "session {number}");
        let row = session
            .query_one(
                "SELECT nats_request_text('held', $1, 60000)",
                &[&number.to_string()],
            )
            .await;
        assert_eq!(row.expect("a reply").get::<_, String>(0), number.to_string());
    };
    let answering = async {
        let mut requests = Vec::new();
        for _ in 0..SESSIONS {
            requests.push(held.next().await);
        }
        for request in requests.iter().rev() {
            held.answer(request, request.payload.to_vec()).await;
        }
    };
    tokio::join!(futures::future::join_all((0..SESSIONS).map(ask)), answering);
}

/// Several responders of one queue, a request inside PL/pgSQL, and one whose reply is used in the same statement.
#[tokio::test]
async fn requests_work_inside_functions() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    stage
        .respond("double", |request| {
            [&request.payload[..], &request.payload[..]].concat()
        })
        .await;
    run(
        &session,
        "CREATE FUNCTION twice(t text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE r text; BEGIN
            r := nats_request_text('double', t);
            RETURN nats_request_text('double', r); END $$",
    )
    .await;
    assert_eq!(
        value::<String>(
            &session,
            "SELECT twice('a') || nats_request_text('double', twice('b'))"
        )
        .await,
        "aaaabbbbbbbb"
    );
    let caught = "DO $$ BEGIN PERFORM nats_request_text('nobody', ''); RAISE 'no error';
        EXCEPTION WHEN fdw_unable_to_create_reply THEN PERFORM twice('c'); END $$";
    run(&session, caught).await;
}

/// What a LATIN1 database lacks is escaped in a message, rather than hiding the error behind another.
#[tokio::test]
async fn an_error_text_that_the_database_cannot_hold_is_escaped() {
    let stage = Stage::start().await;
    run(
        &stage.pg.connect().await,
        "CREATE DATABASE latin1 ENCODING 'LATIN1' TEMPLATE template0",
    )
    .await;
    let session = stage.pg.connect_as("postgres", "latin1").await;
    run(&session, "CREATE EXTENSION litmus_pgnats").await;
    create_server(&session, "nats", stage.nats.port(), "").await;
    let mut inbox = stage.subscribe("svc").await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error", "5 €");
    let answering = async {
        let request = inbox.next().await;
        inbox.answer_with(&request, headers, Vec::new()).await;
    };
    let (outcome, ()) = tokio::join!(
        session.batch_execute("SELECT nats_request_text('svc', '')"),
        answering
    );
    let refused = db_error(&outcome.expect_err("a service error"));
    assert_eq!(
        (&*refused.code, &*refused.message),
        ("38000", "service on subject \"svc\" failed: 5 \\u{20ac}")
    );
}
