//! Whether every count agrees: what the sessions know of against what NATS and the tables have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use async_nats::jetstream::{self, consumer};
use futures::StreamExt;

use super::board::Board;
use super::caller::Caller;
use super::world::World;
use crate::handlers::{number, texts};
use crate::outgoing::DEAD;

pub async fn check(world: &World, board: &Board, callers: &mut [Caller]) {
    outbox(world, board, callers).await;
    heard(world, board, callers).await;
    stored(world, board, callers).await;
    for caller in callers {
        let keys: Vec<String> = caller.ledger.keys.keys().cloned().collect();
        for key in keys {
            if let Err(failure) = caller.check_entry(&key).await {
                board.finding(format!("{key} cannot be read: {failure:?}"));
            }
        }
        let files: Vec<String> = caller.ledger.files.keys().cloned().collect();
        for file in files {
            if let Err(failure) = caller.check_file(&file).await {
                board.finding(format!("file {file} cannot be read: {failure:?}"));
            }
        }
    }
}

/// What was committed with its row was applied by each durable subscription once, and nothing else was.
async fn outbox(world: &World, board: &Board, callers: &[Caller]) {
    let (source, sink) = (world.admin("postgres").await, world.admin("sink").await);
    let sent: HashSet<String> = texts(&source, "SELECT id FROM sent").await.into_iter().collect();
    let confirmed = callers.iter().flat_map(|caller| &caller.ledger.committed);
    let lost: Vec<&String> = confirmed.clone().filter(|id| !sent.contains(*id)).collect();
    if !lost.is_empty() {
        board.finding(format!("committed, and not there: {}", some(&lost)));
    }
    println!(
        "outbox: {} rows were sent, {} confirmed",
        sent.len(),
        confirmed.count()
    );
    for way in ["one", "many"] {
        let moved = texts(&sink, &format!("SELECT id FROM moved WHERE way = '{way}'")).await;
        println!("durable subscription {way}: {} rows", moved.len());
        twice(board, &format!("applied by {way}"), &moved);
        let moved: HashSet<String> = moved.into_iter().collect();
        let lost: Vec<&String> = sent.difference(&moved).collect();
        let invented: Vec<&String> = moved.difference(&sent).collect();
        if !lost.is_empty() || !invented.is_empty() {
            board.finding(format!(
                "{way}: lost {}; applied, but not committed: {}",
                some(&lost),
                some(&invented)
            ));
        }
    }
    for (session, database) in [(&source, "postgres"), (&sink, "sink")] {
        let dead = number(session, DEAD).await;
        if dead != 0 {
            let sql = "SELECT concat_ws(' ', source, subject, error) FROM litmus_pgnats.dead_letters LIMIT 3";
            let examples = texts(session, sql).await;
            board.finding(format!("{dead} dead letters in {database}: {examples:?}"));
        }
    }
}

/// Core messages: each subscription has executed no more than was sent, none twice, and none that was rolled back.
async fn heard(world: &World, board: &Board, callers: &[Caller]) {
    let source = world.admin("postgres").await;
    for way in ["one", "again", "many"] {
        let heard = texts(&source, &format!("SELECT id FROM heard WHERE way = '{way}'")).await;
        println!("subscription {way}: {} rows", heard.len());
        twice(board, &format!("heard by {way}"), &heard);
        let invented: Vec<&String> = heard.iter().filter(|id| !was_sent(id, callers)).collect();
        if !invented.is_empty() {
            board.finding(format!("{way} heard what was never sent: {}", some(&invented)));
        }
    }
}

fn was_sent(id: &str, callers: &[Caller]) -> bool {
    if id.starts_with("exam") {
        return true;
    }
    let numbers = id
        .split_once('-')
        .and_then(|(who, n)| Some((who.parse::<usize>().ok()?, n.parse::<u64>().ok()?)));
    numbers.is_some_and(|(who, n)| callers.get(who).is_some_and(|caller| n <= caller.ledger.count))
}

/// Each publish that returned a sequence is in the stream, with that sequence.
async fn stored(world: &World, board: &Board, callers: &[Caller]) {
    let context = jetstream::new(world.client().await);
    let mut stream = context.get_stream("facts").await.expect("the stream facts");
    let state = stream.info().await.expect("the state of a stream").state.clone();
    let config = consumer::pull::OrderedConfig::default();
    let consumer = stream.create_consumer(config).await.expect("create a consumer");
    let mut messages = consumer.messages().await.expect("read a stream");
    let mut stored = HashMap::new();
    while (stored.len() as u64) < state.messages {
        let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(30), messages.next()).await
        else {
            board.finding(format!(
                "read {} of {} of the stream",
                stored.len(),
                state.messages
            ));
            break;
        };
        let sequence = message
            .info()
            .expect("what JetStream says of a message")
            .stream_sequence;
        let payload = String::from_utf8_lossy(&message.payload)
            .trim_matches('"')
            .to_owned();
        stored.insert(sequence, payload);
    }
    let confirmed = callers.iter().flat_map(|caller| &caller.ledger.stored);
    println!(
        "stream: {} messages, {} confirmed",
        stored.len(),
        confirmed.clone().count()
    );
    let lost: Vec<_> = confirmed
        .filter(|(sequence, word)| stored.get(sequence) != Some(word))
        .collect();
    if !lost.is_empty() {
        board.finding(format!("stored with a sequence, and not there: {}", some(&lost)));
    }
}

fn twice(board: &Board, what: &str, ids: &[String]) {
    let mut counts = BTreeMap::new();
    for id in ids {
        *counts.entry(id).or_insert(0) += 1;
    }
    let twice: BTreeSet<_> = counts.into_iter().filter(|(_, count)| *count > 1).collect();
    if !twice.is_empty() {
        let twice: Vec<_> = twice.into_iter().collect();
        board.finding(format!("{what} more than once: {}", some(&twice)));
    }
}

/// How many, and the first of them.
fn some<T: std::fmt::Debug>(all: &[T]) -> String {
    format!("{} {:?}", all.len(), &all[..all.len().min(5)])
}
