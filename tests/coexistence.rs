//! Another extension for NATS in the cluster: in another database both work, in the same one litmus_pgnats says why not.

mod stage;
mod support;

use std::fs;
use std::path::PathBuf;

use stage::*;
use support::*;

/// A stand-in for another extension, in the server's own directory as long as it lives.
struct Other {
    files: [PathBuf; 2],
}

impl Other {
    /// An extension `name`, whose script has these statements.
    fn install(name: &str, script: &str) -> Self {
        let directory = PathBuf::from(pg_config("--sharedir")).join("extension");
        let control = directory.join(format!("{name}.control"));
        let sql = directory.join(format!("{name}--1.0.sql"));
        fs::write(&control, "default_version = '1.0'\nrelocatable = true\n").expect("write the control file");
        fs::write(&sql, script).expect("write the script");
        Self {
            files: [control, sql],
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// Other arguments than ours: PostgreSQL alone would let both be created.
const PUBLISH: &str = "CREATE FUNCTION nats_publish_text(subject text, payload text) RETURNS void
                       LANGUAGE sql AS $$ SELECT pg_catalog.set_config('other.said', subject, false) $$;";

#[tokio::test]
async fn in_another_database() {
    let _other = Other::install("other_nats_apart", PUBLISH);
    let stage = Stage::start().await;
    stage.pg.sql("CREATE DATABASE theirs").await;
    let theirs = stage.pg.connect_as("postgres", "theirs").await;
    run(&theirs, "CREATE EXTENSION other_nats_apart").await;
    let ours = stage.pg.connect().await;
    let mut inbox = stage.subscribe("news").await;
    run(&theirs, "SELECT nats_publish_text('theirs', 'x')").await;
    run(&ours, "SELECT nats_publish_text('news', 'ours')").await;
    assert_eq!(inbox.text().await, "ours");
    let said: String = value(&theirs, "SELECT current_setting('other.said')").await;
    assert_eq!(said, "theirs");
}

#[tokio::test]
async fn in_the_same_database() {
    let _other = Other::install("other_nats_beside", PUBLISH);
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    // In a schema that is not looked at, too: the path that finds it is a matter of settings.
    run(
        &session,
        "CREATE SCHEMA aside; CREATE EXTENSION other_nats_beside SCHEMA aside",
    )
    .await;
    let report = failure(&session, "CREATE EXTENSION litmus_pgnats").await;
    assert_eq!(report.code, "42723");
    assert_eq!(
        report.message,
        "litmus_pgnats cannot be in one database with extension \"other_nats_beside\", \
         which has functions of the same names"
    );
    assert_eq!(
        report.detail.as_deref(),
        Some("One of them is aside.nats_publish_text(text,text).")
    );
    let hint = report.hint.as_deref();
    assert_eq!(
        hint,
        Some("Create it in another database of the cluster, or drop the other extension first.")
    );
    run(
        &session,
        "DROP EXTENSION other_nats_beside; CREATE EXTENSION litmus_pgnats",
    )
    .await;
}

/// A user's own function is no extension: with other arguments it is an overload, with ours PostgreSQL says which it is.
#[tokio::test]
async fn beside_functions_of_the_user() {
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    run(&session, PUBLISH).await;
    run(
        &session,
        "CREATE EXTENSION litmus_pgnats; DROP EXTENSION litmus_pgnats",
    )
    .await;
    run(
        &session,
        "CREATE FUNCTION nats_get_text(bucket text, key text, domain text) RETURNS text LANGUAGE sql AS $$ SELECT '' $$",
    )
    .await;
    let report = failure(&session, "CREATE EXTENSION litmus_pgnats").await;
    assert_eq!(
        report.message,
        "function \"nats_get_text\" already exists with same argument types"
    );
}
