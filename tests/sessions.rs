//! Sessions as the operating system, PostgreSQL and NATS see them: threads, connections, names, memory, roles.

mod stage;
mod support;

use serde_json::Value;
use stage::*;
use support::{NatsServer, Postgres, Session, eventually, eventually_eq, proc};

const RUNTIME: &str = "litmus_pgnats runtime";

/// The connections of the extension that nats-server has open: their names, and who they are to it.
async fn connections(nats: &NatsServer) -> Vec<(String, String)> {
    let answer = nats.monitor("/connz?auth=1").await;
    let all = answer["connections"].as_array().cloned().unwrap_or_default();
    let text = |connection: &Value, key: &str| connection[key].as_str().unwrap_or_default().to_owned();
    let mut ours: Vec<_> = all
        .iter()
        .map(|connection| (text(connection, "name"), text(connection, "authorized_user")))
        .filter(|(name, _)| name.starts_with("litmus_pgnats/"))
        .collect();
    ours.sort();
    ours
}

/// The names of these connections.
async fn names(nats: &NatsServer) -> Vec<String> {
    connections(nats)
        .await
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

/// Publishes, asks, and reads the server's info: everything that a session can do.
async fn use_everything(session: &Session) {
    run(
        session,
        "SELECT nats_publish_text('a', 'x'), nats_publish_jsonb('a', '{}', 'r', '{\"a\": \"b\"}')",
    )
    .await;
    assert_eq!(
        value::<String>(session, "SELECT nats_request_text('echo', 'works')").await,
        "works"
    );
    run(session, "SELECT nats_get_server_info()").await;
}

/// Tokio and actix live in the runtime worker alone: whatever runs SQL has one thread, whatever it did.
#[tokio::test]
async fn only_the_runtime_has_threads() {
    let stage = Stage::with(
        NatsServer::builder(),
        Postgres::builder().conf("autovacuum", "off"),
    )
    .await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    let sessions: Vec<Session> = futures::future::join_all((0..8).map(|_| stage.pg.connect())).await;
    for session in &sessions {
        use_everything(session).await;
        failure(session, "SELECT nats_request_text('nobody', '')").await;
        assert_eq!(proc::threads(session.pid()), 1);
    }
    let runtime = stage.pg.worker_pid(RUNTIME).await.expect("a runtime");
    assert!(proc::threads(runtime) >= 2, "{:?}", proc::thread_names(runtime));
    let children = proc::children(stage.pg.postmaster_pid());
    assert!(children.len() > sessions.len());
    for pid in children
        .into_iter()
        .filter(|pid| *pid != runtime && proc::alive(*pid))
    {
        assert_eq!(proc::threads(pid), 1, "{}", proc::command_line(pid));
    }
    assert_eq!(proc::threads(stage.pg.postmaster_pid()), 1);
}

/// All sessions of a server share one connection, whose name tells cluster, database and server; it outlives them.
#[tokio::test]
async fn one_connection_serves_all_sessions() {
    let stage = Stage::with(
        NatsServer::builder(),
        Postgres::builder().conf("cluster_name", "plant 7"),
    )
    .await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    assert_eq!(connections(&stage.nats).await, [], "nobody has used it yet");
    let sessions: Vec<Session> = futures::future::join_all((0..16).map(|_| stage.pg.connect())).await;
    futures::future::join_all(sessions.iter().map(use_everything)).await;
    let mut ids = Vec::new();
    for session in &sessions {
        ids.push(value::<i64>(session, "SELECT client_id FROM nats_get_server_info()").await);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let expected = ["litmus_pgnats/plant 7/postgres/nats"];
    assert_eq!(names(&stage.nats).await, expected);
    futures::future::join_all(sessions.into_iter().map(Session::close)).await;
    use_everything(&stage.pg.connect().await).await;
    assert_eq!(names(&stage.nats).await, expected);
}

/// Without a cluster_name the connection's name says host and port; another server has a connection of its own.
#[tokio::test]
async fn two_servers_have_two_connections() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    create_server(&session, "\"Other\"", stage.nats.port(), "").await;
    for name in ["nats", "Other", "nats"] {
        run(
            &session,
            &format!("SET litmus_pgnats.server = '{name}'; SELECT nats_publish_text('a', '')"),
        )
        .await;
    }
    let names = names(&stage.nats).await;
    let port = stage.pg.port();
    assert_eq!(names.len(), 2, "{names:?}");
    for (name, server) in names.iter().zip(["Other", "nats"]) {
        assert!(name.ends_with(&format!(":{port}/postgres/{server}")), "{name}");
    }
}

/// Two databases do not share a connection, even if their servers are alike.
#[tokio::test]
async fn two_databases_have_two_connections() {
    let stage = Stage::with(
        NatsServer::builder(),
        Postgres::builder().conf("cluster_name", "c"),
    )
    .await;
    let first = stage.pg.connect().await;
    run(&first, "CREATE DATABASE second").await;
    let second = stage.pg.connect_as("postgres", "second").await;
    run(&second, "CREATE EXTENSION litmus_pgnats").await;
    create_server(&second, "nats", stage.nats.port(), "").await;
    let id = "SELECT client_id FROM nats_get_server_info()";
    assert_ne!(value::<i64>(&first, id).await, value::<i64>(&second, id).await);
    assert_eq!(
        names(&stage.nats).await,
        ["litmus_pgnats/c/postgres/nats", "litmus_pgnats/c/second/nats"]
    );
    second.close().await;
    // With its database goes a connection.
    run(&first, "DROP DATABASE second").await;
    eventually_eq(
        SOON,
        vec!["litmus_pgnats/c/postgres/nats".to_owned()],
        async || names(&stage.nats).await,
    )
    .await;
}

/// The runtime has a seat of its own in pg_stat_activity and belongs to no database, which it would keep from dropping.
#[tokio::test]
async fn the_runtime_shows_in_pg_stat_activity() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    run(&session, "SELECT nats_publish_text('a', '')").await;
    let sql = format!(
        "SELECT count(*) || ' ' || max(application_name) || ' ' || count(datname) FROM pg_stat_activity \
         WHERE backend_type = '{RUNTIME}'"
    );
    assert_eq!(value::<String>(&session, &sql).await, format!("1 {RUNTIME} 0"));
}

