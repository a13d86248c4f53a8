//! `nats_publish_*_stream`: the sequence after the acknowledgement, and every way in which there is none.

mod stage;
mod support;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use futures::future::join_all;
use serde_json::json;
use stage::*;
use support::{NatsServer, Postgres};

/// For whatever must not wait for a time-out, which is 5 s.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A memory stream made by an outside client.
async fn create_stream(nats: &NatsServer, config: stream::Config) {
    let context = jetstream::new(nats.client().await);
    let storage = stream::StorageType::Memory;
    let created = context.create_stream(stream::Config { storage, ..config }).await;
    created.expect("create a stream");
}

fn named(name: &str, subject: &str) -> stream::Config {
    stream::Config {
        name: name.into(),
        subjects: vec![subject.into()],
        ..Default::default()
    }
}

/// Each type is stored in its own form under the sequence that is returned, with its headers: read by nats-py.
#[tokio::test]
async fn the_sequence_is_where_the_message_is() {
    let stage = Stage::jetstream().await;
    let nats = &stage.nats;
    nats.python(json!([
        ["stream_create", "S", "s.>"],
        ["stream_publish", "s.0", "30", {}]
    ]))
    .await;
    let session = stage.pg.connect().await;
    let forms = [
        "text_stream('s.2', 'grün')",
        "json_stream('s.3', '{ \"b\":1 }')",
        "jsonb_stream('s.4', '{ \"b\":1 }', NULL)",
        r"binary_stream('s.5', '\x00ff')",
        r#"text_stream('s.6', '', '{"a": "1", "b": "2"}', NULL)"#,
        r#"text_stream(headers => '{"a": "1"}', payload => 'x', subject => 's.7')"#,
    ];
    for (form, expected) in forms.into_iter().zip(2_i64..) {
        let sequence: i64 = value(&session, &format!("SELECT nats_publish_{form}")).await;
        assert_eq!(sequence, expected, "{form}");
    }
    let steps: Vec<_> = (2..8)
        .map(|sequence| json!(["stream_get", "S", sequence]))
        .collect();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let expected = [
        json!(["s.2", hex("grün".as_bytes()), null]),
        json!(["s.3", hex(b"{ \"b\":1 }"), null]),
        json!(["s.4", hex(b"{\"b\": 1}"), null]),
        json!(["s.5", "00ff", null]),
        json!(["s.6", "", {"a": "1", "b": "2"}]),
        json!(["s.7", hex(b"x"), {"a": "1"}]),
    ];
    assert_eq!(nats.python(json!(steps)).await, expected);
}

