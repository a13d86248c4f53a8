//! From one version of the SQL objects to the next, as docs/development.md describes it. What was released does not
//! change any more, and whoever comes from it has in the end what a new user has.

mod stage;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use stage::*;
use support::*;

/// Everything that the extension owns, a line for each thing that could differ.
const CATALOGUE: &str = r"
WITH own AS (
  SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS name
  FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
  WHERE e.extname = 'litmus_pgnats' AND d.deptype = 'e'
), rel AS (SELECT own.name, c.* FROM own JOIN pg_class c ON own.classid = 'pg_class'::regclass AND c.oid = own.objid)
SELECT name || ': ' || coalesce(obj_description(objid, classid::regclass::name), 'no comment') FROM own
UNION ALL SELECT name || ': ' || pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '')
  FROM own JOIN pg_proc p ON classid = 'pg_proc'::regclass AND p.oid = objid
UNION ALL SELECT name || ': ' || relkind::text || ' ' || coalesce(relacl::text, '') || coalesce(pg_get_viewdef(oid), '') FROM rel
UNION ALL SELECT name || '.' || attname || ': ' || format_type(atttypid, atttypmod) || ' ' || attnotnull || ' '
    || coalesce(pg_get_expr(adbin, adrelid), '') || coalesce(attacl::text, '') || coalesce(col_description(attrelid, attnum), '')
  FROM rel JOIN pg_attribute ON attrelid = rel.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL SELECT name || ': ' || pg_get_indexdef(indexrelid) FROM rel JOIN pg_index ON indrelid = rel.oid
UNION ALL SELECT name || ': ' || conname || ' ' || pg_get_constraintdef(k.oid) FROM rel JOIN pg_constraint k ON conrelid = rel.oid
UNION ALL SELECT name || ': ' || pg_get_triggerdef(t.oid) FROM rel JOIN pg_trigger t ON tgrelid = rel.oid AND NOT tgisinternal
UNION ALL SELECT name || ': ' || evtevent || evtfoid::regproc || evtenabled::text || coalesce(evttags::text, '')
  FROM own JOIN pg_event_trigger v ON classid = 'pg_event_trigger'::regclass AND v.oid = objid
UNION ALL SELECT name || ': ' || fdwhandler || fdwvalidator::regproc || coalesce(fdwacl::text, '')
  FROM own JOIN pg_foreign_data_wrapper w ON classid = 'pg_foreign_data_wrapper'::regclass AND w.oid = objid
UNION ALL SELECT name || ': ' || coalesce(nspacl::text, '')
  FROM own JOIN pg_namespace n ON classid = 'pg_namespace'::regclass AND n.oid = objid
UNION ALL SELECT 'dumped: ' || config::regclass || ' ' || extcondition[nr]
  FROM pg_extension, unnest(extconfig) WITH ORDINALITY u (config, nr) WHERE extname = 'litmus_pgnats'";

async fn catalogue(session: &Session) -> BTreeSet<String> {
    let rows = session.query(CATALOGUE, &[]).await;
    let rows = rows.unwrap_or_else(|e| panic!("read the catalogue: {e:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sql")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

fn current() -> String {
    let control = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("litmus_pgnats.control"));
    let line = control
        .lines()
        .find_map(|line| line.strip_prefix("default_version = "));
    line.expect("a version").trim_matches('\'').to_owned()
}

/// The lines of sql/released: version, and digest of its install script.
fn released() -> Vec<(String, String)> {
    let lines = read(&sources().join("released"));
    let lines = lines.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (version, digest) = line.split_once(' ').expect("a version and a digest");
            (version.to_owned(), digest.trim().to_owned())
        })
        .collect()
}

