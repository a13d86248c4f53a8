//! litmus_pgnats.doctor(): what it says of a sound installation, and of each thing that can be wrong.

mod handlers;
mod scene;
mod support;

use std::io::Write;
use std::net::TcpListener;

use handlers::*;
use scene::*;
use support::*;

/// A row of its answer.
#[derive(Clone, Debug)]
struct Finding {
    check: String,
    object: String,
    status: String,
    found: String,
    advice: String,
}

async fn doctor(session: &Session) -> Vec<Finding> {
    let sql = "SELECT check_name, coalesce(object, ''), status, found, coalesce(advice, '') FROM litmus_pgnats.doctor()";
    let rows = session.query(sql, &[]).await;
    let rows = rows.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    let findings: Vec<Finding> = rows
        .iter()
        .map(|row| Finding {
            check: row.get(0),
            object: row.get(1),
            status: row.get(2),
            found: row.get(3),
            advice: row.get(4),
        })
        .collect();
    for Finding {
        check,
        object,
        status,
        found,
        advice,
    } in &findings
    {
        println!("{status:8} {check:16} {object:40} {found} | {advice}");
        assert_eq!(
            status == "ok",
            advice.is_empty(),
            "{check}: advice where it is due"
        );
    }
    findings
}

/// The first finding of a check that is not well; else its first one.
#[track_caller]
fn worst<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let of = || findings.iter().filter(|finding| finding.check == check);
    let worst = of()
        .find(|finding| finding.status == "error")
        .or_else(|| of().find(|finding| finding.status == "warning"));
    worst
        .or_else(|| of().next())
        .unwrap_or_else(|| panic!("nothing of {check}: {findings:#?}"))
}

/// What is said of a check: the status, and words of what was found.
#[track_caller]
fn says(findings: &[Finding], check: &str, status: &str, words: &str) {
    let finding = worst(findings, check);
    assert!(
        finding.status == status && finding.found.contains(words),
        "not {status} {words:?}: {finding:?}"
    );
}

/// With NATS, TLS, JetStream and handlers in order, each check is there and content.
#[tokio::test]
async fn all_is_well() {
    let certs = Certs::shared();
    let nats = NatsServer::builder()
        .tls(&certs)
        .user("ann", "s3cret-of-ann")
        .jetstream()
        .start()
        .await;
    let secret = WorkDir::new("doctor");
    let path = secret.path().join("password");
    std::fs::write(&path, "s3cret-of-ann\n").expect("write a password");
    give_to_server(&path);
    let options = format!(
        ", tls_ca_path '{}', username 'ann', password_path '{}'",
        certs.ca().display(),
        path.display()
    );
    let scene = Scene::with(Postgres::builder(), nats, &options).await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    run(&session, SHOP).await;
    run(
        &session,
        "GRANT pg_read_server_files TO shop; ALTER FUNCTION keep OWNER TO shop; GRANT INSERT ON got TO shop;
         SET ROLE shop; SELECT nats_subscribe('news', 'keep'); RESET ROLE",
    )
    .await;
    until_live(&session, "news").await;
    let findings = doctor(&session).await;
    let host = format!("nats: 127.0.0.1:{}", scene.nats.port());
    for (check, object, words) in [
        ("preload", "", "shared_preload_libraries"),
        ("runtime worker", "", "answers"),
        ("worker slots", "", "are free"),
        ("versions", "", "are of version"),
        ("foreign server", "nats", "no user mapping"),
        ("file", "nats: password_path", "is readable"),
        ("DNS", &host, "127.0.0.1"),
        ("TCP", &host, "nats-server"),
        ("authentication", &host, "user \"ann\""),
        ("max_payload", "nats", "1048576 bytes"),
        ("JetStream", "nats", "enabled"),
        ("handler", "subscription news -> public.keep(bytea)", "0 messages"),
    ] {
        let is_there = |f: &&Finding| f.check == check && f.object == object && f.found.contains(words);
        let row = findings
            .iter()
            .find(is_there)
            .unwrap_or_else(|| panic!("no {check} of {object}"));
        assert_eq!(row.status, "ok", "{row:?}");
    }
    let tls = worst(&findings, "TLS");
    assert!(
        tls.status == "ok"
            && tls.found.contains("TLSv1.3")
            && tls.found.contains("certificate of CN=server expires on"),
        "{tls:?}"
    );
    let ca = worst(&findings, "file");
    assert!(
        ca.object == "nats: tls_ca_path" && ca.found.contains("certificate of CN=test-ca expires on"),
        "{ca:?}"
    );
    assert!(findings.iter().all(|f| !format!("{f:?}").contains("s3cret")));
    assert!(!scene.pg.log().contains("s3cret"));
    // Nothing stays of it in NATS.
    eventually(SOON, async || {
        let connz = scene.nats.monitor("/connz").await;
        let names = connz["connections"].as_array().expect("connections").iter();
        names.filter(|c| c["name"] == "litmus_pgnats/doctor").count() == 0
    })
    .await;
}

