//! What the tests of options, authentication, TLS and reload share: a PostgreSQL with the extension, and foreign
//! servers in it. A test file says `mod support; mod foreign_server;`.

#![allow(dead_code, reason = "every test file uses its own part of it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;

use crate::support::*;

/// Long enough for anything that happens at all.
pub const SOON: Duration = Duration::from_secs(10);

/// SQLSTATEs of the documented table.
pub mod code {
    pub const UNKNOWN_OPTION: &str = "HV00D";
    pub const MALFORMED_OPTION: &str = "HV024";
    pub const CONTRADICTION: &str = "HV021";
    pub const DENIED: &str = "42501";
    pub const INCOMPLETE: &str = "28P01";
    pub const REFUSED: &str = "28000";
    pub const UNREACHABLE: &str = "08001";
    pub const TLS: &str = "08004";
    pub const FILE: &str = "58030";
    pub const UNSUPPORTED: &str = "0A000";
}

/// A cluster with the extension in database postgres, and a session of the superuser there.
pub async fn ready() -> (Postgres, Session) {
    with_extension(Postgres::start().await).await
}

pub async fn with_extension(pg: Postgres) -> (Postgres, Session) {
    let session = pg.connect().await;
    run(&session, "CREATE EXTENSION litmus_pgnats").await;
    (pg, session)
}

/// `OPTIONS (name 'value', ...)`; a name may begin with ADD, SET or DROP.
pub fn options(pairs: &[(&str, &str)]) -> String {
    let item = |(name, value): &(&str, &str)| {
        if name.starts_with("DROP ") {
            (*name).to_owned()
        } else {
            format!("{name} '{}'", value.replace('\'', "''"))
        }
    };
    let items: Vec<String> = pairs.iter().map(item).collect();
    format!("OPTIONS ({})", items.join(", "))
}

pub fn create(pairs: &[(&str, &str)]) -> String {
    create_named("nats", pairs)
}

pub fn create_named(name: &str, pairs: &[(&str, &str)]) -> String {
    let options = if pairs.is_empty() {
        String::new()
    } else {
        options(pairs)
    };
    format!("CREATE SERVER {name} FOREIGN DATA WRAPPER litmus_pgnats_fdw {options}")
}

pub fn alter(pairs: &[(&str, &str)]) -> String {
    format!("ALTER SERVER nats {}", options(pairs))
}

/// A mapping for `role` (a name, PUBLIC or CURRENT_USER).
pub fn map(role: &str, pairs: &[(&str, &str)]) -> String {
    format!("CREATE USER MAPPING FOR {role} SERVER nats {}", options(pairs))
}

/// CREATE SERVER nats for a server at this port, with more options.
pub async fn create_for(session: &Session, port: u16, more: &[(&str, &str)]) {
    let port = port.to_string();
    let mut pairs = vec![("host", "127.0.0.1"), ("port", port.as_str())];
    if world::is_narrow() && !more.iter().any(|(name, _)| *name == "inbox_prefix") {
        pairs.push(("inbox_prefix", "_INBOX_narrow"));
    }
    pairs.extend(more);
    run(session, &create(&pairs)).await;
}

/// Runs SQL that must succeed.
pub async fn run(session: &Session, sql: &str) {
    let outcome = session.batch_execute(sql).await;
    outcome.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
}

/// Runs SQL that must fail, and returns the error.
pub async fn refused(session: &Session, sql: &str) -> Report {
    match session.batch_execute(sql).await {
        Ok(()) => panic!("not refused: {sql}"),
        Err(error) => db_error(&error),
    }
}

pub const RELOAD: &str = "SELECT litmus_pgnats_reload_conf()";
pub const FORCE: &str = "SELECT litmus_pgnats_reload_conf_force()";
pub const INFO: &str = "SELECT nats_get_server_info()";

/// The id that the NATS server gave to the connection of this session; another one means a reconnect.
pub async fn client_id(session: &Session) -> i64 {
    let row = session
        .query_one("SELECT client_id FROM nats_get_server_info()", &[])
        .await;
    row.unwrap_or_else(|e| panic!("nats_get_server_info: {e:?}"))
        .get(0)
}

/// Publishes, and sees that the message arrives at a client which the NATS server lets in.
pub async fn message_arrives(session: &Session, nats: &NatsServer) {
    let client = nats.client().await;
    let mut inbox = client.subscribe("proof").await.expect("subscribe");
    round_trip(&client).await;
    run(session, "SELECT nats_publish_text('proof', 'through')").await;
    let Ok(message) = tokio::time::timeout(SOON, inbox.next()).await else {
        let info = session.query_one(INFO, &[]).await.map(|_| "a connection");
        let connections = nats.monitor("/connz").await;
        panic!("no message in time; the session has {info:?}, NATS has {connections}");
    };
    assert_eq!(message.expect("an open subscription").payload, "through");
}

/// Whatever is in the fields of a report, as one text.
pub fn all_text(report: &Report) -> String {
    format!("{report:?}")
}

/// A file beside the data directory, which is removed with it.
pub fn file(pg: &Postgres, name: &str, content: &str) -> String {
    let path: PathBuf = pg.data_dir().with_file_name(name);
    std::fs::write(&path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    text(&path)
}

pub fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// A new user's NKey seed.
pub fn seed() -> String {
    nkeys::KeyPair::new_user().seed().expect("the seed of a new key")
}
