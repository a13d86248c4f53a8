//! How a connection is let in where NATS is not open to everybody: JWTs in operator mode, TLS before the INFO, a private
//! prefix for replies, certificates that are not all good, and servers that are known by their address.

mod foreign_server;
mod operator_mode;
mod support;

use foreign_server::*;
use futures::StreamExt;
use operator_mode::*;
use support::*;

const DOCTOR: &str = "SELECT check_name || '|' || coalesce(object, '') || '|' || status || '|' || found || '|' || \
                      coalesce(advice, '') FROM litmus_pgnats.doctor()";

async fn doctor(session: &Session) -> Vec<String> {
    let rows = session.query(DOCTOR, &[]).await.expect("the doctor");
    rows.iter().map(|row| row.get(0)).collect()
}

#[track_caller]
fn says(findings: &[String], start: &str, what: &str) {
    let found = findings
        .iter()
        .any(|finding| finding.starts_with(start) && finding.contains(what));
    assert!(found, "{start} {what}: {findings:#?}");
}

/// The file is read at each connect, so another user comes with another file and no SQL.
#[tokio::test]
async fn a_credentials_file_and_its_rotation() {
    let (pg, session) = ready().await;
    let operator = Operator::new();
    let mut nats = operator.server().await;
    let path = file(&pg, "user.creds", &operator.creds("first", None));
    create_for(&session, nats.port(), &[("credentials_path", &path)]).await;
    run(&session, INFO).await;
    assert_eq!(user_name(&nats).await.as_deref(), Some("first"));
    says(
        &doctor(&session).await,
        "file|",
        "JWT of user \"first\" does not expire",
    );
    file(
        &pg,
        "user.creds",
        &operator.creds("second", Some(3 * 24 * 3600 + 60)),
    );
    nats.restart().await;
    eventually(SOON, async || user_name(&nats).await.as_deref() == Some("second")).await;
    run(&session, INFO).await;
    says(
        &doctor(&session).await,
        "file|",
        "JWT of user \"second\" expires in 3 days",
    );
    // Expired: the server refuses, and the doctor says why.
    file(&pg, "user.creds", &operator.creds("third", Some(-60)));
    nats.restart().await;
    eventually(SOON, async || {
        let outcome = session.batch_execute(INFO).await;
        outcome.err().map(|error| sqlstate(&error)) == Some(code::REFUSED.into())
    })
    .await;
    says(
        &doctor(&session).await,
        "file|nats: credentials_path|error|",
        "has expired",
    );
    // What is no such file is an error that names it.
    file(&pg, "user.creds", "nothing of the kind");
    run(&session, "SET litmus_pgnats.connect_timeout = '1s'").await;
    let report = refused(&session, INFO).await;
    assert!(
        report.message.contains("credentials_path") || report.code == code::REFUSED,
        "{report:?}"
    );
}

/// Inline, in the server with a warning, in a user mapping without; and what it is not is refused.
#[tokio::test]
async fn inline_credentials() {
    let (_pg, session) = ready().await;
    let operator = Operator::new();
    let nats = operator.server().await;
    session.take_notices();
    create_for(
        &session,
        nats.port(),
        &[("credentials", &operator.creds("server's", None))],
    )
    .await;
    let notices = session.take_notices();
    assert!(
        notices.iter().any(|notice| notice.severity == "WARNING"),
        "{notices:?}"
    );
    run(&session, INFO).await;
    assert_eq!(user_name(&nats).await.as_deref(), Some("server's"));
    run(
        &session,
        &map(
            "CURRENT_USER",
            &[("credentials", &operator.creds("mapped", None))],
        ),
    )
    .await;
    run(&session, INFO).await;
    says(
        &doctor(&session).await,
        "authentication|",
        "the NATS server accepts the JWT",
    );
    for bad in [
        "no credentials",
        "-----BEGIN NATS USER JWT-----\nx\n------END NATS USER JWT------",
    ] {
        let report = refused(&session, &alter(&[("SET credentials", bad)])).await;
        assert_eq!(report.code, "HV024", "{report:?}");
        assert!(!all_text(&report).contains("BEGIN"), "{report:?}");
    }
}

/// Where the server knows users by their keys, and no key is given, the error leads there.
#[tokio::test]
async fn operator_mode_that_is_not_expected() {
    let (_pg, session) = ready().await;
    let operator = Operator::new();
    let nats = operator.server().await;
    create_for(&session, nats.port(), &[("username", "a"), ("password", "b")]).await;
    let report = refused(&session, INFO).await;
    assert_eq!(report.code, code::REFUSED, "{report:?}");
    assert!(report.hint.expect("a hint").contains("credentials_path"));
    says(
        &doctor(&session).await,
        "authentication|",
        "refused the authentication",
    );
}

/// A server with handshake_first says nothing before TLS; and one without does.
#[tokio::test]
async fn tls_before_the_info() {
    let (pg, session) = ready().await;
    let certs = Certs::shared();
    let ca = certs.ca().display().to_string();
    let first = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, handshake_first: true }}",
        certs.server_cert(),
        certs.server_key()
    );
    let nats = NatsServer::builder().config(&first).start().await;
    create_for(
        &session,
        nats.port(),
        &[("tls_ca_path", &ca), ("tls_first", "true")],
    )
    .await;
    run(&session, INFO).await;
    says(&doctor(&session).await, "TLS|", "|ok|");
    run(&session, "DROP SERVER nats").await;
    create_for(&session, nats.port(), &[("tls_ca_path", &ca)]).await;
    let report = refused(&session, INFO).await;
    assert_eq!(report.code, code::UNREACHABLE, "{report:?}");
    assert!(report.hint.expect("a hint").contains("tls_first"));
    says(&doctor(&session).await, "connection|", "tls_first");
    // The other way round: the server begins in the clear.
    run(&session, "DROP SERVER nats").await;
    let plain = NatsServer::builder().tls(&certs).start().await;
    create_for(
        &session,
        plain.port(),
        &[("tls_ca_path", &ca), ("tls_first", "true")],
    )
    .await;
    let report = refused(&session, INFO).await;
    assert_eq!(report.code, code::TLS, "{report:?}");
    assert!(
        report
            .hint
            .expect("a hint")
            .contains("remove the option \"tls_first\"")
    );
    drop(pg);
}

