//! When a publish is sent, in which order, and that nothing is lost.

mod stage;
mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use stage::*;
use support::Session;

/// Numbers as text, for the payloads of a series.
fn numbers(last: usize) -> Vec<String> {
    (1..=last).map(|n| n.to_string()).collect()
}

/// A session's messages arrive in the order of its calls: within a statement, across statements, with requests between.
#[tokio::test]
async fn a_session_keeps_its_order() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("o").await, stage.pg.connect().await);
    stage.respond("echo", |request| request.payload.to_vec()).await;
    run(
        &session,
        "SELECT nats_publish_text('o', n::text) FROM generate_series(1, 5000) n",
    )
    .await;
    for n in 5001..5500 {
        run(&session, &format!("SELECT nats_publish_text('o', '{n}')")).await;
    }
    run(&session, "SELECT nats_publish_text('o', '5500'), nats_request_text('echo', ''), nats_publish_text('o', '5501')").await;
    run(&session, "SELECT nats_publish_text('o', 'end')").await;
    assert_eq!(inbox.texts_until("end").await, numbers(5501));
}

/// A request sees what its session published before it, even in the same statement: the service has that already.
#[tokio::test]
async fn a_publish_arrives_before_a_later_request() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("both").await, stage.pg.connect().await);
    let statement = "SELECT nats_publish_text('both', 'first'), nats_request_text('both', 'second')";
    let asking = session.query_one(statement, &[]);
    let serving = async {
        assert_eq!(inbox.text().await, "first");
        let request = inbox.next().await;
        assert_eq!(request.payload, "second");
        inbox.answer(&request, b"third".into()).await;
    };
    let (answer, ()) = tokio::join!(asking, serving);
    assert_eq!(answer.expect("a reply").get::<_, String>(1), "third");
}

/// Publishing is immediate: neither ROLLBACK nor an error later in the statement takes a message back.
#[tokio::test]
async fn rollback_takes_nothing_back() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("a").await, stage.pg.connect().await);
    run(
        &session,
        "BEGIN; SELECT nats_publish_text('a', 'rolled back'); ROLLBACK",
    )
    .await;
    assert_eq!(inbox.text().await, "rolled back");
    run(
        &session,
        "BEGIN; SELECT nats_publish_text('a', '1'); SAVEPOINT s; SELECT nats_publish_text('a', '2')",
    )
    .await;
    assert_eq!(
        [inbox.text().await, inbox.text().await],
        ["1", "2"],
        "sent before the transaction ends"
    );
    run(
        &session,
        "ROLLBACK TO s; SELECT nats_publish_text('a', '3'); COMMIT",
    )
    .await;
    assert_eq!(inbox.text().await, "3");

    // Volatile, or else the planner would divide before anything runs.
    run(
        &session,
        "CREATE FUNCTION zero() RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN 0; END'",
    )
    .await;
    let error = failure(&session, "SELECT nats_publish_text('a', 'b'), 1/zero()").await;
    assert_eq!(error.code, "22012");
    assert_eq!(inbox.text().await, "b");
    let caught = "DO $$ BEGIN PERFORM nats_publish_text('a', 'c'), 1/zero(); \
        EXCEPTION WHEN division_by_zero THEN PERFORM nats_publish_text('a', 'd'); END $$";
    run(&session, caught).await;
    assert_eq!([inbox.text().await, inbox.text().await], ["c", "d"]);
}

/// `SELECT nats_publish_text('a', 'b'), 1/0` fails in the planner: nothing ran, so nothing was sent.
#[tokio::test]
async fn a_statement_that_never_ran_sends_nothing() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("a").await, stage.pg.connect().await);
    let error = failure(&session, "SELECT nats_publish_text('a', 'b'), 1/0").await;
    assert_eq!((&*error.code, &*error.message), ("22012", "division by zero"));
    run(&session, "SELECT nats_publish_text('a', 'end')").await;
    assert_eq!(inbox.texts_until("end").await.len(), 0);
}

