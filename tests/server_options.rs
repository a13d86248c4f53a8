//! Options of foreign servers: what CREATE and ALTER SERVER accept and refuse, and how they say so.

mod foreign_server;
mod support;

use foreign_server::*;
use support::Session;

/// What every refusal of an option must say, and how.
async fn refused_for(session: &Session, sql: &str, code: &str, option: &str, advice: &str) {
    let report = refused(session, sql).await;
    assert_eq!(report.code, code, "{sql}: {report:?}");
    let named = format!("\"{option}\"");
    assert!(report.message.contains(&named), "{sql}: {report:?}");
    let hint = report.hint.clone().unwrap_or_default();
    assert!(hint.contains(advice), "{sql}: {report:?}");
}

/// Each documented option, with a value that is not its default.
fn every_option(seed: &str) -> Vec<(&str, &str)> {
    vec![
        ("host", "nats.example.com"),
        ("port", "4223"),
        ("capacity", "1000"),
        ("tls_ca_path", "/etc/nats/ca.pem"),
        ("tls_cert_path", "/etc/nats/client.pem"),
        ("tls_key_path", "/etc/nats/client.key"),
        ("tls_insecure", "false"),
        ("domain", "hub"),
        ("username", ""),
        ("password_path", "/run/secrets/password"),
        ("password", "open sesame"),
        ("nkey_seed_path", "/run/secrets/seed"),
        ("nkey_seed", seed),
        ("token_path", "/run/secrets/token"),
        ("token", "t0ken"),
        ("notify_subject", "pg.role"),
        ("patroni_url", "http://localhost:8008/patroni"),
        ("responder_timeout_ms", "250"),
    ]
}

/// Values that the reference rules out, and words of the hint that says what is allowed.
const MALFORMED: [(&str, &str, &str); 36] = [
    ("host", "", "IP address or host name"),
    ("host", "nats://localhost", "IP address or host name"),
    ("host", "two words", "IP address or host name"),
    ("host", "localhost:0", "IP address or host name"),
    ("port", "abc", "from 1 to 65535"),
    ("port", "", "from 1 to 65535"),
    ("port", "0", "from 1 to 65535"),
    ("port", "65536", "from 1 to 65535"),
    ("port", "4222 ", "from 1 to 65535"),
    ("capacity", "0", "whole number from 1"),
    ("capacity", "-1", "whole number from 1"),
    ("capacity", "1.5", "whole number from 1"),
    ("capacity", "99999999999999999999", "whole number from 1"),
    ("tls_ca_path", "ca.pem", "absolute path"),
    ("tls_cert_path", "./client.pem", "absolute path"),
    ("tls_key_path", "~/client.key", "absolute path"),
    ("password_path", "", "absolute path"),
    ("nkey_seed_path", "../seed", "absolute path"),
    ("token_path", "/run/secrets/", "absolute path"),
    ("tls_insecure", "maybe", "true or false"),
    ("tls_insecure", "", "true or false"),
    ("domain", "", "letters, digits"),
    ("domain", "a.b", "letters, digits"),
    ("domain", "a b", "letters, digits"),
    ("domain", "*", "letters, digits"),
    ("password", "", "not empty"),
    ("token", "", "not empty"),
    ("nkey_seed", "no seed", "\"SU\""),
    ("notify_subject", "", "without wildcards"),
    ("notify_subject", "pg.*", "without wildcards"),
    ("notify_subject", "pg.>", "without wildcards"),
    ("notify_subject", "pg..role", "without wildcards"),
    ("patroni_url", "localhost:8008", "http://"),
    ("patroni_url", "ftp://localhost", "http://"),
    ("responder_timeout_ms", "0", "whole number from 1"),
    ("responder_timeout_ms", "2147483648", "whole number from 1"),
];

/// Names as people misremember them, and the option they mean.
const MISSPELT: [(&str, &str); 10] = [
    ("url", "host"),
    ("tls", "tls_ca_path"),
    ("prot", "port"),
    ("Host", "host"),
    ("user", "username"),
    ("passwrd", "password"),
    ("tls_ca", "tls_ca_path"),
    ("nkey", "nkey_seed"),
    ("patroni", "patroni_url"),
    ("responder_timeout", "responder_timeout_ms"),
];

// The reference lists 18 options: a server may have each alone, all of them, or none.
#[tokio::test]
async fn every_option_is_accepted() {
    let (_pg, session) = ready().await;
    let seed = seed();
    let all = every_option(&seed);
    run(&session, &create_named("bare", &[])).await;
    run(&session, &create(&all)).await;
    for option in &all {
        let mut pairs = vec![*option];
        match option.0 {
            "tls_cert_path" => pairs.extend([("tls_key_path", "/k"), ("tls_insecure", "on")]),
            "tls_key_path" => pairs.extend([("tls_cert_path", "/c"), ("tls_insecure", "on")]),
            _ => {}
        }
        run(&session, &create_named("one", &pairs)).await;
        run(&session, "DROP SERVER one").await;
    }
    let stored = "SELECT count(*) FROM pg_foreign_server, unnest(srvoptions) WHERE srvname = 'nats'";
    let row = session.query_one(stored, &[]).await.expect("count the options");
    assert_eq!(row.get::<_, i64>(0), 18);
}

// A typing error must be seen when it is made, not when the connection fails.
#[tokio::test]
async fn malformed_values_are_refused_at_create() {
    let (_pg, session) = ready().await;
    for (name, value, allowed) in MALFORMED {
        let sql = create(&[(name, value)]);
        refused_for(&session, &sql, code::MALFORMED_OPTION, name, allowed).await;
    }
}

