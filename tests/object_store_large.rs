//! Large objects stream: the runtime's memory stays small, others are not held up, and a cancel leaves nothing behind.

mod stage;
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use stage::*;
use support::{Session, proc};

const MIB: u64 = 1 << 20;
/// The bytes of 256 MiB in SQL: a part that no two chunks begin alike, again and again.
const CONTENT: &str = "CREATE TABLE f (content bytea); ALTER TABLE f ALTER content SET STORAGE EXTERNAL;
    INSERT INTO f SELECT decode(repeat(string_agg(md5(n::text), ''), 2048), 'hex') FROM generate_series(1, 8192) n;";

async fn count(stage: &Stage) -> u64 {
    let context = jetstream::new(stage.nats.client().await);
    match context.get_stream("OBJ_s").await {
        Ok(stream) => stream.get_info().await.expect("its state").state.messages,
        Err(_) => 0,
    }
}

/// Runs a statement of one session, and meanwhile calls of another. The largest size of the runtime in bytes, how long
/// the statement took, and the slowest of the calls.
async fn watch(runtime: i32, session: &Session, sql: &str, other: &Session) -> (u64, Duration, Duration) {
    let (done, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let statement = async {
        let begun = Instant::now();
        run(session, sql).await;
        done.store(true, Ordering::Relaxed);
        begun.elapsed()
    };
    let calls = async {
        let mut slowest = Duration::ZERO;
        while !done.load(Ordering::Relaxed) {
            let begun = Instant::now();
            run(
                other,
                "SELECT nats_put_text('b', 'k', 'x'), nats_get_text('b', 'k'), nats_publish_text('s', '')",
            )
            .await;
            slowest = slowest.max(begun.elapsed());
            peak.fetch_max(proc::rss(runtime), Ordering::Relaxed);
        }
        slowest
    };
    let (took, slowest) = tokio::join!(statement, calls);
    (peak.into_inner(), took, slowest)
}

/// 256 MiB go up and come down byte for byte, while the runtime worker stays within 64 MiB of its idle size and answers
/// others.
#[tokio::test]
async fn a_large_object_streams() {
    let stage = Stage::jetstream().await;
    let (session, other) = (stage.pg.connect().await, stage.pg.connect().await);
    run(&session, CONTENT).await;
    run(&session, "SELECT nats_put_file('s', 'small', 'x')").await;
    run(&other, "SELECT nats_put_text('b', 'k', 'x')").await;
    let runtime = stage
        .pg
        .worker_pid("litmus_pgnats runtime")
        .await
        .expect("a runtime");
    let idle = proc::rss(runtime);
    let put = "SELECT nats_put_file('s', 'large', content) FROM f";
    let get = "CREATE TABLE g AS SELECT nats_get_file('s', 'large') AS content";
    for (what, sql) in [("put", put), ("get", get)] {
        let (peak, took, slowest) = watch(runtime, &session, sql, &other).await;
        let grown = peak.saturating_sub(idle);
        println!(
            "{what}: {took:?}, runtime {} MiB + {} MiB, slowest call of others {slowest:?}",
            idle / MIB,
            grown / MIB
        );
        assert!(
            grown < 64 * MIB,
            "{what}: the runtime grew by {} MiB",
            grown / MIB
        );
        assert!(
            slowest < Duration::from_secs(2),
            "{what}: a call of another session took {slowest:?}"
        );
    }
    let same = "SELECT length(g.content) = 268435456 AND sha256(g.content) = sha256(f.content)
        AND 'SHA-256=' || translate(encode(sha256(f.content), 'base64'), '+/', '-_') = digest
        FROM f, g, nats_get_file_info('s', 'large')";
    assert!(value::<bool>(&session, same).await);
}

/// Waits until a transfer is on its way: `moved` bytes have passed the NATS server in this direction.
async fn until_moved(stage: &Stage, direction: &str, moved: u64) {
    let bytes = async || {
        stage.nats.monitor("/varz").await[direction]
            .as_u64()
            .expect("a number")
    };
    let begun = bytes().await;
    support::eventually(SOON, async || bytes().await > begun + moved).await;
}

/// A put that is cancelled midway leaves the old object in place and no chunk of the new, and the session goes on.
#[tokio::test]
async fn a_cancelled_put_leaves_nothing() {
    let stage = Stage::jetstream().await;
    let (session, other) = (stage.pg.connect().await, stage.pg.connect().await);
    run(&session, CONTENT).await;
    run(&session, "SELECT nats_put_file('s', 'n', 'old')").await;
    let put = "SELECT nats_put_file('s', 'n', content) FROM f";
    for _ in 0..3 {
        let cancel = async {
            until_moved(&stage, "in_bytes", 20 * MIB).await;
            run(&other, &format!("SELECT pg_cancel_backend({})", session.pid())).await;
        };
        let (error, ()) = tokio::join!(failure(&session, put), cancel);
        assert_eq!(error.code, "57014", "{error:?}");
        assert_eq!(
            value::<String>(&session, "SELECT convert_from(nats_get_file('s', 'n'), 'utf8')").await,
            "old"
        );
        support::eventually_eq(SOON, 2, async || count(&stage).await).await;
    }
    run(&session, "SET statement_timeout = '300ms'").await;
    assert_eq!(failure(&session, put).await.code, "57014");
    run(&session, "RESET statement_timeout").await;
    support::eventually_eq(SOON, 2, async || count(&stage).await).await;
    let cut_off = async {
        until_moved(&stage, "in_bytes", 20 * MIB).await;
        run(&other, &format!("SELECT pg_terminate_backend({})", session.pid())).await;
    };
    let (ended, ()) = tokio::join!(session.batch_execute(put), cut_off);
    ended.expect_err("the session was terminated");
    support::eventually_eq(SOON, 2, async || count(&stage).await).await;
    let names: Vec<String> = value(&other, "SELECT array_agg(name) FROM nats_get_file_list('s')").await;
    assert_eq!(names, ["n"]);
}

/// A get that is cancelled midway ends the transfer, and the session goes on.
#[tokio::test]
async fn a_cancelled_get_ends_the_transfer() {
    let stage = Stage::jetstream().await;
    let (session, other) = (stage.pg.connect().await, stage.pg.connect().await);
    run(&session, CONTENT).await;
    run(
        &session,
        "SELECT nats_put_file('s', 'n', content), nats_put_file('s', 'small', 'x') FROM f",
    )
    .await;
    let get = "SELECT length(nats_get_file('s', 'n'))";
    let small = "SELECT nats_get_file('s', 'small')";
    let sent = async || {
        stage.nats.monitor("/varz").await["out_bytes"]
            .as_u64()
            .expect("a number")
    };
    let begun = sent().await;
    let cancel = async {
        until_moved(&stage, "out_bytes", 20 * MIB).await;
        run(&other, &format!("SELECT pg_cancel_backend({})", session.pid())).await;
    };
    let (error, ()) = tokio::join!(failure(&session, get), cancel);
    assert_eq!(error.code, "57014", "{error:?}");
    assert_eq!(value::<Vec<u8>>(&session, small).await, b"x");
    assert!(sent().await - begun < 200 * MIB, "the rest is not sent");
    run(&session, "SET statement_timeout = '150ms'").await;
    assert_eq!(failure(&session, get).await.code, "57014");
    run(&session, "RESET statement_timeout").await;
    assert_eq!(value::<i32>(&session, get).await, 268_435_456);
}

/// The chunks of an object stay in order while other sessions fill what is to be sent.
#[tokio::test]
async fn chunks_stay_in_order_among_others() {
    let stage = Stage::jetstream().await;
    let session = stage.pg.connect().await;
    run(
        &session,
        "CREATE TABLE o AS SELECT decode(string_agg(md5(n::text), ''), 'hex') AS content FROM generate_series(1, 200000) n",
    )
    .await;
    let end = std::sync::Arc::new(AtomicBool::new(false));
    let mut others = Vec::new();
    for _ in 0..4 {
        let (other, end) = (stage.pg.connect().await, end.clone());
        others.push(tokio::spawn(async move {
            while !end.load(Ordering::Relaxed) {
                run(
                    &other,
                    "SELECT count(nats_publish_text('load', repeat('x', 60000))) FROM generate_series(1, 50)",
                )
                .await;
            }
        }));
    }
    for _ in 0..30 {
        run(&session, "SELECT nats_put_file('s', 'o', content) FROM o").await;
        run(
            &session,
            "DO $$ BEGIN ASSERT (SELECT nats_get_file('s', 'o') = content FROM o); END $$",
        )
        .await;
    }
    end.store(true, Ordering::Relaxed);
    for other in others {
        other.await.expect("messages");
    }
}
