//! Reads a bucket message by message, where an entry is such that the client library cannot read it and ends the
//! connection: slower, and safe. In the actor thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use super::{Bucket, MARKER, OPERATION, PUT, entry_row, operation};
use crate::actors::base::result_limit::{check_size, row_size};
use crate::actors::jetstream::consumer::plain_message::{self, PlainMessage};
use crate::error::{Kind, Result};
use crate::nats::raw_headers;
use crate::row::Row;

/// A bucket is read one by one for so long after its reading has ended the connection, or has shown such an entry.
const SUSPECTED_FOR: Duration = Duration::from_secs(600);
/// Most buckets that are suspected at a time.
const MOST: usize = 1000;

/// Reading has to end so many connections in a row: an outage may end one.
const SUSPICIOUS: u32 = 2;

/// How often the reading of a bucket has ended the connection since a whole reading succeeded.
#[derive(Debug)]
struct Suspicion {
    connections: u32,
    /// Generation of the last such connection: many sessions may have read when it ended.
    generation: u64,
    since: Instant,
}

/// Buckets whose reading has ended the connection.
#[derive(Clone, Default)]
pub struct SuspectBuckets(Arc<Mutex<HashMap<String, Suspicion>>>);

impl SuspectBuckets {
    /// Whether a bucket is to be read one by one.
    pub fn has(&self, bucket: &str) -> bool {
        let mut suspects = self.0.lock();
        suspects.retain(|_, suspicion| suspicion.since.elapsed() < SUSPECTED_FOR);
        suspects
            .get(bucket)
            .is_some_and(|suspicion| suspicion.connections >= SUSPICIOUS)
    }

    /// A bucket was read one by one; `are_readable` if it has no entry that cannot be read.
    fn was_read(&self, bucket: &str, are_readable: bool) {
        let mut suspects = self.0.lock();
        if are_readable {
            suspects.remove(bucket);
        } else if let Some(suspicion) = suspects.get_mut(bucket) {
            suspicion.since = Instant::now();
        }
    }

    /// Notes what became of reading a bucket as usual, on the connection of a generation.
    pub fn note<T>(&self, bucket: &str, generation: u64, outcome: &Result<T>) {
        let mut suspects = self.0.lock();
        match outcome {
            Ok(_) => drop(suspects.remove(bucket)),
            Err(error) if error.kind == Kind::ConnectionLost => {
                if suspects.len() >= MOST && !suspects.contains_key(bucket) {
                    return;
                }
                let suspicion = suspects.entry(bucket.to_string()).or_insert(Suspicion {
                    connections: 0,
                    generation: 0,
                    since: Instant::now(),
                });
                if suspicion.generation != generation {
                    suspicion.connections += 1;
                }
                (suspicion.generation, suspicion.since) = (generation, Instant::now());
            }
            Err(_) => {}
        }
    }
}

impl Bucket {
    /// Like `keys`.
    pub(super) async fn keys_one_by_one(&self) -> Result<Vec<Row>> {
        let prefix = self.subject("");
        let (mut keys, mut size) = (BTreeMap::new(), 0);
        let (mut from, mut are_readable) = (1, true);
        while let Some(message) = self.message_from(from, ">").await? {
            from = message.mark.sequence + 1;
            are_readable &= raw_headers::is_readable(&message.headers);
            let Some(key) = message.subject.strip_prefix(&prefix) else {
                continue;
            };
            if keys
                .insert(key.to_string(), stored_operation(&message) == PUT)
                .is_none()
            {
                size += row_size(key.len());
                check_size(size)?;
            }
        }
        self.suspects.was_read(&self.bucket, are_readable);
        let there = keys.into_iter().filter(|(_, is_there)| *is_there);
        Ok(there.map(|(key, _)| vec![Some(key)]).collect())
    }

    /// Like `history`.
    pub(super) async fn history_one_by_one(&self, key: &str) -> Result<Vec<Row>> {
        let (mut rows, mut size) = (Vec::new(), 0);
        let mut from = 1;
        while let Some(message) = self.message_from(from, key).await? {
            from = message.mark.sequence + 1;
            let created = message.created();
            let row = entry_row(
                message.mark.sequence,
                stored_operation(&message),
                &message.payload,
                created,
            );
            size += row_size(row.iter().flatten().map(String::len).sum());
            check_size(size)?;
            rows.push(row);
        }
        Ok(rows)
    }

    /// The first message of a key from a sequence on; `None` if there is none, or no bucket.
    async fn message_from(&self, sequence: u64, key: &str) -> Result<Option<PlainMessage>> {
        let which = json!({ "seq": sequence, "next_by_subj": self.subject(key) });
        match plain_message::get(&self.api, &self.stream(), &which).await {
            Err(error) if error.kind == Kind::NoStream => Ok(None),
            message => message,
        }
    }
}

fn stored_operation(message: &PlainMessage) -> &'static str {
    let headers = raw_headers::read(&message.headers);
    let text = |name: &str| {
        let value = headers.iter().find(|(header, _)| header == name);
        value.map_or("", |(_, value)| value.as_str())
    };
    operation(text(OPERATION), text(MARKER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::jetstream::api::lost;

    #[test]
    fn an_outage_under_many_readers_makes_no_suspect() {
        let suspects = SuspectBuckets::default();
        for _ in 0..5 {
            suspects.note::<()>("b", 1, &Err(lost()));
        }
        assert!(!suspects.has("b"));
        suspects.note("b", 2, &Ok(()));
        suspects.note::<()>("b", 2, &Err(lost()));
        assert!(!suspects.has("b"), "it was read in between");
        suspects.note::<()>("b", 3, &Err(lost()));
        assert!(suspects.has("b") && !suspects.has("c"));
        suspects.was_read("b", false);
        assert!(suspects.has("b"));
        suspects.was_read("b", true);
        assert!(!suspects.has("b"));
    }
}