/// What a session, the runtime and an executor wait for has names, where PostgreSQL lets an extension give some.
#[tokio::test]
async fn waits_have_names() {
    let stage = Stage::start().await;
    let _silent = stage.subscribe("silent").await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "CREATE FUNCTION ignore(text) RETURNS void LANGUAGE sql AS ''; SELECT nats_subscribe('news', 'ignore')",
    )
    .await;
    let asking = stage.pg.connect().await;
    let pid = value::<i32>(&asking, "SELECT pg_backend_pid()").await;
    let ask = tokio::spawn(async move {
        failure(&asking, "SELECT nats_request_text('silent', 'anybody?', 60000)").await;
    });
    let waits = format!(
        "SELECT string_agg(wait_event_type || ' ' || wait_event, ',' ORDER BY pid <> {pid}, backend_type DESC) \
         FROM pg_stat_activity WHERE pid = {pid} OR backend_type LIKE 'litmus%'"
    );
    let names = if support::major() >= 17 {
        [
            "LitmusPgnatsReply",
            "LitmusPgnatsRuntimeMain",
            "LitmusPgnatsWorkerMain",
        ]
    } else {
        ["Extension"; 3]
    };
    let expected = names.map(|name| format!("Extension {name}")).join(",");
    eventually_eq(SOON, Some(expected), async || {
        value::<Option<String>>(&session, &waits).await
    })
    .await;
    run(&session, &format!("SELECT pg_cancel_backend({pid})")).await;
    ask.await.expect("the request ends with an error");
}

/// Runs a prepared statement many times, a hundred at a time on the wire.
async fn repeat(session: &Session, sql: &str, times: usize) {
    let statement = session.prepare(sql).await.expect("prepare");
    for _ in 0..times / 100 {
        let runs = (0..100).map(|_| session.execute(&statement, &[]));
        for outcome in futures::future::join_all(runs).await {
            outcome.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        }
    }
}

/// Ten thousand statements of every kind leave a session, and the runtime, as big as a few hundred left them.
#[tokio::test]
async fn a_long_session_does_not_grow() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    let runtime = stage.pg.worker_pid(RUNTIME).await.expect("a runtime");
    let kinds = [
        (
            "SELECT nats_publish_text('a', repeat('x', 1000), NULL, '{\"k\": [\"v\", \"w\"]}')",
            6000,
        ),
        (
            "SELECT nats_publish_jsonb('a', '{\"a\": [1, 2, 3]}') FROM generate_series(1, 10)",
            2000,
        ),
        ("SELECT nats_request_text('echo', repeat('x', 1000))", 1500),
        (
            "DO $$ BEGIN PERFORM nats_publish_text('', ''); EXCEPTION WHEN invalid_name THEN NULL; END $$",
            500,
        ),
    ];
    for (sql, _) in kinds {
        repeat(&session, sql, 300).await;
    }
    // PostgreSQL's own caches may grow once by some MB, at any time; what leaks grows in every pass.
    let mut passes = Vec::new();
    for _ in 0..3 {
        let before = [proc::private_bytes(session.pid()), proc::private_bytes(runtime)];
        for (sql, times) in kinds {
            repeat(&session, sql, times).await;
        }
        let after = [proc::private_bytes(session.pid()), proc::private_bytes(runtime)];
        passes.push((before, after));
        if after[0] < before[0] + (1 << 20) && after[1] < before[1] + (8 << 20) {
            break;
        }
    }
    assert!(
        passes.len() < 3,
        "session and runtime grew in every pass: {passes:?}"
    );
    assert!(proc::open_files(session.pid()) < 100);
}

