//! The SQL statements of an outbox relay, for the settings that `outbox_relay.rs` makes. Runs in outbox relays, on the
//! main thread, in a transaction.

use std::collections::HashSet;

use super::known_commits::{Commit, ReadMessages};
use super::{dead_letter, sources};
use crate::channel::outbox::{DeliveryOutcome, OutboxMessage, Partition};
use crate::channel::target::Source;
use crate::error::{Error, Kind, Result};
use crate::nats::headers;
use crate::pg::query::Argument::{Int8, Oid, Text};
use crate::pg::query::{Fields, prepared, prepared_each};
use crate::pg::{foreign_servers, rights};
use crate::row::Row;
use crate::sql::own_tables::OwnTables;

/// Most messages of a batch.
const BATCH: i64 = 4000;
/// Most commits whose messages one query reads.
const COMMITS: usize = 4000;
/// Most bytes of payloads in a batch, unless the first message alone has more.
const BATCH_SIZE: i64 = 4 * 1024 * 1024;
/// Most bytes of a batch with headers and subjects, for which a frame must have room.
const FULL_SIZE: usize = 16 * 1024 * 1024;
/// Most commits that are read at a time.
const DISCOVER: i64 = 20_000;

/// All transactions with ids below this one have ended.
pub fn ended() -> u64 {
    let rows = prepared("SELECT pg_snapshot_xmin(pg_current_snapshot())", &[]);
    let ended = rows.into_iter().flatten().flatten().next();
    // With 0, no missing number is given up.
    ended.and_then(|ended| ended.parse().ok()).unwrap_or(0)
}

/// Object id of the table of commits, and the last number that was taken. Both may change: the extension may be dropped
/// and created again.
pub fn numbering() -> (u32, i64) {
    let rows = prepared(
        "SELECT to_regclass('litmus_pgnats.outbox_batch')::oid, last_value FROM litmus_pgnats.outbox_number",
        &[],
    );
    let mut row = rows.into_iter().flatten().flatten();
    let table = row.next().and_then(|table| table.parse().ok()).unwrap_or(0);
    (table, row.next().and_then(|last| last.parse().ok()).unwrap_or(0))
}

/// The first commits above the number `seen`, and those with missing numbers; and whether there may be more.
pub fn commits(seen: i64, missing: &[i64]) -> (Vec<(Partition, Commit)>, bool) {
    let mut rows = prepared(
        "SELECT number, batch, server, role::oid FROM litmus_pgnats.outbox_batch WHERE number > $1 ORDER BY number LIMIT $2",
        &[Int8(seen), Int8(DISCOVER)],
    );
    let are_more = i64::try_from(rows.len()).is_ok_and(|count| count >= DISCOVER);
    if !missing.is_empty() {
        rows.extend(prepared(
            "SELECT number, batch, server, role::oid FROM litmus_pgnats.outbox_batch WHERE number = ANY($1::bigint[])",
            &[Text(&array(missing.iter()))],
        ));
    }
    (rows.into_iter().filter_map(commit).collect(), are_more)
}

/// The first commits of a partition above a number; and whether these are all.
pub fn commits_of(partition: &Partition, above: i64) -> (Vec<Commit>, bool) {
    let rows = prepared(
        "SELECT number, batch, server, role::oid FROM litmus_pgnats.outbox_batch \
         WHERE number > $1 AND server = $2 AND role = $3 ORDER BY number LIMIT $4",
        &[
            Int8(above),
            Text(&partition.server),
            Oid(partition.role),
            Int8(DISCOVER),
        ],
    );
    let are_all = i64::try_from(rows.len()).is_ok_and(|count| count < DISCOVER);
    let commits = rows.into_iter().filter_map(commit);
    (commits.map(|(_, commit)| commit).collect(), are_all)
}

/// A row of the table of commits.
fn commit(row: Row) -> Option<(Partition, Commit)> {
    let [Some(number), Some(batch), Some(server), Some(role)] = <[Option<String>; 4]>::try_from(row).ok()?
    else {
        return None;
    };
    let commit = Commit {
        number: number.parse().ok()?,
        batch: batch.parse().ok()?,
        after: 0,
    };
    let role = role.parse().ok()?;
    Some((Partition { server, role }, commit))
}