/// The acknowledgements of sessions are pipelined on the one connection: here none comes before all have asked. And no
/// call returns before its own.
#[tokio::test]
async fn acknowledgements_are_pipelined() {
    const SESSIONS: usize = 32;
    let stage = Stage::start().await;
    let mut inbox = stage.subscribe("ack.*").await;
    let sessions = join_all((0..SESSIONS).map(|_| stage.pg.connect())).await;
    let publishes = join_all(sessions.iter().zip(1..).map(|(session, number)| async move {
        let sql = format!("SELECT nats_publish_text_stream('ack.{number}', '')");
        (number, value::<i64>(session, &sql).await)
    }));
    let answers = async {
        let mut waiting = Vec::new();
        for _ in 0..SESSIONS {
            waiting.push(inbox.next().await);
        }
        for request in waiting {
            let number = &request.subject.as_str()["ack.".len()..];
            let ack = format!(r#"{{"stream": "S", "seq": {number}}}"#);
            inbox.answer(&request, ack.into()).await;
        }
        runtime_connections(&stage).await
    };
    let (sequences, connections) = tokio::join!(publishes, answers);
    assert!(sequences.into_iter().all(|(asked, got)| asked == got));
    assert_eq!(connections, 1);
}

/// Connections of the extension, told by their name.
async fn runtime_connections(stage: &Stage) -> usize {
    let connz = stage.nats.monitor("/connz").await;
    let connections = connz["connections"].as_array().expect("connections");
    let named = |name: &serde_json::Value| name.as_str().is_some_and(|name| name.contains("litmus_pgnats"));
    connections.iter().filter(|c| named(&c["name"])).count()
}

/// Sequences are nobody else's, however many publish at once.
#[tokio::test]
async fn concurrent_publishes_have_distinct_sequences() {
    const SESSIONS: usize = 32;
    const EACH: usize = 50;
    let stage = Stage::jetstream().await;
    create_stream(&stage.nats, named("S", "s")).await;
    let sessions = join_all((0..SESSIONS).map(|_| stage.pg.connect())).await;
    let sql = format!("SELECT nats_publish_text_stream('s', n::text) FROM generate_series(1, {EACH}) n");
    let batches = join_all(sessions.iter().map(|session| session.query(&sql, &[]))).await;
    let mut all = HashSet::new();
    for batch in batches {
        let batch: Vec<i64> = batch.expect("publish").iter().map(|row| row.get(0)).collect();
        assert!(batch.is_sorted(), "{batch:?}");
        all.extend(batch);
    }
    assert_eq!(all.len(), SESSIONS * EACH);
    assert_eq!(all.into_iter().max(), Some((SESSIONS * EACH) as i64));
    assert_eq!(runtime_connections(&stage).await, 1);
}

/// A message id that was seen before stores nothing and returns the first's sequence.
#[tokio::test]
async fn a_duplicate_returns_the_sequence_of_the_first() {
    let stage = Stage::jetstream().await;
    create_stream(&stage.nats, named("S", "s")).await;
    let session = stage.pg.connect().await;
    let publish =
        |id: &str| format!(r#"SELECT nats_publish_text_stream('s', 'x', '{{"Nats-Msg-Id": "{id}"}}')"#);
    for (id, expected) in [("a", 1), ("b", 2), ("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(value::<i64>(&session, &publish(id)).await, expected, "{id}");
    }
}

/// Each reason to refuse has its own SQLSTATE, says what NATS said, and leaves the session usable.
#[tokio::test]
async fn refusals_are_told_apart() {
    let stage = Stage::jetstream().await;
    create_stream(&stage.nats, named("S", "s")).await;
    let full = stream::Config {
        max_messages: 1,
        discard: stream::DiscardPolicy::New,
        ..named("FULL", "full")
    };
    create_stream(&stage.nats, full).await;
    stage.respond("other", |_| b"no JSON".into()).await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "SELECT nats_publish_text_stream('s', ''), nats_publish_text_stream('full', '')",
    )
    .await;
    let cases = [
        ("'nobody', ''", "HV00R", "no stream takes subject \"nobody\""),
        (r#"'s', '', '{"Nats-Expected-Stream": "T"}'"#, "40001", "10060"),
        (
            r#"'s', '', '{"Nats-Expected-Last-Sequence": "7"}'"#,
            "40001",
            "10071",
        ),
        (
            r#"'s', '', '{"Nats-Expected-Last-Subject-Sequence": "7"}'"#,
            "40001",
            "10071",
        ),
        (
            r#"'s', '', '{"Nats-Expected-Last-Msg-Id": "x"}'"#,
            "40001",
            "10070",
        ),
        ("'full', ''", "53100", "10077"),
        ("'other', ''", "HV000", "is not JetStream"),
        ("'no spaces', ''", "42602", ""),
        ("NULL, ''", "22004", ""),
        ("'s', NULL", "22004", ""),
        ("'s', '', NULL, 'a.b'", "42602", "invalid domain"),
    ];
    for (arguments, code, said) in cases {
        let error = failure(&session, &format!("SELECT nats_publish_text_stream({arguments})")).await;
        assert_eq!(error.code, code, "{arguments}: {error:?}");
        let text = format!("{} {}", error.message, error.detail.unwrap_or_default());
        assert!(text.contains(said), "{arguments}: {text}");
    }
    let met = r#"SELECT nats_publish_text_stream('s', '',
        '{"Nats-Expected-Stream": "S", "Nats-Expected-Last-Sequence": "1"}')"#;
    assert_eq!(
        value::<i64>(&session, met).await,
        2,
        "none of the refused is stored"
    );
}

/// PL/pgSQL can tell the conditions apart by name, as the reference promises.
#[tokio::test]
async fn conditions_have_names() {
    let stage = Stage::jetstream().await;
    create_stream(&stage.nats, named("S", "s")).await;
    let session = stage.pg.connect().await;
    for (arguments, condition) in [
        ("'nobody', ''", "fdw_table_not_found"),
        (
            r#"'s', '', '{"Nats-Expected-Last-Sequence": "7"}'"#,
            "serialization_failure",
        ),
    ] {
        let sql = format!(
            "DO $$ BEGIN PERFORM nats_publish_text_stream({arguments}); RAISE 'not reached';
             EXCEPTION WHEN {condition} THEN NULL; END $$"
        );
        run(&session, &sql).await;
    }
}

/// Silence is an error after litmus_pgnats.jetstream_timeout, not sooner, that leaves open whether the message is
/// stored; then the session goes on.
#[tokio::test]
async fn an_acknowledgement_may_stay_away() {
    let stage = Stage::jetstream().await;
    create_stream(&stage.nats, named("S", "s")).await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "SELECT nats_publish_text_stream('s', ''); SET litmus_pgnats.jetstream_timeout = '300ms'",
    )
    .await;
    stage.nats.pause().await;
    let asked = Instant::now();
    let error = failure(&session, "SELECT nats_publish_text_stream('s', '')").await;
    assert_eq!(error.code, "08007", "{error:?}");
    assert!((Duration::from_millis(300)..AT_ONCE).contains(&asked.elapsed()));
    stage.nats.resume();
    let published: i64 = value(&session, "SELECT nats_publish_text_stream('s', '')").await;
    assert!(published >= 2, "{published}");
}

/// A statement can be cancelled while it waits.
#[tokio::test]
async fn a_wait_can_be_cancelled() {
    let stage = Stage::jetstream().await;
    create_stream(&stage.nats, named("S", "s")).await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "SELECT nats_publish_text_stream('s', ''); SET statement_timeout = '200ms'",
    )
    .await;
    stage.nats.pause().await;
    let asked = Instant::now();
    let error = failure(&session, "SELECT nats_publish_text_stream('s', '')").await;
    assert_eq!(error.code, "57014", "{error:?}");
    assert!(asked.elapsed() < AT_ONCE);
    stage.nats.resume();
    run(
        &session,
        "RESET statement_timeout; SELECT nats_publish_text_stream('s', '')",
    )
    .await;
}

