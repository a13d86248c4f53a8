//! Outbox relays: workers that read the outbox of a database for the runtime, and remove from it what was delivered. One
//! thread; between two orders it waits on its channel and asks nothing of the database.
//!
//! What waits is known from the commits on: each has a number, taken just before it. A number that is missing between
//! others belongs to a commit that is on its way, or to one that has failed; it is looked for until no transaction of that
//! time runs any more. So nothing that was delivered is looked at again, however long its remains stay in the table.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::CStr;

use super::outbox_read;
use super::outbox_read::{Passed, ReadMessages};
use crate::channel::outbox::{Batch, Fetch, Partition, Settled};
use crate::pg::transaction::{Caught, transaction, with_snapshot};
use crate::pg::{state, worker};
use crate::sql::own_tables::OwnTables;

/// Most commits that are kept in mind; the others are read when there is room.
const MAX_KNOWN: usize = 1_000_000;
/// Most discoveries for one fetch: enough for as many.
const ROUNDS: usize = MAX_KNOWN / outbox_read::DISCOVER as usize;
/// Most missing numbers; of a larger gap, which a restore or a crash leaves, the last ones.
const MAX_MISSING: i64 = 10_000;

/// A commit with messages of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub number: i64,
    pub batch: i64,
    /// All messages up to this one are done with.
    pub after: i64,
}

/// What holds in this process, whatever the database says of its users' sessions.
const SETTINGS: [(&CStr, &CStr); 10] = [
    // Names and operators are PostgreSQL's own.
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"lock_timeout", c"0"),
    // What was delivered and not removed is sent again and dropped by its number: no wait for the disk is worth that.
    (c"synchronous_commit", c"off"),
    // By the indexes: what the tables' statistics say of queues is always out of date.
    (c"enable_seqscan", c"off"),
    (c"enable_hashjoin", c"off"),
    (c"enable_mergejoin", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"jit", c"off"),
];

/// Makes the process an outbox relay's, when it begins.
pub fn settle_in() {
    for (name, value) in SETTINGS {
        worker::set(name, value);
    }
}

/// What an outbox relay knows.
#[derive(Default)]
pub struct OutboxReader {
    /// The highest number that was seen.
    seen: i64,
    /// Numbers that are missing below, and the transaction id before which all must have ended for them to be given up.
    missing: BTreeMap<i64, u64>,
    partitions: HashMap<Partition, VecDeque<Commit>>,
    known: usize,
    /// Where to begin in partitions of which subjects are held: their messages are not walked over again and again.
    passed: HashMap<Partition, Passed>,
    /// What was said of each partition and is not settled yet.
    given: HashMap<Partition, ReadMessages>,
    /// The table that all this is known of: the extension may be dropped and created again.
    table: u32,
}

fn own<T>(work: impl FnOnce() -> T) -> Result<T, Caught> {
    transaction(|| with_snapshot(work))
}

impl OutboxReader {
    /// Writes down what became of messages, and reads the next ones; the body holds their payloads.
    pub fn fetch(&mut self, order: &Fetch) -> Result<(Option<Batch>, Vec<u8>), Caught> {
        for settled in &order.settled {
            self.settle(settled)?;
        }
        let read = own(|| {
            let table = OwnTables::open().ok()?;
            // Others may be behind many commits of a partition that waits.
            for _ in 0..ROUNDS {
                let are_more = self.discover();
                let next = self.next(&table, order);
                if next.is_some() || !are_more {
                    return next;
                }
            }
            None
        })?;
        Ok(read.map_or((None, Vec::new()), |(batch, body)| (Some(batch), body)))
    }

    /// Removes what is done with.
    fn settle(&mut self, settled: &Settled) -> Result<(), Caught> {
        let Some(messages_read) = self.given.remove(&settled.partition) else {
            return Ok(());
        };
        let read = messages_read.after(&settled.outcomes);
        if let Some(passed) = messages_read.passed(&settled.outcomes) {
            self.passed.insert(settled.partition.clone(), passed);
        }
        let finished = own(|| {
            let Ok(table) = OwnTables::open() else {
                return HashSet::new();
            };
            // In another table the same numbers mean others.
            if outbox_read::numbering().0 != self.table {
                return HashSet::new();
            }
            outbox_read::remove(&table, &settled.partition, &messages_read, &settled.outcomes);
            outbox_read::finish(&table, &read)
        })?;
        self.keep(&settled.partition, &finished, &read);
        Ok(())
    }