/// A publish works wherever SQL calls functions, and leaves with its statement.
#[tokio::test]
async fn every_place_that_calls_functions_publishes() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("p").await, stage.pg.connect().await);
    run(
        &session,
        "CREATE TABLE t (i int, j int DEFAULT 1);
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM nats_publish_text('p', TG_OP || ' ' || coalesce(NEW.i, OLD.i)); RETURN NULL; END $$;
        CREATE TRIGGER tell AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION tell();
        CREATE FUNCTION say(what text) RETURNS void LANGUAGE sql AS $$ SELECT nats_publish_text('p', what) $$;
        CREATE PROCEDURE act(what text) LANGUAGE plpgsql AS $$ BEGIN
            PERFORM say(what); COMMIT; PERFORM say(what || ' again'); END $$;
        PREPARE ready(text) AS SELECT nats_publish_text('p', $1)",
    )
    .await;
    for (sql, expected) in [
        ("INSERT INTO t VALUES (1), (2)", &["INSERT 1", "INSERT 2"][..]),
        ("UPDATE t SET j = 2 WHERE i = 1", &["UPDATE 1"]),
        ("DELETE FROM t WHERE i = 2", &["DELETE 2"]),
        (
            "DO $$ BEGIN PERFORM nats_publish_text('p', 'do'); END $$",
            &["do"],
        ),
        ("SELECT say('sql function')", &["sql function"]),
        ("CALL act('procedure')", &["procedure", "procedure again"]),
        ("EXECUTE ready('prepared')", &["prepared"]),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT nats_publish_text('p', 'cursor ' || i) FROM t; FETCH c; CLOSE c",
            &["cursor 1"],
        ),
        (
            "CREATE TABLE u AS SELECT i, nats_publish_text('p', 'create') IS NULL FROM t",
            &["create"],
        ),
        (
            "WITH w AS (INSERT INTO u VALUES (3, nats_publish_text('p', 'cte') IS NULL)) SELECT",
            &["cte"],
        ),
        (
            "EXPLAIN ANALYZE SELECT nats_publish_text('p', 'explain')",
            &["explain"],
        ),
        (
            "ALTER TABLE t ADD CHECK (nats_publish_text('p', 'check ' || i) IS NOT NULL) NOT VALID; INSERT INTO t VALUES (4)",
            &["check 4", "INSERT 4"],
        ),
        (
            "SELECT FROM t WHERE nats_publish_text('p', 'where') IS NULL",
            &["where"; 2][..0],
        ),
    ] {
        run(&session, sql).await;
        for expected in expected {
            assert_eq!(inbox.text().await, *expected, "{sql}");
        }
    }
    run(&session, "SELECT nats_publish_text('p', 'end')").await;
    assert_eq!(inbox.texts_until("end").await, ["where"; 2], "one for each row");
}

/// A loop that publishes and then waits has sent before it waits, in whichever form it calls the function.
///
/// The wait is for a lock that this test gives away only when the message has arrived.
#[tokio::test]
async fn a_loop_sends_before_it_waits() {
    let stage = Stage::start().await;
    let mut inbox = stage.subscribe("l").await;
    let (session, holder) = (stage.pg.connect().await, stage.pg.connect().await);
    let publish = "nats_publish_text('l', n::text)";
    let forms = [
        format!("PERFORM {publish};"),
        format!("IF {publish} IS NULL THEN RAISE 'void is not null'; END IF;"),
        format!("seen := {publish}::text;"),
        format!("seen := (SELECT {publish})::text;"),
        format!(
            "EXECUTE 'SELECT nats_publish_text(''l'', $1)' USING n::text; PERFORM {publish} WHERE false;"
        ),
        format!(
            "BEGIN IF {publish} IS NULL THEN NULL; END IF; EXCEPTION WHEN division_by_zero THEN NULL; END;"
        ),
        format!("CASE WHEN {publish} IS NULL THEN NULL; ELSE NULL; END CASE;"),
        format!("FOR seen IN SELECT {publish}::text LOOP PERFORM 1; END LOOP;"),
    ];
    for form in forms {
        let block = format!(
            "DECLARE seen text; BEGIN FOR n IN 1..2 LOOP {form} PERFORM pg_advisory_xact_lock(n); END LOOP; END"
        );
        let function =
            format!("CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $f$ {block} $f$");
        run(&session, &function).await;
        for statement in [
            format!("DO $$ {block} $$"),
            "SELECT f()".into(),
            "SELECT f() FROM generate_series(1, 1)".into(),
        ] {
            run(&holder, "SELECT pg_advisory_lock(1), pg_advisory_lock(2)").await;
            let look = async {
                for n in ["1", "2"] {
                    assert_eq!(inbox.text().await, n, "{statement}: {form}");
                    run(&holder, &format!("SELECT pg_advisory_unlock({n})")).await;
                }
            };
            tokio::join!(run(&session, &statement), look);
        }
    }
}

/// Runs a statement and counts the system calls with which its backend wrote meanwhile, the reply to the client
/// included; `None` without strace. /proc does not tell: its counter leaves out what goes to a socket by send.
async fn writes(session: &Session, sql: &str) -> Option<usize> {
    let record = support::WorkDir::new("strace");
    let file = record.path().join("calls");
    let mut strace = Command::new("strace")
        .args([
            "-e",
            "trace=write,writev,sendto,sendmsg",
            "-p",
            &session.pid().to_string(),
            "-o",
        ])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let mut said = String::new();
    let stderr = strace.stderr.take().expect("a pipe");
    BufReader::new(stderr)
        .read_line(&mut said)
        .expect("read what strace says");
    if said.contains("attached") {
        run(session, sql).await;
        support::proc::signal(strace.id().cast_signed(), libc::SIGINT);
    }
    strace.wait().expect("wait for strace");
    let calls = std::fs::read_to_string(&file).ok()?;
    said.contains("attached")
        .then(|| calls.lines().filter(|line| line.contains('(')).count())
}