/// The user mapping is that of the role whose rights count: SET ROLE and SECURITY DEFINER change it, FOR PUBLIC is for
/// the others, and each mapping has a connection of its own.
#[tokio::test]
async fn the_current_role_decides_the_user_mapping() {
    let users = "authorization { users: [ {user: a, password: pa}, {user: b, password: pb}, {user: p, password: pp} ] }";
    let stage = Stage::with(NatsServer::builder().config(users), Postgres::builder()).await;
    let session = stage.pg.connect().await;
    run(&session, "CREATE ROLE alice; CREATE ROLE bob; CREATE ROLE carol;
        GRANT USAGE ON FOREIGN SERVER nats TO alice, bob, carol; GRANT CREATE ON SCHEMA public TO bob;
        CREATE USER MAPPING FOR alice SERVER nats OPTIONS (username 'a', password 'pa');
        CREATE USER MAPPING FOR bob SERVER nats OPTIONS (username 'b', password 'pb');
        CREATE USER MAPPING FOR PUBLIC SERVER nats OPTIONS (username 'p', password 'pp');
        SET ROLE bob;
        CREATE FUNCTION as_bob() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT client_id FROM nats_get_server_info()';
        RESET ROLE").await;
    let me = "SELECT client_id FROM nats_get_server_info()";
    for (role, sql, user) in [
        ("alice", me, "a"),
        ("bob", me, "b"),
        ("carol", me, "p"),
        ("alice", "SELECT as_bob()", "b"),
        ("alice", me, "a"),
        ("postgres", me, "p"),
    ] {
        run(&session, &format!("SET ROLE {role}")).await;
        let id: i64 = value(&session, sql).await;
        let answer = stage.nats.monitor(&format!("/connz?auth=1&cid={id}")).await;
        assert_eq!(answer["connections"][0]["authorized_user"], user, "{role}: {sql}");
    }
    let users: Vec<String> = connections(&stage.nats)
        .await
        .into_iter()
        .map(|(_, user)| user)
        .collect();
    assert_eq!(users.len(), 3, "{users:?}");
    // A role loses its right in the middle of a session.
    run(&session, "SET ROLE alice").await;
    stage
        .pg
        .sql("REVOKE USAGE ON FOREIGN SERVER nats FROM alice")
        .await;
    assert_eq!(failure(&session, me).await.code, "42501");
    stage.pg.sql("GRANT USAGE ON FOREIGN SERVER nats TO alice").await;
    run(&session, me).await;
}

/// Without preloading everything works too: the first call starts the runtime, several at once start one.
#[tokio::test]
async fn everything_works_without_preloading() {
    let stage = Stage::with(NatsServer::builder(), Postgres::builder().preload(false)).await;
    let mut inbox = stage.subscribe("a").await;
    stage.respond("echo", |request| request.payload.to_vec()).await;
    assert_eq!(stage.pg.worker_pid(RUNTIME).await, None, "it starts on demand");
    let sessions: Vec<Session> = futures::future::join_all((0..8).map(|_| stage.pg.connect())).await;
    futures::future::join_all(sessions.iter().map(use_everything)).await;
    for _ in 0..2 * sessions.len() {
        inbox.next().await;
    }
    eventually_eq(SOON, 1, async || stage.pg.worker_pids(RUNTIME).await.len()).await;
    for session in &sessions {
        assert_eq!(proc::threads(session.pid()), 1);
    }
    assert_eq!(names(&stage.nats).await.len(), 1);
    let output = stage
        .pg
        .psql(&["-q", "-c", "SELECT nats_publish_text('a', 'from psql')"])
        .await;
    assert_eq!((output.status, &*output.stderr), (0, ""));
    assert_eq!(inbox.text().await, "from psql");

    // The library is loaded by this very call, in the middle of a statement and of a subtransaction.
    let fresh = stage.pg.connect().await;
    let first = "DO $$ BEGIN PERFORM nats_publish_text('a', n::text) FROM generate_series(1, 3) n;
        RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN PERFORM nats_publish_text('a', '4'); END $$";
    run(&fresh, first).await;
    for n in ["1", "2", "3", "4"] {
        assert_eq!(inbox.text().await, n);
    }
    // And it comes back when it has ended.
    let runtime = stage.pg.worker_pid(RUNTIME).await.expect("a runtime");
    proc::signal(runtime, libc::SIGTERM);
    eventually(SOON, async || !proc::alive(runtime)).await;
    eventually(SOON, async || {
        fresh.batch_execute("SELECT nats_publish_text('a', 'back')").await
    })
    .await;
    assert_eq!(inbox.text().await, "back");
}
