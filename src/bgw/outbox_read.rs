//! The statements of an outbox relay, under the settings that it has made for itself.

use std::collections::HashSet;

use super::outbox_relay::Commit;
use super::{dead_letter, definitions};
use crate::channel::outbox::{DeliveryOutcome, OutboxMessage, Partition};
use crate::channel::target::Source;
use crate::error::{Error, Kind, Result};
use crate::nats::headers;
use crate::pg::query::Argument::{Int8, Text};
use crate::pg::query::{Fields, prepared, prepared_each};
use crate::pg::{foreign_servers, rights};
use crate::sql::own_tables::OwnTables;

/// Most messages of a batch, and most commits that are looked at for them at a time.
const BATCH: i64 = 4000;
const COMMITS: usize = 4000;
/// Most bytes of payloads in a batch, unless one message has more; and with headers, which a frame must have room for.
const BATCH_SIZE: i64 = 4 * 1024 * 1024;
const FULL_SIZE: usize = 16 * 1024 * 1024;
/// Most commits that are discovered at a time.
pub const DISCOVER: i64 = 20_000;

/// What was read of a partition.
#[derive(Default)]
pub struct ReadMessages {
    /// Batch and id of each message.
    keys: Vec<(i64, i64)>,
    /// The commits that were looked at; the last one perhaps not to its end.
    commits: Vec<Commit>,
    /// Messages of these subjects were left out.
    held: Vec<String>,
}

/// Up to this message of this commit, what waits is of these subjects alone.
pub struct Passed {
    held: Vec<String>,
    pub number: i64,
    pub id: i64,
}

impl Passed {
    /// Whether it still is so when these are held.
    pub fn holds(&self, held: &[String]) -> bool {
        let now: HashSet<&String> = held.iter().collect();
        self.held.iter().all(|subject| now.contains(subject))
    }
}

impl ReadMessages {
    /// The commits with how far each is done with, after these outcomes.
    pub fn after(&self, outcomes: &[DeliveryOutcome]) -> Vec<Commit> {
        let mut commits = self.commits.clone();
        if !self.held.is_empty() {
            return commits;
        }
        let mut place = 0;
        let mut keys = self.keys.iter().enumerate().peekable();
        while let (Some(commit), Some((index, (batch, id)))) = (commits.get_mut(place), keys.peek()) {
            if *batch != commit.batch {
                place += 1;
                continue;
            }
            if outcomes
                .get(*index)
                .is_none_or(|outcome| *outcome == DeliveryOutcome::Waits)
            {
                // What is behind it in this commit counts no more.
                let waits = commit.batch;
                while keys.next_if(|(_, (batch, _))| *batch == waits).is_some() {}
            } else {
                commit.after = *id;
                keys.next();
            }
        }
        commits
    }

    /// How far nothing but what is held is left, after these outcomes.
    pub fn passed(&self, outcomes: &[DeliveryOutcome]) -> Option<Passed> {
        let is_decided = |outcome: &&DeliveryOutcome| **outcome != DeliveryOutcome::Waits;
        let decided = outcomes.iter().take_while(is_decided).count();
        let is_empty = self.keys.is_empty();
        let (batch, id) = match decided.checked_sub(1) {
            Some(last) => *self.keys.get(last)?,
            None if is_empty => (self.commits.last()?.batch, i64::MAX),
            None => return None,
        };
        let commit = self.commits.iter().rev().find(|commit| commit.batch == batch)?;
        (!self.held.is_empty()).then(|| Passed {
            held: self.held.clone(),
            number: commit.number,
            id,
        })
    }
}

/// Before which transaction id all have ended.
pub fn ended() -> u64 {
    let rows = prepared("SELECT pg_snapshot_xmin(pg_current_snapshot())", &[]);
    let ended = rows.into_iter().flatten().flatten().next();
    ended.and_then(|ended| ended.parse().ok()).unwrap_or(0)
}

