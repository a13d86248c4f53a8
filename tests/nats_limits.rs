//! What NATS allows only so often or so large: subscriptions, payloads of an account, headers, connections.

mod events;
mod foreign_server;
mod handlers;
mod operator_mode;
mod scene;
mod support;

use foreign_server::{alter, create_for, file, ready};
use handlers::{number, texts, until_number};
use operator_mode::*;
use scene::*;
use serde_json::json;
use support::*;

const KEEP: &str = "CREATE TABLE got (payload text);
    CREATE FUNCTION keep(msg text) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.got VALUES (msg) $$;";

/// Of eight handlers five are live, the others say why not, and take the place of one that goes.
#[tokio::test]
async fn more_handlers_than_subscriptions() {
    // One subscription is that of the replies.
    let nats = NatsServer::builder().config("max_subscriptions: 6").start().await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    let all: Vec<String> = (1..=8)
        .map(|n| format!("nats_subscribe('s{n}', 'keep')"))
        .collect();
    run(&session, &format!("SELECT {}", all.join(", "))).await;
    let live = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state = 'live'";
    until_number(&session, 5, live).await;
    let told = "SELECT count(*) FROM litmus_pgnats.subscriptions
                WHERE state = 'waiting' AND problem LIKE '%takes no more subscriptions%'";
    until_number(&session, 3, told).await;
    // Each that is live gets messages.
    let client = scene.nats.client().await;
    let subjects = texts(
        &session,
        "SELECT subject FROM litmus_pgnats.subscriptions WHERE state = 'live'",
    )
    .await;
    for subject in &subjects {
        client
            .publish(subject.clone(), subject.clone().into())
            .await
            .expect("publish");
    }
    until_number(&session, 5, "SELECT count(*) FROM got").await;
    // Calls go on, because the replies have their place.
    let (report, _) = refused(&session, "SELECT nats_request_text('nobody', 'x')").await;
    assert_eq!(report.code, "HV00M", "{report:?}");
    let found =
        "SELECT count(*) FROM litmus_pgnats.doctor() WHERE found LIKE '%takes no more subscriptions%'";
    assert_eq!(number(&session, found).await, 3);
    run(
        &session,
        &format!("SELECT nats_unsubscribe('{}', 'keep')", subjects[0]),
    )
    .await;
    until_number(&session, 2, told).await;
    until_number(&session, 5, live).await;
}

/// Where not even the replies have a subscription, calls say so.
#[tokio::test]
async fn no_subscription_for_the_replies() {
    let operator = Operator::new();
    let (pg, session) = ready().await;
    let nats = NatsServer::builder()
        .config(&operator.config(json!({"subs": 0})))
        .start()
        .await;
    let path = file(&pg, "user.creds", &operator.creds("user", None));
    create_for(&session, nats.port(), &[("credentials_path", &path)]).await;
    let (report, took) = refused(&session, "SELECT nats_request_text('a', 'x')").await;
    assert_eq!(report.code, "53400", "{report:?}");
    assert!(
        report.message.contains("takes no more subscriptions"),
        "{report:?}"
    );
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
    let found = "SELECT count(*) FROM litmus_pgnats.doctor()
                 WHERE check_name = 'replies' AND status = 'error' AND found LIKE '%takes no more subscriptions%'";
    assert_eq!(number(&session, found).await, 1);
    drop(pg);
}

/// An account's payload limit below the server's: `54000` at once, and nobody's connection ends.
#[tokio::test]
async fn an_account_that_takes_less() {
    let operator = Operator::new();
    let (pg, session) = ready().await;
    let limits = json!({"payload": 2000});
    let nats = NatsServer::builder()
        .config(&operator.config(limits))
        .start()
        .await;
    let path = file(&pg, "user.creds", &operator.creds("user", None));
    create_for(&session, nats.port(), &[("credentials_path", &path)]).await;
    run(&session, "SELECT nats_publish_text('a', repeat('x', 1900))").await;
    let id = foreign_server::client_id(&session).await;
    for call in [
        "SELECT nats_publish_text('a', repeat('x', 2100))",
        "SELECT nats_request_text('a', repeat('x', 2100))",
    ] {
        let (report, _) = refused(&session, call).await;
        assert_eq!(report.code, "54000", "{call}: {report:?}");
    }
    assert_eq!(
        foreign_server::client_id(&session).await,
        id,
        "the connection has ended"
    );
    assert_eq!(
        texts(&session, "SELECT max_payload::text FROM nats_get_server_info()").await,
        ["2000"]
    );
}

/// Objects go in pieces that the account takes.
#[tokio::test]
async fn an_object_where_the_account_takes_less() {
    let config = "accounts { A { jetstream: enabled, limits { max_payload: 20000 }, users: [ { user: a, password: p } ] },
                  SYS { users: [ { user: s, password: s } ] } }
                  system_account: SYS
                  no_auth_user: a";
    let (_pg, session) = ready().await;
    let nats = NatsServer::builder().jetstream().config(config).start().await;
    create_for(&session, nats.port(), &[]).await;
    assert_eq!(
        texts(&session, "SELECT max_payload::text FROM nats_get_server_info()").await,
        ["20000"]
    );
    run(
        &session,
        "SELECT nats_put_file('s', 'f', convert_to(repeat('x', 100000), 'utf8'))",
    )
    .await;
    let sizes =
        "SELECT length(nats_get_file('s', 'f'))::text || ' ' || chunks FROM nats_get_file_info('s', 'f')";
    assert_eq!(texts(&session, sizes).await, ["100000 5"]);
}