/// Where the library is not preloaded, or the files and the objects are of different versions.
#[tokio::test]
async fn the_installation() {
    let pg = Postgres::builder()
        .preload(false)
        .conf("max_worker_processes", "3")
        .start()
        .await;
    let session = pg.connect().await;
    run(&session, "CREATE EXTENSION litmus_pgnats").await;
    let findings = doctor(&session).await;
    says(&findings, "preload", "warning", "not in shared_preload_libraries");
    says(&findings, "runtime worker", "ok", "answers");
    says(&findings, "worker slots", "warning", "of 3 are free");
    says(&findings, "foreign server", "error", "there is none");
    run(
        &session,
        "UPDATE pg_extension SET extversion = '0.0.9' WHERE extname = 'litmus_pgnats'",
    )
    .await;
    says(
        &doctor(&session).await,
        "versions",
        "warning",
        "the SQL objects of 0.0.9",
    );
}

/// Names that do not resolve, ports where nobody listens, or somebody else does, or says nothing.
#[tokio::test]
async fn the_network() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    run(&session, "SET litmus_pgnats.connect_timeout = '1 s'").await;
    for (options, check, words) in [
        ("SET host 'no-such-host.invalid'", "DNS", "lookup"),
        ("SET host '127.0.0.1', SET port '1'", "TCP", "refused"),
    ] {
        run(&session, &format!("ALTER SERVER nats OPTIONS ({options})")).await;
        let findings = doctor(&session).await;
        says(&findings, check, "error", words);
    }
    let web = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let port = web.local_addr().expect("its port").port();
    std::thread::spawn(move || {
        for stream in web.incoming().flatten() {
            let _ = { stream }.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n");
        }
    });
    run(
        &session,
        &format!("ALTER SERVER nats OPTIONS (SET port '{port}')"),
    )
    .await;
    says(&doctor(&session).await, "TCP", "error", "no NATS server");
    // One that says nothing holds nobody up for long, and can be given up.
    let dark = TcpListener::bind("127.0.0.1:0").expect("a listener that says nothing");
    let port = dark.local_addr().expect("its port").port();
    run(
        &session,
        &format!("ALTER SERVER nats OPTIONS (SET port '{port}')"),
    )
    .await;
    says(&doctor(&session).await, "TCP", "error", "says nothing");
    run(&session, "SET litmus_pgnats.connect_timeout = '5 s'").await;
    let hanging = async { refused(&session, "SELECT litmus_pgnats.doctor()").await };
    let cancel = async {
        scene.until_waiting(session.pid()).await;
        scene
            .pg
            .sql(&format!("SELECT pg_cancel_backend({})", session.pid()))
            .await;
    };
    let ((error, took), ()) = tokio::join!(hanging, cancel);
    assert_eq!(error.code, "57014", "{error:?}");
    println!("given up after {took:?}");
    run(
        &session,
        &format!("ALTER SERVER nats OPTIONS (SET port '{}')", scene.nats.port()),
    )
    .await;
    says(
        &doctor(&session).await,
        "authentication",
        "ok",
        "without a credential",
    );
}

