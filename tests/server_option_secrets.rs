//! Options that need care: credentials in user mappings, files of the server's machine, secrets in the open.

mod foreign_server;
mod support;

use foreign_server::*;
use support::{Postgres, Report, Session};

/// The credential options; all others belong to the server alone.
fn credentials(seed: &str) -> [(&str, &str); 7] {
    [
        ("username", "alice"),
        ("password_path", "/run/secrets/password"),
        ("password", "open sesame"),
        ("nkey_seed_path", "/run/secrets/seed"),
        ("nkey_seed", seed),
        ("token_path", "/run/secrets/token"),
        ("token", "t0ken"),
    ]
}

const FILE_OPTIONS: [&str; 6] = [
    "tls_ca_path",
    "tls_cert_path",
    "tls_key_path",
    "password_path",
    "nkey_seed_path",
    "token_path",
];

/// A session of role alice, who may use server "nats" and make servers of her own.
async fn alice(pg: &Postgres, superuser: &Session) -> Session {
    run(superuser, "CREATE ROLE alice LOGIN").await;
    run(
        superuser,
        "GRANT USAGE ON FOREIGN DATA WRAPPER litmus_pgnats_fdw TO alice",
    )
    .await;
    run(superuser, "GRANT USAGE ON FOREIGN SERVER nats TO alice").await;
    pg.connect_as("alice", "postgres").await
}

// Everybody can bring a credential of their own, and the administrator one for all.
#[tokio::test]
async fn mappings_take_each_credential() {
    let (_pg, session) = ready().await;
    run(&session, &create(&[])).await;
    let seed = seed();
    for role in ["CURRENT_USER", "PUBLIC"] {
        run(&session, &map(role, &credentials(&seed))).await;
        let change =
            format!("ALTER USER MAPPING FOR {role} SERVER nats OPTIONS (SET token 'new', DROP username)");
        run(&session, &change).await;
        run(&session, &format!("DROP USER MAPPING FOR {role} SERVER nats")).await;
        for option in credentials(&seed) {
            run(&session, &map(role, &[option])).await;
            run(&session, &format!("DROP USER MAPPING FOR {role} SERVER nats")).await;
        }
    }
}

// A mapping must not lead a role to another host, or the hint to an option that is not allowed there.
#[tokio::test]
async fn mappings_take_nothing_else() {
    let (_pg, session) = ready().await;
    run(&session, &create(&[])).await;
    run(&session, &map("PUBLIC", &[("token", "t")])).await;
    for (name, value) in [
        ("host", "localhost"),
        ("port", "4222"),
        ("capacity", "1"),
        ("tls_ca_path", "/ca"),
        ("tls_cert_path", "/c"),
        ("tls_key_path", "/k"),
        ("tls_insecure", "true"),
        ("domain", "hub"),
        ("notify_subject", "a"),
        ("patroni_url", "http://localhost"),
        ("responder_timeout_ms", "1"),
        ("tokn", "t"),
    ] {
        let creation = map("CURRENT_USER", &[(name, value)]);
        let change = format!("ALTER USER MAPPING FOR PUBLIC SERVER nats OPTIONS (ADD {name} '{value}')");
        for sql in [creation, change] {
            let report = refused(&session, &sql).await;
            assert_eq!(report.code, code::UNKNOWN_OPTION, "{report:?}");
            assert!(report.message.contains(&format!("\"{name}\"")), "{report:?}");
            let advice = format!("{:?} {:?}", report.detail, report.hint);
            assert!(advice.contains("token") && !advice.contains("host"), "{report:?}");
        }
    }
    let malformed = refused(&session, &map("CURRENT_USER", &[("nkey_seed", "SU")])).await;
    assert_eq!(malformed.code, code::MALFORMED_OPTION);
}

// Who names a file has the server process read it, so it takes the right that COPY FROM a file takes.
#[tokio::test]
async fn file_options_take_the_right_to_read_files() {
    let (pg, superuser) = ready().await;
    run(&superuser, &create(&[("host", "localhost")])).await;
    let alice = alice(&pg, &superuser).await;
    let given: [(&str, &str); 7] = [
        ("tls_ca_path", "/f"),
        ("tls_cert_path", "/f"),
        ("tls_key_path", "/f"),
        ("password_path", "/f"),
        ("nkey_seed_path", "/f"),
        ("token_path", "/f"),
        ("username", "u"),
    ];
    let complete = |name: &str| -> Vec<(&str, &str)> {
        let tls = name.starts_with("tls_");
        given
            .into_iter()
            .filter(|(n, _)| *n == name || (tls && n.starts_with("tls_")))
            .collect()
    };
    for name in FILE_OPTIONS {
        let report = refused(&alice, &create_named("hers", &complete(name))).await;
        assert_eq!(report.code, code::DENIED, "{name}: {report:?}");
        assert!(
            report
                .hint
                .as_deref()
                .unwrap_or_default()
                .contains("pg_read_server_files")
        );
        if !name.starts_with("tls_") {
            let report = refused(&alice, &map("alice", &complete(name))).await;
            assert_eq!(report.code, code::DENIED, "{name}: {report:?}");
            assert!(report.message.contains(&format!("\"{name}\"")), "{report:?}");
        }
    }
    run(&alice, &create_named("hers", &[("token", "t")])).await;
    let change = "ALTER SERVER hers OPTIONS (ADD token_path '/f')";
    assert_eq!(refused(&alice, change).await.code, code::DENIED);

    run(&superuser, "GRANT pg_read_server_files TO alice").await;
    run(&alice, change).await;
    for name in FILE_OPTIONS {
        run(&alice, &create_named("more", &complete(name))).await;
        run(&alice, "DROP SERVER more").await;
    }
    run(&alice, &map("alice", &[("token_path", "/f")])).await;
}

