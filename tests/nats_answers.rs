//! Answers of others than those who were asked, hosts that do not answer, and NATS that is known to be away.

mod events;
mod gate;
mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use futures::StreamExt;
use gate::*;
use handlers::{number, texts, until_number};
use scene::*;
use support::*;

/// A service answers on a subject that a stream takes too, and faster: the acknowledgement is waited for.
#[tokio::test]
async fn a_service_on_the_subject_of_a_stream() {
    let (scene, session, events) = events::scene().await;
    let client = scene.nats.client().await;
    for subject in ["events.>", "$KV.b.>", "$O.s.>"] {
        let mut requests = client.subscribe(subject).await.expect("subscribe");
        let client = client.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                if let Some(reply) = request.reply.filter(|reply| !reply.starts_with("$JS.ACK")) {
                    for answer in ["hello", "{\"error\": \"no\"}", "{\"stream\": 1}"] {
                        let _ = client.publish(reply.clone(), answer.into()).await;
                    }
                }
            }
        });
    }
    round_trip(&client).await;
    for n in 1..=5 {
        assert_eq!(
            number(&session, "SELECT nats_publish_text_stream('events.a', 'x')").await,
            n
        );
    }
    run(
        &session,
        "SELECT nats_publish_text_outbox('events.a', n::text) FROM generate_series(1, 20) n",
    )
    .await;
    until_number(&session, 0, "SELECT count(*) FROM litmus_pgnats.outbox").await;
    let mut stream = events.0.get_stream("events").await.expect("the stream");
    assert_eq!(stream.info().await.expect("info").state.messages, 25);
    assert_eq!(
        number(&session, "SELECT count(*) FROM litmus_pgnats.dead_letters").await,
        0
    );
    run(&session, "SELECT nats_create_bucket('b')").await;
    run(&session, "SELECT nats_put_text('b', 'k', 'v')").await;
    assert_eq!(texts(&session, "SELECT nats_get_text('b', 'k')").await, ["v"]);
    run(&session, "SELECT nats_put_file('s', 'f', 'contents')").await;
    assert_eq!(
        texts(&session, "SELECT convert_from(nats_get_file('s', 'f'), 'utf8')").await,
        ["contents"]
    );
}

/// Without a stream, what others answer is no acknowledgement, and the error says so.
#[tokio::test]
async fn only_a_service() {
    let (scene, session, _events) = events::scene().await;
    scene.echo().await;
    run(&session, "SET litmus_pgnats.jetstream_timeout = '500ms'").await;
    let (report, _) = refused(&session, "SELECT nats_publish_text_stream('echo', 'x')").await;
    assert!(report.message.contains("is not JetStream"), "{report:?}");
}

/// Eleven hosts that say nothing, and one that takes its time: it is found, at the first connect and later ones.
#[tokio::test]
async fn dead_hosts_and_a_slow_one() {
    let scene = Scene::start().await;
    scene.echo().await;
    let gate = Gate::to(scene.nats.port(), Duration::from_millis(700)).await;
    let mut hosts = Vec::new();
    for _ in 0..11 {
        hosts.push(format!("127.0.0.1:{}", says(Vec::new()).await));
    }
    hosts.push(format!("127.0.0.1:{}", gate.port()));
    let session = scene.pg.connect().await;
    run(
        &session,
        &format!(
            "CREATE SERVER many FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '{}');
             SET litmus_pgnats.server = 'many'",
            hosts.join(",")
        ),
    )
    .await;
    let echo = "SELECT nats_request_text('echo', 'x')";
    let began = Instant::now();
    run(&session, echo).await;
    println!("connected after {:?}", began.elapsed());
    gate.lie(Lie::Once(b"nonsense\r\n".to_vec()));
    eventually(SOON, async || gate.connections() > 1).await;
    eventually(SOON, async || session.batch_execute(echo).await).await;
    // The error names the hosts that were tried.
    let dead = hosts[..11].join(",");
    run(
        &session,
        &format!(
            "CREATE SERVER dead FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '{dead}');
             SET litmus_pgnats.server = 'dead'; SET litmus_pgnats.connect_timeout = '2s'"
        ),
    )
    .await;
    let (report, _) = refused(&session, echo).await;
    let (report, _) = if report.detail.is_none() {
        refused(&session, echo).await
    } else {
        (report, Duration::ZERO)
    };
    assert_eq!(report.code, "08001", "{report:?}");
}