/// A user who may subscribe to a prefix of his own alone.
#[tokio::test]
async fn a_private_inbox() {
    let (_pg, session) = ready().await;
    let users = "authorization { users: [ { user: admin, password: admin },
        { user: app, password: p, permissions: { publish: \">\", subscribe: [\"_INBOX_app.>\"] } } ] }
        no_auth_user: admin";
    let nats = NatsServer::builder().jetstream().config(users).start().await;
    let client = nats.client().await;
    let mut requests = client.subscribe("echo").await.expect("subscribe");
    round_trip(&client).await;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let _ = client
                .publish(request.reply.expect("a reply"), request.payload)
                .await;
        }
    });
    let app = [("username", "app"), ("password", "p")];
    create_for(&session, nats.port(), &app).await;
    let calls = [
        "SELECT nats_request_text('echo', 'x')",
        "SELECT nats_put_text('b', 'k', 'v')",
        "SELECT nats_publish_text_stream('a', 'b')",
        "SELECT nats_get_file_list('s')",
    ];
    for call in calls {
        let began = std::time::Instant::now();
        let report = refused(&session, call).await;
        assert_eq!(report.code, "42501", "{call}: {report:?}");
        assert!(
            report.message.contains("_INBOX.") && report.message.contains("no reply can arrive"),
            "{report:?}"
        );
        assert!(report.hint.expect("a hint").contains("inbox_prefix"));
        assert!(
            began.elapsed() < std::time::Duration::from_secs(2),
            "{call}: {:?}",
            began.elapsed()
        );
    }
    // The outbox keeps what it could not confirm, and stores nothing meanwhile.
    run(&session, "SELECT nats_publish_text_outbox('kept', 'x')").await;
    says(&doctor(&session).await, "replies|", "no reply can arrive");
    run(&session, &alter(&[("ADD inbox_prefix", "_INBOX_app")])).await;
    run(&session, RELOAD).await;
    for call in &calls[..2] {
        run(&session, call).await;
    }
    let findings = doctor(&session).await;
    assert!(
        !findings.iter().any(|finding| finding.starts_with("replies")),
        "{findings:?}"
    );
    let report = refused(&session, &alter(&[("SET inbox_prefix", "a.*")])).await;
    assert_eq!(report.code, "HV024");
}

/// A bundle as systems have it, and one with a malformed certificate among good ones.
#[tokio::test]
async fn a_bundle_of_certificates() {
    let (pg, session) = ready().await;
    let certs = Certs::shared();
    let nats = NatsServer::builder().tls(&certs).start().await;
    let good = std::fs::read_to_string(certs.ca()).expect("a certificate");
    let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let other = std::fs::read_to_string(Certs::fresh().ca()).expect("a certificate");
    let remark = "# A remark, as bundles have them.\n".repeat(6000);
    let large = format!("{bad}{}{remark}{good}", other.repeat(5));
    assert!(large.len() > 150_000);
    let path = file(&pg, "bundle.pem", &large);
    create_for(&session, nats.port(), &[("tls_ca_path", &path)]).await;
    run(&session, INFO).await;
    says(
        &doctor(&session).await,
        "file|nats: tls_ca_path|warning|",
        "1 entries are no certificates",
    );
    // One that holds nothing else is of no use.
    file(&pg, "bundle.pem", bad);
    run(&session, "DROP SERVER nats").await;
    create_for(&session, nats.port(), &[("tls_ca_path", &path)]).await;
    let report = refused(&session, INFO).await;
    assert!(report.message.contains("tls_ca_path"), "{report:?}");
}

/// A server that its cluster names by its address has the certificate of the name by which the cluster was reached.
#[tokio::test]
async fn a_server_that_is_known_by_its_address() {
    let (_pg, session) = ready().await;
    let certs = Certs::for_name("localhost");
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        certs.server_cert(),
        certs.server_key()
    );
    let cluster = Port::take();
    let second = Port::take();
    let cluster_of = |own: u16, other: u16| {
        format!(
            "{tls}\ncluster {{ name: c, listen: \"127.0.0.1:{own}\", routes: [\"nats://127.0.0.1:{other}\"] }}"
        )
    };
    let (one, other) = (cluster.number(), second.number());
    let mut first = NatsServer::builder()
        .config(&cluster_of(one, other))
        .start()
        .await;
    let backup = NatsServer::builder()
        .config(&cluster_of(other, one))
        .start()
        .await;
    eventually(SOON, async || {
        first.monitor("/routez").await["num_routes"].as_u64().unwrap_or(0) > 0
    })
    .await;
    let port = first.port().to_string();
    let ca = certs.ca().display().to_string();
    run(
        &session,
        &create(&[("host", "localhost"), ("port", &port), ("tls_ca_path", &ca)]),
    )
    .await;
    run(&session, INFO).await;
    first.kill9();
    eventually(SOON, async || session.batch_execute(INFO).await).await;
    let at = session
        .query_one("SELECT host FROM litmus_pgnats.connections", &[])
        .await
        .expect("a connection");
    assert_eq!(at.get::<_, String>(0), format!("127.0.0.1:{}", backup.port()));
}