    /// Forgets commits that are finished, and remembers how far others are.
    fn keep(&mut self, partition: &Partition, finished: &HashSet<i64>, read: &[Commit]) {
        let commits = self.partitions.entry(partition.clone()).or_default();
        let before = commits.len();
        commits.retain(|commit| !finished.contains(&commit.number));
        self.known -= before - commits.len();
        for commit in read {
            let place = commits.partition_point(|other| other.number < commit.number);
            if let Some(known) = commits
                .get_mut(place)
                .filter(|known| known.number == commit.number)
            {
                known.after = commit.after;
            }
        }
        if commits.is_empty() {
            self.partitions.remove(partition);
        }
    }

    /// Reads which commits there are that were not there before. Whether there are more.
    fn discover(&mut self) -> bool {
        if self.known >= MAX_KNOWN {
            return false;
        }
        let (table, last) = outbox_read::numbering();
        if table != self.table || last < self.seen {
            *self = OutboxReader {
                table,
                ..OutboxReader::default()
            };
        }
        let ended = outbox_read::ended();
        let missing: Vec<i64> = self.missing.keys().copied().collect();
        let (found, are_more) = outbox_read::commits(self.seen, &missing);
        let running = state::next_transaction();
        // Whatever was on its way when these were missed has ended before this was read.
        self.missing.retain(|_, until| *until > ended);
        for (partition, commit) in found {
            if commit.number > self.seen {
                let first = (self.seen + 1).max(commit.number - MAX_MISSING);
                self.missing
                    .extend((first..commit.number).map(|number| (number, running)));
                self.seen = commit.number;
            }
            self.missing.remove(&commit.number);
            if self
                .passed
                .get(&partition)
                .is_some_and(|passed| commit.number <= passed.number)
            {
                self.passed.remove(&partition);
            }
            let commits = self.partitions.entry(partition).or_default();
            let place = commits.partition_point(|other| other.number < commit.number);
            commits.insert(place, commit);
            self.known += 1;
        }
        are_more
    }

    /// The next messages of the partition whose first commit is the oldest.
    fn next(&mut self, table: &OwnTables, order: &Fetch) -> Option<(Batch, Vec<u8>)> {
        let closed =
            |partition: &Partition| order.busy.contains(partition) || self.given.contains_key(partition);
        let mut open: Vec<(i64, Partition)> = self
            .partitions
            .iter()
            .filter(|(partition, _)| !closed(partition))
            .filter_map(|(partition, commits)| Some((commits.front()?.number, partition.clone())))
            .collect();
        open.sort_unstable_by_key(|(number, _)| *number);
        for (_, partition) in open {
            let held = order.held.iter().find(|(other, _)| *other == partition);
            let held = held.map_or(&[][..], |(_, subjects)| subjects);
            let Some(commits) = self.partitions.get(&partition) else {
                continue;
            };
            let passed = self.passed.get(&partition).filter(|passed| passed.holds(held));
            let (number, id) = passed.map_or((0, 0), |passed| (passed.number, passed.id));
            let start = commits.partition_point(|commit| commit.number < number);
            let rest = commits.range(start..).map(|commit| {
                let from = if commit.number == number { id } else { 0 };
                (*commit, commit.after.max(from))
            });
            let (messages_read, messages, body) = outbox_read::messages_read(rest, held);
            if messages.is_empty() {
                if let Some(passed) = messages_read.passed(&[]) {
                    self.passed.insert(partition.clone(), passed);
                }
                // Nothing is left of them, or nothing ever was: savepoints were rolled back.
                let read = messages_read.after(&[]);
                let finished = outbox_read::finish(table, &read);
                self.keep(&partition, &finished, &read);
                continue;
            }
            let source = outbox_read::source(&partition);
            self.given.insert(partition.clone(), messages_read);
            return Some((
                Batch {
                    partition,
                    source,
                    messages,
                },
                body,
            ));
        }
        None
    }
}