/// The next messages of these commits and their payloads, as many as a batch may have. Of each commit, the messages
/// after the id that comes with it are read, except those of held subjects.
pub fn messages(
    own: &OwnTables,
    partition: &Partition,
    mut commits: impl Iterator<Item = (Commit, i64)>,
    held: &[String],
) -> (ReadMessages, Vec<OutboxMessage>, Vec<u8>) {
    let held_json = serde_json::Value::from(held).to_string();
    let (mut read, mut messages, mut body) = (ReadMessages::default(), Vec::new(), Vec::new());
    read.held = held.to_vec();
    loop {
        let (some, from): (Vec<Commit>, Vec<i64>) = commits.by_ref().take(COMMITS).unzip();
        if some.is_empty() {
            break;
        }
        let (mut total, mut unreadable) = (0, Vec::new());
        prepared_each(
            "SELECT batch, id, subject, headers, domain, message_id, payload FROM ( \
             SELECT o.*, sum(octet_length(o.payload)) OVER (ROWS UNBOUNDED PRECEDING) AS total \
             FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY k(batch, after, place), LATERAL ( \
               SELECT * FROM litmus_pgnats.outbox m WHERE m.batch = k.batch AND m.id > k.after \
               AND ($3 = '[]' OR m.subject NOT IN (SELECT json_array_elements_text($3::json))) \
               ORDER BY m.id LIMIT $4 \
             ) o LIMIT $4 \
             ) m WHERE total <= $5 OR total = octet_length(payload)",
            &[
                Text(&array(some.iter().map(|commit| &commit.batch))),
                Text(&array(from.iter())),
                Text(&held_json),
                Int8(BATCH),
                Int8(BATCH_SIZE),
            ],
            |row| {
                let Some(key) = row.int8(1).zip(row.int8(2)) else {
                    return;
                };
                let Some((message, payload)) = message(row) else {
                    unreadable.push(key);
                    return;
                };
                total += payload.len() + headers::wire_len(&message.headers) + message.subject.len();
                if total <= FULL_SIZE || messages.is_empty() {
                    read.keys.push(key);
                    messages.push(message);
                    body.extend_from_slice(payload);
                }
            },
        );
        give_up(own, partition, &unreadable);
        // The commits after that of the last message may have more messages.
        let Some((last, _)) = read.keys.last() else {
            read.commits.extend(some);
            continue;
        };
        let end = some.iter().position(|commit| commit.batch == *last);
        read.commits
            .extend(some.iter().take(end.map_or(0, |end| end + 1)));
        break;
    }
    (read, messages, body)
}

/// Message and payload of a row; `None` if the row cannot have been written by the extension.
fn message(row: &Fields) -> Option<(OutboxMessage, &[u8])> {
    let payload = row.bytes(7)?;
    let message = OutboxMessage {
        subject: row.text(3)?,
        headers: match row.any(4) {
            Some(json) => headers::parse(&json).ok()?,
            None => Vec::new(),
        },
        domain: row.text(5),
        message_id: row.any(6)?,
        size: u32::try_from(payload.len()).ok()?,
    };
    Some((message, payload))
}

/// Moves messages that the extension cannot have written to the dead letters, so that they hold nothing up.
fn give_up(own: &OwnTables, partition: &Partition, keys: &[(i64, i64)]) {
    if keys.is_empty() {
        return;
    }
    let error = Error::new(Kind::InvalidHeaders, "the message in the outbox cannot be read");
    let read = ReadMessages {
        keys: keys.to_vec(),
        ..ReadMessages::default()
    };
    remove(
        own,
        partition,
        &read,
        &vec![DeliveryOutcome::Dead(error); keys.len()],
    );
}

/// Removes messages that JetStream has stored, and messages that are given up, which go to the dead letters.
pub fn remove(_: &OwnTables, partition: &Partition, read: &ReadMessages, outcomes: &[DeliveryOutcome]) {
    let (mut batches, mut ids) = (Vec::new(), Vec::new());
    for ((batch, id), outcome) in read.keys.iter().zip(outcomes) {
        match outcome {
            DeliveryOutcome::Waits => continue,
            DeliveryOutcome::Stored => {}
            DeliveryOutcome::Dead(error) => dead_letter::of_outbox(partition, *batch, *id, error),
        }
        batches.push(*batch);
        ids.push(*id);
    }
    prepared(
        "DELETE FROM litmus_pgnats.outbox o USING unnest($1::bigint[], $2::bigint[]) k(batch, id) \
         WHERE o.batch = k.batch AND o.id = k.id",
        &[Text(&array(batches.iter())), Text(&array(ids.iter()))],
    );
}

/// Removes commits of which no message is left, and returns their numbers.
pub fn finish(_: &OwnTables, commits: &[Commit]) -> HashSet<i64> {
    let rows = prepared(
        "DELETE FROM litmus_pgnats.outbox_batch b USING unnest($1::bigint[], $2::bigint[]) k(number, after) \
         WHERE b.number = k.number \
         AND NOT EXISTS (SELECT FROM litmus_pgnats.outbox o WHERE o.batch = b.batch AND o.id > k.after) \
         RETURNING b.number",
        &[
            Text(&array(commits.iter().map(|commit| &commit.number))),
            Text(&array(commits.iter().map(|commit| &commit.after))),
        ],
    );
    rows.into_iter()
        .flatten()
        .flatten()
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The connection of a partition, or why there is none.
pub fn source(partition: &Partition) -> Result<Source> {
    if !rights::role_exists(partition.role) {
        let message = "the role that has published it does not exist any more";
        return Err(Error::new(Kind::PermissionDenied, message).hint(""));
    }
    let servers = foreign_servers::servers()?;
    let server = servers.into_iter().find(|server| server.name == partition.server);
    let server = server.ok_or_else(|| sources::missing(&partition.server))?.oid;
    sources::check_usage(
        partition.role,
        &rights::role_name(partition.role),
        server,
        &partition.server,
    )?;
    sources::source_of(server, &partition.server, partition.role)
}

/// Numbers in PostgreSQL's text form of an array.
fn array<'a>(numbers: impl Iterator<Item = &'a i64>) -> String {
    let numbers: Vec<String> = numbers.map(i64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}