/// Publishes of one statement share their writes; those of separate statements cannot, which shows that writes count.
#[tokio::test]
async fn one_statement_takes_few_writes() {
    let stage = Stage::start().await;
    let (mut inbox, session) = (stage.subscribe("c").await, stage.pg.connect().await);
    run(&session, "SELECT nats_publish_text('c', 'warm')").await;
    let loop_of_statements =
        "DO $$ BEGIN FOR n IN 1..100 LOOP PERFORM nats_publish_text('c', 'single'); END LOOP; END $$";
    let Some(singles) = writes(&session, loop_of_statements).await else {
        eprintln!("skipped: no strace, or it may not look at the backend");
        return;
    };
    assert!(
        (100..150).contains(&singles),
        "{singles} writes for 100 statements"
    );
    let one = "SELECT count(nats_publish_text('c', 'bulk')) FROM generate_series(1, 10000)";
    let bulk = writes(&session, one).await.expect("strace works");
    assert!(bulk <= 100, "{bulk} writes for 10,000 publishes of one statement");
    run(&session, "SELECT nats_publish_text('c', 'end')").await;
    assert_eq!(inbox.texts_until("end").await.len(), 1 + 100 + 10_000);
}

/// What a statement published has left the session when the statement is over, even if psql ends at once.
#[tokio::test]
async fn psql_that_publishes_and_exits_loses_nothing() {
    let stage = Stage::start().await;
    let mut inbox = stage.subscribe("q").await;
    for n in 1..=100 {
        let sql = format!("SELECT nats_publish_text('q', '{n}')");
        let output = stage.pg.psql(&["-q", "-c", &sql]).await;
        assert_eq!((output.status, &*output.stderr), (0, ""), "{sql}");
    }
    let mut arrived = Vec::new();
    for _ in 1..=100 {
        arrived.push(inbox.text().await);
    }
    arrived.sort_by_key(|text| text.parse::<u32>().ok());
    assert_eq!(arrived, numbers(100));
}

/// The same for a long last statement, and for a session that is cut off right behind it.
#[tokio::test]
async fn a_session_that_ends_leaves_nothing_behind() {
    let stage = Stage::start().await;
    let mut inbox = stage.subscribe("q").await;
    let sql = "SELECT count(nats_publish_text('q', repeat('x', 1000))) FROM generate_series(1, 5000)";
    let output = stage.pg.psql(&["-q", "-c", sql]).await;
    assert_eq!((output.status, &*output.stderr), (0, ""));
    let session = stage.pg.connect().await;
    run(&session, sql).await;
    stage
        .pg
        .sql(&format!("SELECT pg_terminate_backend({})", session.pid()))
        .await;
    for n in 1..=10_000 {
        assert_eq!(inbox.text().await.len(), 1000, "message {n}");
    }
}

/// Publishes 1 to 500 on a subject of this session's own, in statements of 1 to 61 messages.
async fn publish_series((number, session): (usize, &Session)) {
    let sql = "SELECT nats_publish_text('m.' || $1::text, n::text) FROM generate_series($2::int, $3::int) n";
    let statement = session.prepare(sql).await.expect("prepare");
    let mut first = 1;
    while first <= 500 {
        let last = (first + (first % 7) * 10).min(500);
        let published = session
            .execute(&statement, &[&number.to_string(), &first, &last])
            .await;
        published.expect("publish");
        first = last + 1;
    }
}

/// Many sessions at once, with single and bulk statements: an outside subscriber gets every message of each, in order.
#[tokio::test]
async fn sixty_four_sessions_publish_at_once() {
    const SESSIONS: usize = 64;
    const EACH: usize = 500;
    let stage = Stage::start().await;
    let mut inbox = stage.subscribe("m.*").await;
    let sessions: Vec<Session> = futures::future::join_all((0..SESSIONS).map(|_| stage.pg.connect())).await;
    let publishing = futures::future::join_all(sessions.iter().enumerate().map(publish_series));
    let counting = async {
        let mut seen = vec![0; SESSIONS];
        for _ in 0..SESSIONS * EACH {
            let message = inbox.next().await;
            let (_, number) = message.subject.split_once('.').expect("m.number");
            let last = &mut seen[number.parse::<usize>().expect("a number")];
            *last += 1;
            assert_eq!(message.payload, last.to_string(), "the order of session {number}");
        }
        seen
    };
    let (_, seen) = tokio::join!(publishing, counting);
    assert_eq!(seen, [EACH; SESSIONS]);
}
