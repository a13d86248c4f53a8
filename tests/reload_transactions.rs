//! A reload in a transaction that changes options: it belongs to the transaction.

mod foreign_server;
mod support;

use foreign_server::*;
use support::{NatsServer, Postgres, Session, eventually};

async fn port(session: &Session) -> i32 {
    let row = session
        .query_one("SELECT port FROM nats_get_server_info()", &[])
        .await;
    row.unwrap_or_else(|e| panic!("nats_get_server_info: {e:?}"))
        .get(0)
}

/// Two NATS servers, and a session on the first.
struct Scene {
    pg: Postgres,
    session: Session,
    one: NatsServer,
    other: NatsServer,
}

impl Scene {
    async fn new() -> Self {
        let pg = Postgres::builder()
            .conf("max_prepared_transactions", "2")
            .start()
            .await;
        let (pg, session) = with_extension(pg).await;
        let (one, other) = (NatsServer::start().await, NatsServer::start().await);
        create_for(&session, one.port(), &[]).await;
        message_arrives(&session, &one).await;
        Self {
            pg,
            session,
            one,
            other,
        }
    }

    fn move_to_other(&self) -> String {
        alter(&[("SET port", &self.other.port().to_string())])
    }

    async fn is_on(&self, nats: &NatsServer) -> bool {
        port(&self.session).await == i32::from(nats.port())
    }
}

// Options that never came to be must not be applied.
#[tokio::test]
async fn a_rollback_takes_the_reload_back() {
    let scene = Scene::new().await;
    let session = &scene.session;
    let id = client_id(session).await;
    for reload in [RELOAD, FORCE] {
        run(session, "BEGIN").await;
        run(session, &scene.move_to_other()).await;
        run(session, reload).await;
        // What the transaction did it sees itself; the others do not.
        assert!(scene.is_on(&scene.other).await);
        let witness = scene.pg.connect().await;
        assert_eq!(port(&witness).await, i32::from(scene.one.port()));
        run(session, "ROLLBACK").await;
        assert!(scene.is_on(&scene.one).await);
        // Nor may a later transaction bring it back.
        run(session, "CREATE TABLE t (); DROP TABLE t").await;
        assert_eq!(client_id(session).await, id);
    }
    // The same when the transaction fails.
    let sql = format!("BEGIN; {}; {RELOAD}; SELECT 1/0", scene.move_to_other());
    assert_eq!(refused(session, &sql).await.code, "22012");
    run(session, "ROLLBACK").await;
    assert_eq!(client_id(session).await, id);
}

// At commit the options stand, and the reload happens, for other sessions too.
#[tokio::test]
async fn a_commit_applies_the_reload() {
    let scene = Scene::new().await;
    let witness = scene.pg.connect().await;
    run(&scene.session, "BEGIN").await;
    run(&scene.session, &scene.move_to_other()).await;
    run(&scene.session, RELOAD).await;
    assert_eq!(port(&witness).await, i32::from(scene.one.port()));
    run(&scene.session, "COMMIT").await;
    // The session's next call finds it done.
    assert!(scene.is_on(&scene.other).await);
    assert_eq!(port(&witness).await, i32::from(scene.other.port()));
    message_arrives(&scene.session, &scene.other).await;
}

// psql -c with several statements is one transaction; so it is what scripts do.
#[tokio::test]
async fn several_statements_at_once_are_a_transaction() {
    let scene = Scene::new().await;
    scene
        .pg
        .sql(&format!("{}; {RELOAD}", scene.move_to_other()))
        .await;
    eventually(SOON, async || scene.is_on(&scene.other).await).await;
}

// What a savepoint takes back is not applied either.
#[tokio::test]
async fn a_rolled_back_savepoint_changes_nothing() {
    let scene = Scene::new().await;
    let session = &scene.session;
    let id = client_id(session).await;
    let sql = format!(
        "BEGIN; SAVEPOINT s; {}; {RELOAD}; ROLLBACK TO s; COMMIT",
        scene.move_to_other()
    );
    run(session, &sql).await;
    assert_eq!(client_id(session).await, id);
    run(session, RELOAD).await;
    assert_eq!(client_id(session).await, id);
}

// Nobody is there to see a reload fail after the commit; the server log has to tell.
#[tokio::test]
async fn a_failure_after_the_commit_is_logged() {
    let scene = Scene::new().await;
    let session = &scene.session;
    let closed = support::Port::take();
    let id = client_id(session).await;
    let change = alter(&[("SET port", &closed.number().to_string())]);
    let mark = scene.pg.log().len();
    run(session, &format!("BEGIN; {change}; {RELOAD}; COMMIT")).await;
    let failure = format!("could not connect to NATS server 127.0.0.1:{}", closed.number());
    scene.pg.wait_log_after(mark, &failure, SOON).await;
    assert_eq!(client_id(session).await, id);
    message_arrives(session, &scene.one).await;
}

// Options that cannot make a connection fail the COMMIT that would bring them into use.
#[tokio::test]
async fn half_a_credential_fails_the_commit() {
    let scene = Scene::new().await;
    let session = &scene.session;
    run(session, "BEGIN").await;
    run(session, &alter(&[("ADD username", "u")])).await;
    run(session, RELOAD).await;
    assert_eq!(refused(session, "COMMIT").await.code, code::INCOMPLETE);
    message_arrives(session, &scene.one).await;
    let stored = "SELECT count(*) FROM pg_foreign_server WHERE srvoptions::text LIKE '%username%'";
    let row = session.query_one(stored, &[]).await.expect("look for the option");
    assert_eq!(row.get::<_, i64>(0), 0);
}

// Another session may commit a prepared transaction, and would know nothing of the reload.
#[tokio::test]
async fn prepare_transaction_is_refused_after_a_reload() {
    let scene = Scene::new().await;
    let session = &scene.session;
    run(session, "BEGIN").await;
    run(session, &scene.move_to_other()).await;
    run(session, RELOAD).await;
    let report = refused(session, "PREPARE TRANSACTION 'two phases'").await;
    assert_eq!(report.code, code::UNSUPPORTED, "{report:?}");
    assert!(report.message.contains("litmus_pgnats_reload_conf"), "{report:?}");
    run(session, "ROLLBACK").await;
    assert!(scene.is_on(&scene.one).await);
    // Without a reload two phases are nobody's business.
    run(
        session,
        &format!("BEGIN; {}; PREPARE TRANSACTION 'fine'", scene.move_to_other()),
    )
    .await;
    run(session, "COMMIT PREPARED 'fine'").await;
    assert!(scene.is_on(&scene.one).await);
    run(session, RELOAD).await;
    assert!(scene.is_on(&scene.other).await);
}