/// Once it is known that NATS is away, calls fail at once with the reason; publishes are buffered as ever.
#[tokio::test]
async fn nats_that_is_known_to_be_away() {
    let mut scene = Scene::start().await;
    let session = scene.warm_session().await;
    scene.nats.kill9();
    let calls = [
        "SELECT nats_request_text('a', 'x')",
        "SELECT nats_publish_text_stream('a', 'x')",
        "SELECT nats_get_text('b', 'k')",
        "SELECT nats_get_file_list('s')",
    ];
    // The first wait: NATS may be back in a moment. One may be under way when NATS dies.
    for _ in 0..2 {
        let (report, took) = refused(&session, calls[0]).await;
        println!("failed after {took:?}: {report:?}");
    }
    for call in calls {
        let (report, took) = refused(&session, call).await;
        assert_eq!(report.code, "08001", "{call}: {report:?}");
        assert!(report.message.contains("could not connect"), "{call}: {report:?}");
        assert!(took < Duration::from_secs(2), "{call}: {took:?}");
    }
    run(&session, "SELECT nats_publish_text('a', 'kept')").await;
    scene.nats.restart().await;
    scene.echo().await;
    eventually(SOON, async || {
        session
            .batch_execute("SELECT nats_request_text('echo', 'x')")
            .await
    })
    .await;
}

/// The smallest user of all: subscribes, and nothing else, without headers, JetStream and a certificate that anybody
/// knows.
#[tokio::test]
async fn a_user_that_may_only_subscribe() {
    let certs = Certs::fresh();
    let config = format!(
        "authorization {{ users: [ {{ user: admin, password: admin }},
           {{ user: edge, password: \"the token\", permissions: {{ publish: {{ deny: [\">\"] }}, subscribe: [\"devicehub.>\"] }} }} ] }}
         no_auth_user: admin
         no_header_support: true
         tls {{ cert_file: {:?}, key_file: {:?} }}",
        certs.server_cert(),
        certs.server_key()
    );
    let nats = NatsServer::builder().config(&config).start().await;
    let pg = Postgres::builder().start().await;
    let session = pg.connect().await;
    // docs/nats-permissions.md has the statements; the user's name cannot be empty here, as it is with Litmus Edge.
    let page = include_str!("../docs/nats-permissions.md");
    let block = page
        .split("```sql\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let block = block.expect("a block of SQL");
    let block = block
        .replace("edge.example", "127.0.0.1")
        .replace("'4222'", &format!("'{}'", nats.port()))
        .replace("username ''", "username 'edge'");
    run(&session, &format!("CREATE EXTENSION litmus_pgnats; {block}")).await;
    // NATS's own client in Rust does not connect to a server without headers.
    let sender = pg.connect().await;
    run(
        &sender,
        &format!(
            "CREATE SERVER admin FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS
               (host '127.0.0.1', port '{}', tls_insecure 'true'); SET litmus_pgnats.server = 'admin'",
            nats.port()
        ),
    )
    .await;
    run(&session, "SET litmus_pgnats.server = 'edge'").await;
    eventually(SOON, async || {
        run(
            &sender,
            "SELECT nats_publish_text('devicehub.alias.pump', '7 bar')",
        )
        .await;
        number(&session, "SELECT count(*) FROM readings").await > 0
    })
    .await;
    run(&session, "DROP SERVER admin").await;
    let live = "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state = 'live' AND problem IS NULL";
    assert_eq!(number(&session, live).await, 1);
    let errors = "SELECT check_name || ': ' || found FROM litmus_pgnats.doctor() WHERE status = 'error'";
    let none: Vec<String> = Vec::new();
    assert_eq!(texts(&session, errors).await, none);
    let says = "SELECT count(*) FROM litmus_pgnats.doctor() WHERE found LIKE 'the user may subscribe, but not publish%'";
    assert_eq!(number(&session, says).await, 1);
    let (report, took) = refused(&session, "SELECT nats_request_text('a', 'x')").await;
    assert_eq!(report.code, "42501", "{report:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    run(&session, "SELECT nats_publish_text('forbidden', 'x')").await;
    let told =
        "SELECT count(*) FROM litmus_pgnats.connections WHERE last_error LIKE '%Publish to \"forbidden\"%'";
    until_number(&session, 1, told).await;
}