/// Credentials, certificates and the files that have them.
#[tokio::test]
async fn credentials_and_certificates() {
    let certs = Certs::fresh();
    let nats = NatsServer::builder()
        .tls(&certs)
        .token("right-token-of-bob")
        .start()
        .await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(
        &session,
        "SET litmus_pgnats.connect_timeout = '2 s'; SET client_min_messages = error",
    )
    .await;
    let alter = async |options: &str| run(&session, &format!("ALTER SERVER nats OPTIONS ({options})")).await;
    // The platform does not know the tests' CA.
    says(&doctor(&session).await, "TLS", "error", "UnknownIssuer");
    alter(&format!(
        "ADD tls_ca_path '{}', ADD token 'wrong-token-of-bob'",
        certs.ca().display()
    ))
    .await;
    let findings = doctor(&session).await;
    says(&findings, "authentication", "error", "refused the authentication");
    says(
        &findings,
        "foreign server",
        "warning",
        "can read its option token",
    );
    assert!(findings.iter().all(|f| !format!("{f:?}").contains("of-bob")));
    alter("DROP token, ADD token_path '/nowhere/token'").await;
    says(&doctor(&session).await, "file", "error", "/nowhere/token");
    alter("DROP token_path, ADD token 'right-token-of-bob'").await;
    says(&doctor(&session).await, "authentication", "ok", "the token");
    alter("DROP tls_ca_path, ADD tls_insecure 'true'").await;
    let findings = doctor(&session).await;
    says(&findings, "TLS", "warning", "certificate of CN=");
    says(&findings, "authentication", "ok", "the token");
    let other = Certs::fresh();
    alter(&format!(
        "DROP tls_insecure, ADD tls_ca_path '{}'",
        other.ca().display()
    ))
    .await;
    says(&doctor(&session).await, "TLS", "error", "certificate");
}

/// A domain that is not there, JetStream that is off, Patroni that does not answer.
#[tokio::test]
async fn jetstream_and_patroni() {
    let scene = Scene::start().await;
    let session = scene.pg.connect().await;
    run(&session, "SET litmus_pgnats.connect_timeout = '2 s'").await;
    let findings = doctor(&session).await;
    says(&findings, "JetStream", "warning", "has no JetStream");
    run(
        &session,
        "ALTER SERVER nats OPTIONS (ADD domain 'hub', ADD patroni_url 'http://127.0.0.1:1/')",
    )
    .await;
    let findings = doctor(&session).await;
    says(&findings, "JetStream", "error", "domain \"hub\"");
    says(&findings, "Patroni", "error", "cannot be asked");
    assert_eq!(worst(&findings, "JetStream").object, "nats: domain hub");
}

/// Handlers that do not run, run as the wrong role, or fail; dead letters.
#[tokio::test]
async fn handlers_that_ail() {
    let (scene, session) = Scene::keeping().await;
    run(&session, SHOP).await;
    run(
        &session,
        "CREATE FUNCTION fail(msg text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'it is broken'; END $$;
         SELECT nats_subscribe('of.superuser', 'fail');
         SET ROLE shop; SELECT nats_subscribe('of.shop', 'keep'); RESET ROLE;
         INSERT INTO litmus_pgnats.dead_letter (source, server, role, subject, payload, error, sent)
           VALUES ('outbox', 'nats', 'shop', 'a', '', 'XX000: it was refused', now())",
    )
    .await;
    until_live(&session, "of.superuser").await;
    say(&scene.nats.client().await, "of.superuser", "x").await;
    until_errors(&session, "of.superuser", 1).await;
    let of = |findings: &[Finding], subject: &str| -> Vec<String> {
        let of = findings
            .iter()
            .filter(|f| f.check == "handler" && f.object.contains(subject));
        of.map(|f| format!("{}: {}", f.status, f.found)).collect()
    };
    let findings = doctor(&session).await;
    says(&findings, "handlers", "warning", "1 run as superuser");
    let failing = of(&findings, "of.superuser");
    assert!(
        failing[0].contains("1 errors, 0 dropped, 0 queued; last error: P0001: it is broken"),
        "{failing:?}"
    );
    says(&findings, "dead letters", "warning", "XX000: it was refused");
    run(
        &session,
        "ALTER FUNCTION keep OWNER TO pg_monitor; REVOKE USAGE ON FOREIGN SERVER nats FROM shop",
    )
    .await;
    until_state(&session, "of.shop", "disabled").await;
    let shop = of(&doctor(&session).await, "of.shop");
    assert!(
        shop[0].contains("belongs to pg_monitor, who can have it do anything as shop"),
        "{shop:?}"
    );
    assert!(
        shop[1].starts_with("error: disabled: ") && shop[1].contains("USAGE"),
        "{shop:?}"
    );
}