/// The table's object id, and the last number that was taken: both may be others than before.
pub fn numbering() -> (u32, i64) {
    let rows = prepared(
        "SELECT to_regclass('litmus_pgnats.outbox_batch')::oid, last_value FROM litmus_pgnats.outbox_number",
        &[],
    );
    let mut row = rows.into_iter().flatten().flatten();
    let table = row.next().and_then(|table| table.parse().ok()).unwrap_or(0);
    (table, row.next().and_then(|last| last.parse().ok()).unwrap_or(0))
}

/// Commits behind a number, the first ones, and those of the missing numbers; and whether there may be more.
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
    let commit = |row: Vec<Option<String>>| {
        let [Some(number), Some(batch), Some(server), Some(role)] =
            <[Option<String>; 4]>::try_from(row).ok()?
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
    };
    (rows.into_iter().filter_map(commit).collect(), are_more)
}

/// The first messages of these commits, of each those behind the one that comes with it, but none of the subjects that are
/// held; with the payloads.
pub fn messages_read(
    mut commits: impl Iterator<Item = (Commit, i64)>,
    held: &[String],
) -> (ReadMessages, Vec<OutboxMessage>, Vec<u8>) {
    let held_json = serde_json::Value::from(held).to_string();
    let (mut messages_read, mut messages, mut body) = (ReadMessages::default(), Vec::new(), Vec::new());
    messages_read.held = held.to_vec();
    loop {
        let (some, from): (Vec<Commit>, Vec<i64>) = commits.by_ref().take(COMMITS).unzip();
        if some.is_empty() {
            break;
        }
        let mut total = 0;
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
                let Some((key, message_read, payload)) = message_read(row) else {
                    return;
                };
                total +=
                    payload.len() + headers::wire_len(&message_read.headers) + message_read.subject.len();
                if total <= FULL_SIZE || messages.is_empty() {
                    messages_read.keys.push(key);
                    messages.push(message_read);
                    body.extend_from_slice(payload);
                }
            },
        );
        // Commits behind the last message may have more.
        let Some((last, _)) = messages_read.keys.last() else {
            messages_read.commits.extend(some);
            continue;
        };
        let end = some.iter().position(|commit| commit.batch == *last);
        messages_read
            .commits
            .extend(some.iter().take(end.map_or(0, |end| end + 1)));
        break;
    }
    (messages_read, messages, body)
}

/// Key, message and payload of a row.
fn message_read(row: &Fields) -> Option<((i64, i64), OutboxMessage, &[u8])> {
    let payload = row.bytes(7)?;
    let message_read = OutboxMessage {
        subject: row.text(3)?,
        // They were checked when they were written.
        headers: row
            .any(4)
            .and_then(|headers| headers::parse(&headers).ok())
            .unwrap_or_default(),
        domain: row.text(5),
        message_id: row.any(6)?,
        size: u32::try_from(payload.len()).ok()?,
    };
    Some(((row.int8(1)?, row.int8(2)?), message_read, payload))
}

/// Removes messages that are stored, and those that are given up, which go to the dead letters.
pub fn remove(
    _: &OwnTables,
    partition: &Partition,
    messages_read: &ReadMessages,
    outcomes: &[DeliveryOutcome],
) {
    let (mut batches, mut ids) = (Vec::new(), Vec::new());
    for ((batch, id), outcome) in messages_read.keys.iter().zip(outcomes) {
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

/// Removes commits of which no message is left; their numbers.
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
    let server = server.ok_or_else(|| definitions::missing(&partition.server))?.oid;
    definitions::check_usage(
        partition.role,
        &rights::role_name(partition.role),
        server,
        &partition.server,
    )?;
    definitions::source_of(server, &partition.server, partition.role)
}

/// Numbers in PostgreSQL's text form of an array.
fn array<'a>(numbers: impl Iterator<Item = &'a i64>) -> String {
    let numbers: Vec<String> = numbers.map(i64::to_string).collect();
    format!("{{{}}}", numbers.join(","))
}