/// A message that the account does not take is a dead letter at once; those behind it go on.
#[tokio::test]
async fn what_is_too_large_for_a_stream() {
    let (scene, session, events) = events::scene().await;
    let headers = "jsonb_build_object('Large', repeat('x', 70000))";
    let call = format!("SELECT nats_publish_text_stream('events.a', 'x', headers => {headers})");
    let (report, _) = refused(&session, &call).await;
    assert_eq!(report.code, "54000", "{report:?}");
    assert!(report.detail.expect("a detail").contains("10097"));
    run(
        &session,
        &format!(
            "SELECT nats_publish_text_outbox('events.a', 'x', headers => {headers}), nats_publish_text_outbox('events.a', 'good')"
        ),
    )
    .await;
    until_number(
        &session,
        1,
        "SELECT count(*) FROM litmus_pgnats.dead_letters WHERE error LIKE '%10097%'",
    )
    .await;
    until_number(&session, 0, "SELECT count(*) FROM litmus_pgnats.outbox").await;
    let mut stream = events.0.get_stream("events").await.expect("the stream");
    assert_eq!(stream.info().await.expect("info").state.messages, 1);
    drop(scene);
}

/// A server that takes one connection: a reload closes the former one first, and the doctor says why it cannot look.
#[tokio::test]
async fn a_single_connection() {
    let (_pg, session) = ready().await;
    let nats = NatsServer::builder().config("max_connections: 1").start().await;
    create_for(&session, nats.port(), &[]).await;
    run(&session, "SELECT nats_publish_text('a', 'x')").await;
    let found = "SELECT count(*) FROM litmus_pgnats.doctor()
                 WHERE status = 'warning' AND found LIKE '%takes no more connections%' AND advice LIKE '%max_connections%'";
    assert_eq!(number(&session, found).await, 1);
    run(&session, &alter(&[("ADD inbox_prefix", "mine")])).await;
    run(&session, "SELECT litmus_pgnats_reload_conf()").await;
    run(&session, "SELECT nats_publish_text('a', 'x')").await;
    run(&session, "SELECT litmus_pgnats_reload_conf_force()").await;
    run(&session, "SELECT nats_publish_text('a', 'x')").await;
    // Another role's connection has no place, and is told why.
    run(
        &session,
        "CREATE USER MAPPING FOR CURRENT_USER SERVER nats OPTIONS (token 'x')",
    )
    .await;
    let (report, _) = refused(&session, "SELECT nats_publish_text('a', 'x')").await;
    assert_eq!(report.code, "53300", "{report:?}");
    assert!(report.hint.expect("a hint").contains("max_connections"));
}

/// JetStream's refusals have the SQLSTATEs of the table, as a server gives them.
#[tokio::test]
async fn refusals_of_jetstream() {
    let (scene, session, events) = events::scene().await;
    let small = async_nats::jetstream::stream::Config {
        name: "SMALL".into(),
        subjects: vec!["small.>".into()],
        max_messages: 1,
        max_message_size: 100,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..Default::default()
    };
    events.0.create_stream(small).await.expect("a stream");
    let sealed = async_nats::jetstream::stream::Config {
        name: "SEALED".into(),
        subjects: vec!["sealed".into()],
        ..Default::default()
    };
    events.0.create_stream(sealed.clone()).await.expect("a stream");
    let sealed = async_nats::jetstream::stream::Config {
        sealed: true,
        ..sealed
    };
    events.0.update_stream(sealed).await.expect("a sealed stream");
    run(&session, "SELECT nats_publish_text_stream('small.a', 'x')").await;
    run(&session, "SELECT nats_create_bucket('b')").await;
    for (call, code, number) in [
        ("nats_publish_text_stream('none', 'x')", "HV00R", ""),
        (
            "nats_publish_text_stream('small.a', repeat('x', 200))",
            "54000",
            "10054",
        ),
        ("nats_publish_text_stream('small.a', 'x')", "53100", "10077"),
        ("nats_publish_text_stream('sealed', 'x')", "22023", "10109"),
        (
            "nats_publish_text_stream('events.a', 'x', headers => '{\"Nats-Expected-Stream\": \"OTHER\"}')",
            "40001",
            "10060",
        ),
        (
            "nats_publish_text_stream('events.a', 'x', headers => '{\"Nats-Expected-Last-Sequence\": \"7\"}')",
            "40001",
            "10071",
        ),
        (
            "nats_publish_text_stream('events.a', 'x', headers => '{\"Nats-Expected-Last-Msg-Id\": \"7\"}')",
            "40001",
            "10070",
        ),
        (
            "nats_publish_text_stream('events.a', 'x', headers => '{\"Nats-TTL\": \"1h\"}')",
            "22023",
            "10166",
        ),
        (
            "nats_publish_text_stream('events.a', 'x', headers => '{\"Nats-Rollup\": \"all\"}')",
            "22023",
            "10111",
        ),
        ("nats_update_text('b', 'k', 'x', 7)", "40001", "10071"),
        ("nats_create_bucket('b', history => 9)", "HV000", "10058"),
        ("nats_get_file('none', 'x')", "HV00Q", ""),
    ] {
        let (report, _) = refused(&session, &format!("SELECT {call}")).await;
        assert_eq!(report.code, code, "{call}: {report:?}");
        let detail = report.detail.unwrap_or_default();
        assert!(detail.contains(number), "{call}: {detail}");
    }
    drop(scene);
}