// ALTER goes through the same check, and leaves the server as it was.
#[tokio::test]
async fn malformed_values_are_refused_at_alter() {
    let (_pg, session) = ready().await;
    run(&session, &create(&[])).await;
    for (name, value, allowed) in MALFORMED {
        let sql = alter(&[(&format!("ADD {name}"), value)]);
        refused_for(&session, &sql, code::MALFORMED_OPTION, name, allowed).await;
    }
    let untouched = "SELECT srvoptions IS NULL FROM pg_foreign_server WHERE srvname = 'nats'";
    let row = session.query_one(untouched, &[]).await.expect("read the options");
    assert!(row.get::<_, bool>(0));
}

// An account's or operator's seed is well formed but nobody can connect with it.
#[tokio::test]
async fn only_seeds_of_users_are_accepted() {
    let (_pg, session) = ready().await;
    for pair in [nkeys::KeyPair::new_account(), nkeys::KeyPair::new_operator()] {
        let seed = pair.seed().expect("the seed of a new key");
        let sql = create(&[("nkey_seed", &seed)]);
        refused_for(&session, &sql, code::MALFORMED_OPTION, "nkey_seed", "\"SU\"").await;
    }
}

// Who misspells an option gets the right name; who is far off gets the list.
#[tokio::test]
async fn unknown_options_are_refused_with_the_nearest_name() {
    let (_pg, session) = ready().await;
    run(&session, &create_named("other", &[])).await;
    for (name, nearest) in MISSPELT {
        let advice = format!("Perhaps you meant the option \"{nearest}\".");
        let quoted = format!("\"{name}\"");
        let sql = create(&[(&quoted, "x")]);
        refused_for(&session, &sql, code::UNKNOWN_OPTION, name, &advice).await;
        let sql = format!("ALTER SERVER other OPTIONS (ADD \"{name}\" 'x')");
        refused_for(&session, &sql, code::UNKNOWN_OPTION, name, &advice).await;
    }
    let sql = create(&[("zzzzzzzz", "x")]);
    refused_for(
        &session,
        &sql,
        code::UNKNOWN_OPTION,
        "zzzzzzzz",
        "host, port, capacity",
    )
    .await;
}

// Options that cannot both hold are refused, however the server comes to have them.
#[tokio::test]
async fn contradictions_are_refused() {
    let (_pg, session) = ready().await;
    let (ca, insecure) = (("tls_ca_path", "/ca.pem"), ("tls_insecure", "true"));
    let (cert, key) = (("tls_cert_path", "/c.pem"), ("tls_key_path", "/c.key"));
    let refuse = async |sql: &str, option: &str| {
        refused_for(
            &session,
            sql,
            code::CONTRADICTION,
            option,
            "Drop the one option or add the other",
        )
        .await;
    };
    refuse(&create(&[insecure, ca]), "tls_insecure").await;
    refuse(&create(&[ca, cert]), "tls_cert_path").await;
    refuse(&create(&[ca, key]), "tls_key_path").await;
    refuse(&create(&[cert, key]), "tls_cert_path").await;

    run(&session, &create(&[ca, cert, key, ("tls_insecure", "false")])).await;
    refuse(&alter(&[("SET tls_insecure", "true")]), "tls_insecure").await;
    refuse(&alter(&[("DROP tls_key_path", "")]), "tls_cert_path").await;
    refuse(&alter(&[("DROP tls_cert_path", "")]), "tls_key_path").await;
    refuse(&alter(&[("DROP tls_ca_path", "")]), "tls_cert_path").await;
    // Both at once is a change of mind, not a contradiction.
    let change = alter(&[("SET tls_insecure", "true"), ("DROP tls_ca_path", "")]);
    run(&session, &change).await;
}

// The three forms of ALTER SERVER that users type.
#[tokio::test]
async fn alter_sets_adds_and_drops() {
    let (_pg, session) = ready().await;
    run(&session, &create(&[("host", "a"), ("port", "1")])).await;
    let change = alter(&[("SET port", "2"), ("ADD capacity", "7"), ("DROP host", "")]);
    run(&session, &change).await;
    let stored = "SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = 'nats'";
    let row = session.query_one(stored, &[]).await.expect("read the options");
    assert_eq!(row.get::<_, String>(0), "{port=2,capacity=7}");
}

// Values may hold what separates names from values, quotes and newlines.
#[tokio::test]
async fn values_may_hold_any_character() {
    let (_pg, session) = ready().await;
    let odd = "a=b, 'c' \"d\"\\\n=";
    run(&session, &create(&[("username", odd), ("password", odd)])).await;
    let stored = "SELECT option_value FROM information_schema.foreign_server_options";
    let rows = session.query(stored, &[]).await.expect("read the options");
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.get::<_, String>(0) == odd), "{rows:?}");
}

// The wrapper stands for no connection; an option there would silently do nothing.
#[tokio::test]
async fn the_wrapper_itself_takes_no_options() {
    let (_pg, session) = ready().await;
    let sql = "ALTER FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (ADD host 'localhost')";
    refused_for(&session, sql, code::UNKNOWN_OPTION, "host", "no valid options").await;
    run(&session, &create(&[])).await;
    let sql = "CREATE FOREIGN TABLE t (a int) SERVER nats OPTIONS (host 'localhost')";
    refused_for(&session, sql, code::UNKNOWN_OPTION, "host", "no valid options").await;
}
