//! pg_dump takes the handlers along, and a restore brings them to life without another step; and the outbox.

mod handlers;
mod scene;
mod support;

use std::path::PathBuf;
use std::process::Command;

use handlers::*;
use scene::*;
use support::*;

/// A program of this PostgreSQL; some binary distributions lack it.
fn program(name: &str) -> Option<PathBuf> {
    let program = PathBuf::from(pg_config("--bindir")).join(name);
    if program.exists() {
        return Some(program);
    }
    println!("this PostgreSQL has no {name}");
    None
}

/// Runs a program against the server and returns what it printed; it must succeed without a word of complaint.
async fn output(pg: &Postgres, program: PathBuf, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new(&program);
    command
        .arg("--host")
        .arg(pg.socket_dir())
        .args(["--port", &pg.port().to_string(), "--username", "postgres"])
        .args(args)
        .env("LC_ALL", "C");
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("no panic").expect("run a program");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}", program.display());
    assert_eq!(complaint, "", "{}", program.display());
    output.stdout
}

/// What a dump has to carry over.
const HANDLERS: &str = "SELECT concat_ws(' | ', kind, server, subject, queue_group, signature, role, created)
                        FROM litmus_pgnats.handler ORDER BY 1";

async fn original() -> (Scene, Session, Vec<String>) {
    let (scene, session) = Scene::keeping().await;
    run(&session, SHOP).await;
    run(
        &session,
        "GRANT INSERT ON got TO shop; CREATE SCHEMA \"the Loft\"; GRANT USAGE ON SCHEMA \"the Loft\" TO shop;
         CREATE FUNCTION \"the Loft\".\"say it's\"(q text, subject text) RETURNS text LANGUAGE sql AS
           $$ SELECT current_user || ' says ' || q $$;
         CREATE FUNCTION keep(msg text) RETURNS void LANGUAGE sql AS '';
         SELECT nats_subscribe('news.>', 'keep(bytea)'::regprocedure);
         SELECT nats_subscribe('shared', 'keep(bytea)'::regprocedure, 'group');
         SET ROLE shop;
         SELECT litmus_pgnats_register_responder('rpc', '\"the Loft\".\"say it''s\"');
         RESET ROLE",
    )
    .await;
    until_live(&session, "rpc").await;
    let handlers = texts(&session, HANDLERS).await;
    assert_eq!(handlers.len(), 3, "{handlers:?}");
    (scene, session, handlers)
}

/// The restored database has the same handlers, and they run there.
async fn they_live(scene: &Scene, database: &str, handlers: &[String]) {
    let session = scene.pg.connect_as("postgres", database).await;
    assert_eq!(texts(&session, HANDLERS).await, handlers, "in {database}");
    for subject in ["news.>", "shared", "rpc"] {
        until_live(&session, subject).await;
    }
    let client = scene.nats.client().await;
    say(&client, "news.today", "to both").await;
    until_got(&session, &["to both"]).await;
    assert_eq!(reply_text(&ask(&client, "rpc", "hello").await), "shop says hello");
}

/// Dumps the database as a script, and has psql run it in a new one, `restored`.
async fn copy_as_a_script(scene: &Scene, session: &Session, pg_dump: PathBuf) {
    let dump = output(&scene.pg, pg_dump, &["postgres"]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), dump).expect("write the dump");
    run(session, "CREATE DATABASE restored TEMPLATE template0").await;
    let path = file.path().to_str().expect("a path");
    let restored = scene.pg.psql(&["-q", "-d", "restored", "-f", path]).await;
    assert_eq!(restored.status, 0, "{}", restored.stderr);
}

/// As a script, which psql runs.
#[tokio::test]
async fn as_a_script() {
    let Some(pg_dump) = program("pg_dump") else { return };
    let (scene, session, handlers) = original().await;
    copy_as_a_script(&scene, &session, pg_dump).await;
    they_live(&scene, "restored", &handlers).await;
    until_got(&session, &["to both"]).await;
    // What is dumped from the restored one is the same again.
    assert_eq!(texts(&session, HANDLERS).await, handlers);
}

/// As an archive, by several workers at a time, and over a database that has it all already.
#[tokio::test]
async fn as_an_archive() {
    let (Some(pg_dump), Some(pg_restore)) = (program("pg_dump"), program("pg_restore")) else {
        return;
    };
    let (scene, session, handlers) = original().await;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("dump");
    let path = path.to_str().expect("a path");
    output(
        &scene.pg,
        pg_dump,
        &["--format=directory", "--jobs=2", "--file", path, "postgres"],
    )
    .await;
    run(&session, "CREATE DATABASE restored TEMPLATE template0").await;
    let mut args = vec!["--jobs=2", "--exit-on-error", "--dbname=restored", path];
    output(&scene.pg, pg_restore.clone(), &args).await;
    they_live(&scene, "restored", &handlers).await;
    args.extend(["--clean", "--if-exists"]);
    output(&scene.pg, pg_restore, &args).await;
    they_live(&scene, "restored", &handlers).await;
}