/// Every function that needs JetStream, as it is called where it may be missing.
const CALLS: [&str; 16] = [
    "nats_publish_text_stream('s', '')",
    "nats_publish_binary_stream('s', '', '{\"a\": \"1\"}')",
    "nats_put_text('b', 'k', '')",
    "nats_create_text('b', 'k', '')",
    "nats_update_text('b', 'k', '', 1)",
    "nats_get_text('b', 'k')",
    "nats_delete_value('b', 'k')",
    "nats_purge_value('b', 'k')",
    "nats_get_entry('b', 'k')",
    "nats_get_history('b', 'k')",
    "nats_list_keys('b')",
    "nats_create_bucket('b')",
    "nats_put_file('s', 'n', 'x')",
    "nats_get_file('s', 'n')",
    "nats_delete_file('s', 'n')",
    "nats_get_file_list('s')",
];

/// What each call ends with where there is no JetStream: its own SQLSTATE with a hint, at once.
async fn assert_no_jetstream(session: &support::Session, code: impl Fn(&str) -> &'static str) {
    for call in CALLS {
        let asked = Instant::now();
        let error = failure(session, &format!("SELECT {call}")).await;
        assert_eq!(error.code, code(call), "{call}: {error:?}");
        assert!(
            error.hint.is_some_and(|hint| !hint.is_empty()) || error.code == "0A000",
            "{call}"
        );
        assert!(asked.elapsed() < AT_ONCE, "{call} took {:?}", asked.elapsed());
    }
}

/// A server without JetStream is told apart from a missing stream or bucket.
#[tokio::test]
async fn a_server_without_jetstream() {
    let stage = Stage::start().await;
    assert_no_jetstream(&stage.pg.connect().await, |_| "HV00N").await;
}

/// So is an account without JetStream on a server that has it.
#[tokio::test]
async fn an_account_without_jetstream() {
    let accounts = "accounts {\n NONE { users: [{ user: none, password: none }] }\n \
        JS { jetstream: enabled, users: [{ user: js, password: js }] }\n}\nno_auth_user: none";
    let nats = NatsServer::builder().jetstream().config(accounts);
    let stage = Stage::with(nats, Postgres::builder()).await;
    assert_no_jetstream(&stage.pg.connect().await, |_| "HV00N").await;
}

/// So is a server without headers, which Litmus Edge's proxy is: it cannot even say that nobody listens.
#[tokio::test]
async fn a_server_without_headers() {
    let (stub, pg) = (
        support::WireStub::start_with(json!({ "headers": false })),
        Postgres::start().await,
    );
    let session = pg.connect().await;
    run(&session, "CREATE EXTENSION litmus_pgnats").await;
    create_server(&session, "nats", stub.port(), "").await;
    let code = |call: &str| if call.contains('{') { "0A000" } else { "HV00N" };
    assert_no_jetstream(&session, code).await;
    let sent = stub.lines();
    assert!(
        !sent.iter().any(|line| line.contains("PUB")),
        "nothing was sent: {sent:?}"
    );
}
