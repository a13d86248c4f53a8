//! One cause is told in the same words everywhere: by the call, by the connection's last error, by the handler's
//! problem and by the doctor, who finds it in one run, with the same advice.

mod foreign_server;
mod gate;
mod operator_mode;
mod support;

use foreign_server::*;
use operator_mode::*;
use support::*;

/// What keeps a connection from NATS.
struct Cause {
    name: &'static str,
    port: u16,
    options: Vec<(&'static str, String)>,
    code: &'static str,
    /// A part of the advice.
    advice: &'static str,
}

async fn one(session: &Session, sql: &str) -> Option<String> {
    let row = session.query_opt(sql, &[]).await.expect("a query");
    row.and_then(|row| row.get(0))
}

async fn compare(session: &Session, cause: &Cause) {
    let name = cause.name;
    let pairs: Vec<(&str, &str)> = cause
        .options
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    create_for(session, cause.port, &pairs).await;
    let report = refused(session, INFO).await;
    assert_eq!(report.code, cause.code, "{name}: {report:?}");
    let hint = report.hint.clone().unwrap_or_default();
    assert!(hint.contains(cause.advice), "{name}: {report:?}");
    let message = report.message.replace('\'', "''");
    let last = "SELECT string_agg(last_error, ' ') FROM litmus_pgnats.connections WHERE server = 'nats'";
    eventually(SOON, async || {
        one(session, last)
            .await
            .is_some_and(|last| last.contains(&report.message))
    })
    .await;
    run(session, "SELECT nats_subscribe('a', 'keep')").await;
    let problem = "SELECT problem FROM litmus_pgnats.subscriptions";
    eventually(SOON, async || {
        one(session, problem)
            .await
            .is_some_and(|problem| problem.contains(&report.message))
    })
    .await;
    let found = format!(
        "SELECT string_agg(check_name || ' ' || status || ': ' || coalesce(advice, ''), '; ') FROM litmus_pgnats.doctor()
         WHERE status <> 'ok' AND check_name <> 'running connection' AND check_name <> 'handler' AND found LIKE '%{message}%'"
    );
    let found = one(session, &found).await;
    let found = found.unwrap_or_else(|| panic!("{name}: the doctor does not say {:?}", report.message));
    assert!(found.contains(cause.advice), "{name}: {found}");
    println!("{name}: {} {}; {found}", report.code, report.message);
    run(session, "SELECT nats_unsubscribe('a', 'keep'); DROP SERVER nats").await;
}

#[tokio::test]
async fn a_cause_is_the_same_everywhere() {
    let (pg, session) = ready().await;
    run(
        &session,
        "CREATE FUNCTION keep(msg text) RETURNS void LANGUAGE sql AS $$ SELECT $$",
    )
    .await;
    let certs = Certs::shared();
    let other = Certs::fresh();
    let wrong_ca = std::fs::read_to_string(other.ca()).expect("a certificate");
    let wrong_ca = file(&pg, "wrong.pem", &wrong_ca);
    let operator = Operator::new();
    let with_user = NatsServer::builder().user("alice", "right").start().await;
    let with_tls = NatsServer::builder().tls(&certs).start().await;
    let plain = NatsServer::start().await;
    let with_operator = operator.server().await;
    let full = NatsServer::builder().config("max_connections: 1").start().await;
    let _taken = full.client().await;
    let silent = gate::says(Vec::new()).await;
    let closed = Port::take();
    let causes = [
        Cause {
            name: "nobody listens",
            port: closed.number(),
            options: vec![],
            code: code::UNREACHABLE,
            advice: "port",
        },
        Cause {
            name: "a server that says nothing",
            port: silent,
            options: vec![],
            code: code::UNREACHABLE,
            advice: "tls_first",
        },
        Cause {
            name: "a wrong password",
            port: with_user.port(),
            options: vec![("username", "alice".into()), ("password", "wrong".into())],
            code: code::REFUSED,
            advice: "credential",
        },
        Cause {
            name: "no key where keys are asked for",
            port: with_operator.port(),
            options: vec![],
            code: code::REFUSED,
            advice: "credentials_path",
        },
        Cause {
            name: "a CA that is not the server's",
            port: with_tls.port(),
            options: vec![("tls_ca_path", wrong_ca.clone())],
            code: code::TLS,
            advice: "tls_ca_path",
        },
        Cause {
            name: "TLS where there is none",
            port: plain.port(),
            options: vec![("tls_ca_path", wrong_ca)],
            code: code::TLS,
            advice: "tls_ca_path",
        },
        Cause {
            name: "a file that is not there",
            port: plain.port(),
            options: vec![("token_path", "/nonexistent/token".into())],
            code: code::FILE,
            advice: "operating system",
        },
        Cause {
            name: "no place for another connection",
            port: full.port(),
            options: vec![],
            code: "53300",
            advice: "max_connections",
        },
    ];
    for cause in &causes {
        compare(&session, cause).await;
    }
}

/// Without any certificate of the operating system, what needs none works, and what needs them says so.
#[tokio::test]
async fn a_machine_without_certificates() {
    let pg = Postgres::builder()
        .env("SSL_CERT_FILE", "/nonexistent/certs.pem")
        .env("SSL_CERT_DIR", "/nonexistent")
        .start()
        .await;
    let (_pg, session) = with_extension(pg).await;
    let certs = Certs::shared();
    let ca = certs.ca().display().to_string();
    let plain = NatsServer::start().await;
    let with_tls = NatsServer::builder().tls(&certs).start().await;
    for (port, options) in [
        (plain.port(), vec![]),
        (with_tls.port(), vec![("tls_ca_path", ca.as_str())]),
        (with_tls.port(), vec![("tls_insecure", "true")]),
    ] {
        create_for(&session, port, &options).await;
        run(&session, INFO).await;
        run(&session, "DROP SERVER nats").await;
    }
    create_for(&session, with_tls.port(), &[]).await;
    let report = refused(&session, INFO).await;
    assert_eq!(report.code, code::TLS, "{report:?}");
    assert!(all_text(&report).contains("operating system"), "{report:?}");
    assert!(report.hint.expect("a hint").contains("tls_ca_path"));
}