/// A member of pg_monitor sees all but what it may not use; whose names mean something else fools nobody.
#[tokio::test]
async fn as_somebody_else() {
    let (scene, session) = Scene::keeping().await;
    run(
        &session,
        "CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; GRANT CREATE ON SCHEMA public TO monitor",
    )
    .await;
    subscribe(&session, "news", "keep").await;
    run(
        &session,
        "CREATE SCHEMA app; CREATE FUNCTION app.\"An odd name\"(msg litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS 'SELECT';
         SELECT nats_subscribe('odd', 'app.\"An odd name\"'), nats_subscribe('upper', 'pg_catalog.quote_ident')",
    )
    .await;
    let monitor = scene.pg.connect_as("monitor", "postgres").await;
    run(
        &monitor,
        "CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'fooled'; END $$;
         CREATE TABLE public.pg_roles (); SET search_path = public, pg_catalog",
    )
    .await;
    let findings = doctor(&monitor).await;
    says(
        &findings,
        "foreign server",
        "warning",
        "monitor has no USAGE privilege",
    );
    assert!(findings.iter().all(|finding| finding.check != "authentication"));
    let handlers: Vec<_> = findings
        .iter()
        .filter(|finding| finding.check == "handler")
        .collect();
    assert_eq!(handlers.len(), 3, "{handlers:?}");
    let lost = |finding: &&&Finding| finding.found.contains("does not exist");
    assert_eq!(handlers.iter().filter(lost).count(), 0, "{handlers:?}");
    run(&session, "GRANT USAGE ON FOREIGN SERVER nats TO monitor").await;
    says(&doctor(&monitor).await, "authentication", "ok", "");
    assert_eq!(text(&monitor, "SHOW search_path").await, "public, pg_catalog");
}

/// On a standby it works as well.
#[tokio::test]
async fn on_a_standby() {
    let scene = Scene::start().await;
    let standby = scene.pg.standby().await;
    let replayed = "SELECT count(*) FROM pg_foreign_server";
    eventually_eq(SOON, "1".to_owned(), async || standby.sql(replayed).await).await;
    let session = standby.connect().await;
    let findings = doctor(&session).await;
    says(&findings, "authentication", "ok", "");
    says(&findings, "handlers", "ok", "standby");
}

/// Each host is tried, not only the first that works; a server without TLS is called that; and options that the running
/// connection does not have yet are found.
#[tokio::test]
async fn several_hosts_and_options_not_taken_up() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    let guarded = NatsServer::builder().token("another-token").start().await;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", scene.nats.port(), guarded.port());
    run(
        &session,
        &format!("ALTER SERVER nats OPTIONS (SET host '{hosts}')"),
    )
    .await;
    let findings = doctor(&session).await;
    says(&findings, "authentication", "error", "refused");
    assert_eq!(
        worst(&findings, "authentication").object,
        format!("nats: 127.0.0.1:{}", guarded.port())
    );
    says(&findings, "options", "warning", "has other options");
    run(&session, "SELECT litmus_pgnats_reload_conf()").await;
    assert!(
        doctor(&session)
            .await
            .iter()
            .all(|finding| finding.check != "options")
    );
    let ca = Certs::shared().ca();
    run(
        &session,
        &format!("ALTER SERVER nats OPTIONS (ADD tls_ca_path '{}')", ca.display()),
    )
    .await;
    says(&doctor(&session).await, "TLS", "error", "offers no TLS");
}

/// What a stranger says is one line, not a long one, and fits into a database that lacks its characters; no password of
/// Patroni's address is shown.
#[tokio::test]
async fn what_strangers_say() {
    let stub = WireStub::start_with(
        serde_json::json!({ "server_name": format!("日本\n\u{0}{}", "x".repeat(5000)) }),
    );
    let pg = Postgres::start().await;
    pg.sql("CREATE DATABASE latin ENCODING latin1 LOCALE 'C' TEMPLATE template0")
        .await;
    let session = pg.connect_as("postgres", "latin").await;
    run(
        &session,
        &create_server(
            stub.port(),
            ", patroni_url 'http://admin:s3cret-of-patroni@127.0.0.1:1/'",
        ),
    )
    .await;
    run(&session, "SET litmus_pgnats.connect_timeout = '1 s'").await;
    let findings = doctor(&session).await;
    let tcp = worst(&findings, "TCP");
    assert!(
        tcp.found.contains("\\u{65e5}") && !tcp.found.contains('\n') && tcp.found.len() < 2000,
        "{tcp:?}"
    );
    says(
        &findings,
        "foreign server",
        "warning",
        "can read its option patroni_url",
    );
    assert!(findings.iter().all(|f| !format!("{f:?}").contains("s3cret")));
}