/// In another cluster the object ids of the old one mean other functions: none of these is ever called.
#[tokio::test]
async fn into_a_cluster_with_other_object_ids() {
    let Some(pg_dump) = program("pg_dump") else { return };
    let (scene, _session, handlers) = original().await;
    let dump = output(&scene.pg, pg_dump, &["postgres"]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), dump).expect("write the dump");
    let path = file.path().to_str().expect("a path");
    let other = Scene {
        pg: Postgres::start().await,
        nats: NatsServer::start().await,
    };
    other.pg.sql("CREATE ROLE shop").await;
    for (database, together) in [("at_once", true), ("step_by_step", false)] {
        other
            .pg
            .sql(&format!("CREATE DATABASE {database} TEMPLATE template0"))
            .await;
        let session = other.pg.connect_as("postgres", database).await;
        // They take every object id that the functions may have had.
        run(
            &session,
            "CREATE SCHEMA decoy; CREATE TABLE decoy.called (n int);
             DO $$ BEGIN
               FOR n IN 1..2000 LOOP
                 EXECUTE format('CREATE FUNCTION decoy.f%s(msg bytea) RETURNS bytea LANGUAGE sql AS
                   $f$ INSERT INTO decoy.called VALUES (%s); SELECT msg $f$', n, n);
               END LOOP;
             END $$",
        )
        .await;
        let mut args = vec!["-q", "-d", database, "-f", path];
        args.extend(together.then_some("--single-transaction"));
        let restored = other.pg.psql(&args).await;
        assert_eq!(restored.status, 0, "{}", restored.stderr);
        assert_eq!(texts(&session, HANDLERS).await, handlers, "{database}");
        run(
            &session,
            &format!("ALTER SERVER nats OPTIONS (SET port '{}')", other.nats.port()),
        )
        .await;
        run(&session, "SELECT litmus_pgnats_reload_conf()").await;
        they_live(&other, database, &handlers).await;
        assert_eq!(
            number(&session, "SELECT count(*) FROM decoy.called").await,
            0,
            "{database}"
        );
        // The next one starts where this one has not reached.
        run(&session, "DROP EXTENSION litmus_pgnats CASCADE").await;
    }
}

/// A dump of the schema alone has no handlers, and restores without complaint.
#[tokio::test]
async fn the_schema_alone() {
    let Some(pg_dump) = program("pg_dump") else { return };
    let (scene, session, _) = original().await;
    let dump = output(&scene.pg, pg_dump, &["--schema-only", "postgres"]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), dump).expect("write the dump");
    run(&session, "CREATE DATABASE restored TEMPLATE template0").await;
    let path = file.path().to_str().expect("a path");
    let restored = scene.pg.psql(&["-q", "-d", "restored", "-f", path]).await;
    assert_eq!(restored.status, 0, "{}", restored.stderr);
    let restored = scene.pg.connect_as("postgres", "restored").await;
    assert_eq!(texts(&restored, HANDLERS).await, [""; 0]);
    subscribe(&restored, "anew", "keep(bytea)").await;
    say(&scene.nats.client().await, "anew", "1").await;
    until_got(&restored, &["1"]).await;
}

/// What waits in the outbox, and what has died, keeps its numbers; what comes after gets others.
#[tokio::test]
async fn the_outbox() {
    let Some(pg_dump) = program("pg_dump") else { return };
    let nats = NatsServer::builder().jetstream().start().await;
    let kept = Kept::start(&nats).await;
    let pg = Postgres::builder().conf("litmus_pgnats.outbox_retry_time", "0");
    let mut scene = Scene::with(pg, nats, "").await;
    let session = scene.pg.connect().await;
    let put =
        |subject: &str, payload: &str| format!("SELECT nats_publish_text_outbox('{subject}', '{payload}')");
    let dead = "SELECT count(*) FROM litmus_pgnats.dead_letter";
    run(&session, &put("nowhere", "dead")).await;
    until_number(&session, 1, dead).await;
    scene.nats.stop().await;
    run(
        &session,
        &format!("BEGIN; {}; {}; COMMIT", put("kept.a", "1"), put("kept.a", "2")),
    )
    .await;
    let ids = "SELECT string_agg(message_id::text, ' ' ORDER BY id) FROM litmus_pgnats.outbox";
    let before = text(&session, ids).await;
    copy_as_a_script(&scene, &session, pg_dump).await;
    let restored = scene.pg.connect_as("postgres", "restored").await;
    assert_eq!(number(&restored, dead).await, 1);
    assert_eq!(text(&restored, ids).await, before);
    run(&restored, &put("kept.a", "3")).await;
    // The original sends nothing: what comes is of the copy.
    run(
        &session,
        "TRUNCATE litmus_pgnats.outbox, litmus_pgnats.outbox_batch",
    )
    .await;
    scene.nats.restart().await;
    assert_eq!(kept.payloads(3).await, ["1", "2", "3"]);
    until_number(&restored, 0, "SELECT count(*) FROM litmus_pgnats.outbox").await;
}

/// A copy's durable subscription has a consumer of its own, which begins where the dump was.
#[tokio::test]
async fn a_durable_subscription() {
    let Some(pg_dump) = program("pg_dump") else { return };
    let nats = NatsServer::builder().jetstream().start().await;
    let kept = Kept::start(&nats).await;
    let scene = Scene::with(Postgres::builder(), nats, "").await;
    let session = scene.pg.connect().await;
    run(&session, KEEP).await;
    run(&session, "SELECT nats_subscribe_stream('kept', 'keep')").await;
    let client = scene.nats.client().await;
    count_off(&client, "kept.a", 1..=5).await;
    until_got(&session, &["1", "2", "3", "4", "5"]).await;
    copy_as_a_script(&scene, &session, pg_dump).await;
    let restored = scene.pg.connect_as("postgres", "restored").await;
    count_off(&client, "kept.a", 6..=8).await;
    kept.payloads(8).await;
    for database in [&session, &restored] {
        eventually_eq(LONG, numbers(1..=8), async || got(database).await).await;
    }
    let consumers =
        "SELECT count(*) FROM litmus_pgnats.stream_subscriptions WHERE state = 'live' AND applied_to = 8";
    for database in [&session, &restored] {
        until_number(database, 1, consumers).await;
    }
}
