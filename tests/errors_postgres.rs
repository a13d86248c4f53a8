//! Errors of PostgreSQL itself pass the library's hooks unchanged.

mod stage;
mod support;

use stage::*;
use support::{Postgres, Session};
use tokio_postgres::error::DbError;

const SCHEMA: &str = "
    CREATE DOMAIN small AS int CONSTRAINT is_small CHECK (VALUE < 10);
    CREATE TABLE parent (id int CONSTRAINT parent_key PRIMARY KEY, n int NOT NULL CONSTRAINT positive CHECK (n > 0), s small);
    CREATE TABLE child (id int CONSTRAINT to_parent REFERENCES parent);
    INSERT INTO parent VALUES (1, 1);
    CREATE FUNCTION divide(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1 / n; END $$;
    CREATE FUNCTION deep(n int) RETURNS int LANGUAGE sql VOLATILE AS $$ SELECT divide(n) FROM generate_series(1, 2) $$;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM divide(0); RETURN NULL; END $$;
    CREATE TRIGGER refuse AFTER UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION refuse();
    CREATE CONSTRAINT TRIGGER later AFTER INSERT ON child DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse()";

const FAILING: [&str; 20] = [
    "SELECT 1/0",
    "SELECT 1/(n - 3) FROM generate_series(1, 5) n",
    "INSERT INTO parent VALUES (1, 2)",
    "INSERT INTO parent VALUES (2, NULL)",
    "INSERT INTO parent VALUES (2, -1)",
    "INSERT INTO parent VALUES (2, 1, 11)",
    "INSERT INTO child VALUES (7)",
    "UPDATE parent SET n = 2",
    "INSERT INTO child VALUES (1)",
    "SELECT 1 FROMM parent",
    "SELECT nn FROM parent",
    "SELECT nats_publish_txt('a', 'b')",
    "SELECT deep(0)",
    "DO $$ BEGIN EXECUTE 'SELECT 1 FROMM parent'; END $$",
    "DO $$ BEGIN PERFORM divide(0); EXCEPTION WHEN division_by_zero THEN PERFORM 1 / (SELECT 0 FROM parent); END $$",
    "DO $$ BEGIN RAISE 'mine' USING ERRCODE = 'ZZ001', DETAIL = 'd', HINT = 'h', SCHEMA = 's', TABLE = 't', COLUMN = 'c', CONSTRAINT = 'k', DATATYPE = 'y'; END $$",
    "BEGIN; DECLARE c CURSOR FOR SELECT 1/(n - 3) FROM generate_series(1, 5) n; FETCH 2 FROM c; FETCH 2 FROM c",
    "SET statement_timeout = 50; SELECT pg_sleep(60)",
    "COPY parent FROM PROGRAM 'echo 5,x' CSV",
    "SELECT 'x'::int FROM parent; SELECT 1",
];

/// The errors of these statements with all their fields, source positions included.
async fn errors(session: &Session) -> Vec<DbError> {
    run(session, SCHEMA).await;
    let mut errors = Vec::new();
    for sql in FAILING {
        let error = session.batch_execute(sql).await.expect_err(sql);
        errors.push(
            error
                .as_db_error()
                .unwrap_or_else(|| panic!("{sql}: {error:?}"))
                .clone(),
        );
        run(session, "ROLLBACK; RESET ALL; SELECT 1").await;
    }
    errors
}

/// Every error has the same fields as on a server that does not know the library: before its first use in a session,
/// and after, in a session that publishes all along.
#[tokio::test]
async fn errors_of_postgresql_arrive_unchanged() {
    let plain = Postgres::builder().preload(false).start().await;
    let expected = errors(&plain.connect().await).await;
    let unique = &expected[2];
    assert_eq!(
        (
            unique.code().code(),
            unique.schema(),
            unique.table(),
            unique.constraint()
        ),
        ("23505", Some("public"), Some("parent"), Some("parent_key"))
    );
    assert!(expected[9].position().is_some() && expected[12].where_().is_some());

    let stage = Stage::start().await;
    let unused = errors(&stage.pg.connect().await).await;
    for ((sql, expected), seen) in FAILING.iter().zip(&expected).zip(&unused) {
        assert_eq!(seen, expected, "{sql}");
    }
    run(&stage.pg.connect().await, "CREATE DATABASE used").await;
    let session = stage.pg.connect_as("postgres", "used").await;
    run(&session, "CREATE EXTENSION litmus_pgnats").await;
    create_server(&session, "nats", stage.nats.port(), "").await;
    run(&session, "SELECT nats_publish_text('a', 'b')").await;
    for ((sql, expected), seen) in FAILING.iter().zip(&expected).zip(&errors(&session).await) {
        assert_eq!(seen, expected, "{sql}");
    }
}

/// An error beside a publish in one statement is PostgreSQL's own too, and takes the message not back.
#[tokio::test]
async fn an_error_beside_a_publish_arrives_unchanged() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("a").await, stage.pg.connect().await);
    run(&session, SCHEMA).await;
    let insert = "INSERT INTO parent SELECT 1, 1 WHERE nats_publish_text('a', 'sent') IS NOT NULL";
    let error = session.batch_execute(insert).await.expect_err("a duplicate");
    let error = error.as_db_error().expect("an error of the server");
    assert_eq!(
        (error.code().code(), error.constraint()),
        ("23505", Some("parent_key"))
    );
    assert!(
        error.detail().is_some_and(|detail| detail.contains("(id)=(1)")),
        "{error:?}"
    );
    assert_eq!(inbox.text().await, "sent");
}

/// An error of this library inside functions has PostgreSQL's context, and does not disturb what encloses it.
#[tokio::test]
async fn an_error_of_the_library_has_its_context() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "CREATE FUNCTION send(s text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        PERFORM nats_publish_text(s, 'x'); END $$",
    )
    .await;
    let error = session
        .batch_execute("SELECT send('')")
        .await
        .expect_err("an empty subject");
    let error = error.as_db_error().expect("an error of the server");
    let context = error.where_().expect("a context");
    assert!(
        context.contains("function send(text) line 2 at PERFORM"),
        "{context}"
    );
    run(&session, "CREATE TABLE t (i int)").await;
    run(&session, "BEGIN; INSERT INTO t VALUES (1); SAVEPOINT s").await;
    failure(&session, "SELECT send('')").await;
    run(&session, "ROLLBACK TO s; INSERT INTO t VALUES (2); COMMIT").await;
    assert_eq!(value::<i64>(&session, "SELECT count(*) FROM t").await, 2);
}