fn sha256(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output();
    let printed = String::from_utf8(output.expect("run sha256sum").stdout).expect("text");
    printed.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn released_install_scripts_are_frozen() {
    for (version, digest) in released() {
        let script = sources().join(format!("litmus_pgnats--{version}.sql"));
        assert_eq!(
            sha256(&script),
            digest,
            "{version} was released: write an update script instead"
        );
    }
}

/// A server whose extension was created as `version`, then brought to this one: it is as a fresh one.
async fn updated_is_as_fresh(version: &str) {
    let stage = Stage::start().await;
    let fresh = stage.pg.connect().await;
    stage.pg.sql("CREATE DATABASE old").await;
    let old = stage.pg.connect_as("postgres", "old").await;
    run(
        &old,
        &format!("CREATE EXTENSION litmus_pgnats VERSION '{version}'"),
    )
    .await;
    create_server(&old, "nats", stage.nats.port(), "").await;
    let mut inbox = stage.subscribe("news").await;
    run(&old, "SELECT nats_publish_text('news', 'before')").await;
    assert_eq!(inbox.text().await, "before");
    run(&old, "ALTER EXTENSION litmus_pgnats UPDATE").await;
    // The same session, and one that starts with the new objects.
    for session in [old, stage.pg.connect_as("postgres", "old").await] {
        run(&session, "SELECT nats_publish_text('news', 'after')").await;
        assert_eq!(inbox.text().await, "after");
        let extversion = "SELECT extversion FROM pg_extension WHERE extname = 'litmus_pgnats'";
        assert_eq!(value::<String>(&session, extversion).await, current());
        let (updated, fresh) = (catalogue(&session).await, catalogue(&fresh).await);
        let differences: Vec<_> = updated.symmetric_difference(&fresh).collect();
        assert!(differences.is_empty(), "from {version}: {differences:#?}");
    }
}

#[tokio::test]
async fn every_released_version_leads_here() {
    for (version, _) in released() {
        if version != current() {
            updated_is_as_fresh(&version).await;
        }
    }
}

/// An older version made up by the test, in the server's own directory as long as it lives.
struct MadeUp(Vec<PathBuf>);

impl MadeUp {
    fn install(scripts: &[(String, String)]) -> Self {
        let directory = PathBuf::from(pg_config("--sharedir")).join("extension");
        let write = |(name, text): &(String, String)| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
            path
        };
        Self(scripts.iter().map(write).collect())
    }
}

impl Drop for MadeUp {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// The mechanism, for as long as there is but one version: an older one is made up that lacks a function, has another
/// argument list of one, and a function whose C code is gone. Old objects with this library work or say what is wrong;
/// the update script brings them here; and the comparison sees what an update script forgets.
#[tokio::test]
async fn from_a_made_up_version() {
    let now = current();
    let install = read(&sources().join(format!("litmus_pgnats--{now}.sql")));
    let lacking = install
        .find("CREATE FUNCTION litmus_pgnats_version(")
        .expect("the last function");
    let (before, last) = install.split_at(lacking);
    let old = "made.up";
    // PostgreSQL looks for the symbol when a function is created, so this one loses it afterwards.
    let gone = "CREATE FUNCTION nats_gone() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'litmus_pgnats_reload_conf';
        UPDATE pg_catalog.pg_proc SET prosrc = 'nats_gone' WHERE proname = 'nats_gone';\n";
    let shorter = before.replace(
        "nats_delete_value(bucket text, key text, domain text DEFAULT NULL)",
        "nats_delete_value(bucket text, key text)",
    );
    let shorter = shorter.replace(
        "COMMENT ON FUNCTION nats_delete_value(text, text, text)",
        "COMMENT ON FUNCTION nats_delete_value(text, text)",
    );
    assert_ne!(shorter, before);
    let deletion: String = before
        .lines()
        .skip_while(|line| !line.starts_with("CREATE FUNCTION nats_delete_value("))
        .take_while(|line| !line.is_empty())
        .flat_map(|line| [line, "\n"])
        .collect();
    let step =
        format!("DROP FUNCTION nats_gone(); DROP FUNCTION nats_delete_value(text, text);\n{deletion}\n");
    let _scripts = MadeUp::install(&[
        (format!("litmus_pgnats--{old}.sql"), format!("{shorter}\n{gone}")),
        (
            format!("litmus_pgnats--{old}--{now}.sql"),
            format!("{step}{last}"),
        ),
        (format!("litmus_pgnats--{old}--forgetful.sql"), step),
    ]);

    let stage = Stage::with(NatsServer::builder().jetstream(), Postgres::builder()).await;
    stage.pg.sql("CREATE DATABASE old").await;
    let session = stage.pg.connect_as("postgres", "old").await;
    run(
        &session,
        &format!("CREATE EXTENSION litmus_pgnats VERSION '{old}'"),
    )
    .await;
    create_server(&session, "nats", stage.nats.port(), "").await;
    run(
        &session,
        "SELECT nats_put_text('bucket', 'key', 'value'); SELECT nats_delete_value('bucket', 'key')",
    )
    .await;
    let report = failure(&session, "SELECT nats_gone()").await;
    assert!(
        report
            .message
            .starts_with("could not find function \"nats_gone\" in file"),
        "{}",
        report.message
    );
    run(&session, "ALTER EXTENSION litmus_pgnats UPDATE TO 'forgetful'").await;
    let (forgetful, fresh) = (
        catalogue(&session).await,
        catalogue(&stage.pg.connect().await).await,
    );
    let missing: Vec<_> = fresh.difference(&forgetful).collect();
    assert_eq!(missing.len(), 2, "{missing:#?}");
    assert!(
        missing.iter().all(|line| line.contains("litmus_pgnats_version")),
        "{missing:#?}"
    );
    assert_eq!(forgetful.difference(&fresh).count(), 0);

    updated_is_as_fresh(old).await;
}
