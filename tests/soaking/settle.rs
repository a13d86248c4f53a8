//! After the faults: everything comes to rest, or is a finding.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use super::board::Board;
use super::world::World;
use crate::handlers::{number, texts};
use crate::scene::*;
use crate::support::*;

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Waits until the probe is `Ok`; a finding when that takes too long.
pub async fn holds<E: Debug>(board: &Board, what: &str, mut probe: impl AsyncFnMut() -> Result<(), E>) {
    let began = Instant::now();
    loop {
        let seen = match probe().await {
            Ok(()) => break println!("{what}: after {:.1?}", began.elapsed()),
            Err(seen) => seen,
        };
        if began.elapsed() > LIMIT {
            return board.finding(format!("{what}: not in {LIMIT:?}; last seen: {seen:?}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Handlers are live, nothing waits, and what was committed is applied.
pub async fn settle(world: &World, board: &Board) {
    let (source, sink) = (world.admin("postgres").await, world.admin("sink").await);
    take_away_own(&source).await;
    for (session, database) in [(&source, "postgres"), (&sink, "sink")] {
        holds(board, &format!("handlers of {database} are live"), async || {
            let sql = "SELECT concat_ws(' ', kind, subject, function, state, problem) FROM litmus_pgnats.handlers \
                       WHERE state <> 'live'";
            none(look(session, sql).await)
        })
        .await;
        holds(board, &format!("queues of {database} are empty"), async || {
            let sql = "SELECT concat_ws(' ', kind, subject, function, queued) FROM litmus_pgnats.handlers \
                       WHERE queued > 0";
            none(look(session, sql).await)
        })
        .await;
        holds(board, &format!("the outbox of {database} is empty"), async || {
            none(look(session, "SELECT id::text FROM litmus_pgnats.outbox LIMIT 3").await)
        })
        .await;
    }
    holds(board, "what was committed is applied", async || {
        let sent = number(&source, "SELECT count(*) FROM sent").await;
        let moved = number(&sink, "SELECT count(*) FROM moved").await;
        if moved >= 2 * sent {
            Ok(())
        } else {
            Err((sent, moved))
        }
    })
    .await;
}

/// Takes the handlers away that sessions were about to take away.
async fn take_away_own(source: &Session) {
    run(
        source,
        "SELECT nats_unsubscribe(subject, function::regprocedure) FROM litmus_pgnats.subscriptions
           WHERE subject LIKE 'own.%';
         SELECT litmus_pgnats_unregister_responder(subject) FROM litmus_pgnats.responders WHERE subject LIKE 'own.%';
         SELECT nats_unsubscribe_stream(stream, function::regprocedure) FROM litmus_pgnats.stream_subscriptions",
    )
    .await;
}

/// A look that may fail: the runtime worker has just been started.
async fn look(session: &Session, sql: &str) -> Vec<String> {
    match session.query(sql, &[]).await {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => vec![format!("{error:?}")],
    }
}

fn none(seen: Vec<String>) -> Result<(), Vec<String>> {
    if seen.is_empty() { Ok(()) } else { Err(seen) }
}

/// The whole way works, and the views count: so many messages are so many rows and so many in `messages`.
pub async fn exam(world: &World, board: &Board, round: usize) {
    const MESSAGES: i64 = 200;
    let source = world.admin("postgres").await;
    let counted = "SELECT concat_ws(' ', function, messages, errors) FROM litmus_pgnats.subscriptions \
                   WHERE subject = 'core.>' ORDER BY function";
    let before = texts(&source, counted).await;
    run(
        &source,
        &format!(
            "SELECT count(nats_publish_text('core.0', 'exam{round}-' || n)) FROM generate_series(1, {MESSAGES}) n"
        ),
    )
    .await;
    for way in ["one", "again", "many"] {
        holds(
            board,
            &format!("messages of the exam are heard by {way}"),
            async || {
                let sql =
                    format!("SELECT count(*) FROM heard WHERE way = '{way}' AND id LIKE 'exam{round}-%'");
                let heard = number(&source, &sql).await;
                if heard == MESSAGES { Ok(()) } else { Err(heard) }
            },
        )
        .await;
    }
    let expected: Vec<String> = before
        .iter()
        .map(|line| {
            let (rest, errors) = line.rsplit_once(' ').expect("three words");
            let (function, messages) = rest.rsplit_once(' ').expect("three words");
            let messages: i64 = messages.parse().expect("a number");
            format!("{function} {} {errors}", messages + MESSAGES)
        })
        .collect();
    holds(
        board,
        "the views have counted the messages of the exam",
        async || {
            let seen = texts(&source, counted).await;
            if seen == expected {
                Ok(())
            } else {
                Err((seen, expected.clone()))
            }
        },
    )
    .await;
    holds(board, "a request is answered", async || {
        let answer = source
            .query_one("SELECT nats_request_text('rpc.echo', 'exam')", &[])
            .await;
        match answer {
            Ok(row) if row.get::<_, &str>(0) == "exam" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