fn warnings(session: &Session) -> Vec<Report> {
    let notices = session.take_notices().into_iter();
    notices.filter(|notice| notice.severity == "WARNING").collect()
}

// pg_foreign_server is open to all; a secret there is one only until somebody looks.
#[tokio::test]
async fn secrets_in_a_server_are_warned_of() {
    let (_pg, session) = ready().await;
    let seed = seed();
    run(&session, &create(&[("username", "alice"), ("token_path", "/t")])).await;
    assert_eq!(warnings(&session), []);
    for (name, value) in [
        ("password", "hunter2"),
        ("token", "hunter2"),
        ("nkey_seed", &seed),
    ] {
        let creation = create_named("other", &[(name, value)]);
        let addition = alter(&[(&format!("ADD {name}"), value)]);
        for sql in [creation, addition] {
            run(&session, &sql).await;
            let [warning] = &warnings(&session)[..] else {
                panic!("not one warning for {sql}");
            };
            assert!(warning.message.contains(&format!("\"{name}\"")), "{warning:?}");
            let hint = warning.hint.as_deref().unwrap_or_default();
            assert!(hint.contains("user mapping"), "{warning:?}");
            assert!(!all_text(warning).contains(value), "{warning:?}");
        }
        run(&session, "DROP SERVER other").await;
        run(&session, &alter(&[(&format!("DROP {name}"), "")])).await;
        session.take_notices();
    }
}

// PostgreSQL hides the options of a mapping from others, so there is nothing to warn of.
#[tokio::test]
async fn secrets_in_a_mapping_are_not_warned_of() {
    let (_pg, session) = ready().await;
    let seed = seed();
    run(&session, &create(&[])).await;
    run(&session, &map("CURRENT_USER", &credentials(&seed))).await;
    assert_eq!(session.notices(), []);
}

// A secret that is refused, for its form or by NATS, must not turn up in the client's or the server's log.
#[tokio::test]
async fn secrets_are_not_repeated() {
    let pg = Postgres::builder()
        .conf("log_min_messages", "debug5")
        .conf("litmus_pgnats.log_level", "debug")
        // Otherwise PostgreSQL itself logs the statement, with all that is in it.
        .conf("log_min_error_statement", "panic")
        .start()
        .await;
    let (pg, session) = with_extension(pg).await;
    let good_seed = seed();
    let nats = support::NatsServer::builder().token("right").start().await;
    let file = file(&pg, "secret", "Hunter2-in-file\n");

    let account = nkeys::KeyPair::new_account()
        .seed()
        .expect("the seed of a new key");
    for (name, value) in [
        ("nkey_seed", "SUHunter2"),
        ("nkey_seed", &account),
        ("password_path", "Hunter2"),
    ] {
        for sql in [
            create(&[(name, value)]),
            create(&[("token", "Hunter2-t"), ("prot", "1")]),
        ] {
            let report = refused(&session, &sql).await;
            assert!(!all_text(&report).contains("Hunter2"), "{report:?}");
            assert!(!all_text(&report).contains(&account), "{report:?}");
        }
    }
    create_for(&session, nats.port(), &[]).await;
    for credential in [
        &[("token", "Hunter2-token")][..],
        &[("username", "u"), ("password", "Hunter2-password")],
        &[("username", "u"), ("password_path", &file)],
        &[("token_path", &file)],
        &[("nkey_seed", &good_seed)],
        &[("nkey_seed_path", &file)],
    ] {
        run(&session, &map("CURRENT_USER", credential)).await;
        let report = refused(&session, INFO).await;
        let expected = match credential {
            [("nkey_seed_path", _)] => code::FILE,
            _ => code::REFUSED,
        };
        assert_eq!(report.code, expected, "{report:?}");
        assert!(!all_text(&report).contains("Hunter2"), "{report:?}");
        run(&session, "DROP USER MAPPING FOR CURRENT_USER SERVER nats").await;
    }
    // The log does speak of these failures, and in detail.
    pg.wait_log("refused the authentication", SOON).await;
    let log = pg.log();
    assert!(log.contains("DEBUG:"), "not logged in detail");
    for secret in ["Hunter2", &account, &good_seed] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None);
    }
}
