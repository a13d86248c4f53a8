//! Reads the outbox of a database for the runtime worker, and removes from it what was delivered. Runs in outbox
//! relays, on the main thread; between two orders a relay waits on its channel and asks nothing of the database.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use super::known_commits::{KnownCommits, ReadMessages};
use super::outbox_read;
use crate::channel::outbox::{Batch, Fetch, Partition, Settled};
use crate::pg::transaction::{Caught, transaction, with_snapshot};
use crate::pg::{state, worker};
use crate::sql::own_tables::OwnTables;

/// Most reads of commits in one transaction, which holds a snapshot.
const ROUNDS: usize = 50;

/// Parameters of this process, whatever the database's settings are.
const SETTINGS: [(&CStr, &CStr); 10] = [
    // Names and operators mean PostgreSQL's own.
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"lock_timeout", c"0"),
    // A crash may undo the removal of a delivered message; it is sent again then, and JetStream drops it by its message
    // id. Avoiding that is not worth a wait for the disk.
    (c"synchronous_commit", c"off"),
    // Plans have to use the indexes: the statistics of tables that are queues are always out of date.
    (c"enable_seqscan", c"off"),
    (c"enable_hashjoin", c"off"),
    (c"enable_mergejoin", c"off"),
    (c"enable_bitmapscan", c"off"),
    (c"jit", c"off"),
];

/// Sets the parameters; called when an outbox relay begins.
pub fn settle_in() {
    for (name, value) in SETTINGS {
        worker::set(name, value);
    }
}

/// What an outbox relay knows of its outbox.
#[derive(Default)]
pub struct OutboxReader {
    commits: KnownCommits,
    /// The messages given to the runtime worker that are not settled yet, by partition.
    given: HashMap<Partition, ReadMessages>,
    /// Object id of the table that all this is known of: the extension may be dropped and created again.
    table: u32,
}

fn own<T>(work: impl FnOnce() -> T) -> Result<T, Caught> {
    transaction(|| with_snapshot(work))
}

impl OutboxReader {
    /// Writes down what became of messages, and reads the next batch; the body holds its payloads. No batch if there is
    /// nothing to deliver.
    pub fn fetch(&mut self, order: &Fetch) -> Result<(Option<Batch>, Vec<u8>), Caught> {
        for settled in &order.settled {
            self.settle(settled)?;
        }
        // Commits of other partitions may come after many commits of a partition that waits.
        let read = loop {
            let (next, are_more) = own(|| self.read(order))?;
            if next.is_some() || !are_more {
                break next;
            }
        };
        Ok(read.map_or((None, Vec::new()), |(batch, body)| (Some(batch), body)))
    }

    /// Reads the next batch, and whether there may be more commits to look at.
    fn read(&mut self, order: &Fetch) -> (Option<(Batch, Vec<u8>)>, bool) {
        // Without the extension there is nothing to read.
        let Ok(table) = OwnTables::open() else {
            return (None, false);
        };
        for _ in 0..ROUNDS {
            let are_more = self.discover();
            let next = self.next(&table, order);
            if next.is_some() || !(are_more || self.commits.has_room()) {
                return (next, false);
            }
        }
        (None, true)
    }

    /// Removes messages that are stored or given up.
    fn settle(&mut self, settled: &Settled) -> Result<(), Caught> {
        let Some(read) = self.given.remove(&settled.partition) else {
            return Ok(());
        };
        let after = read.after(&settled.outcomes);
        self.commits
            .pass(&settled.partition, read.passed(&settled.outcomes));
        let finished = own(|| {
            // Without the extension there is nothing left to remove; in another table the same numbers mean other
            // messages.
            let table = OwnTables::open().ok();
            let Some(table) = table.filter(|_| outbox_read::numbering().0 == self.table) else {
                return HashSet::new();
            };
            outbox_read::remove(&table, &settled.partition, &read, &settled.outcomes);
            outbox_read::finish(&table, &after)
        })?;
        self.commits.keep(&settled.partition, &finished, &after);
        Ok(())
    }

    /// Reads new commits, and those with missing numbers. Whether there may be more.
    fn discover(&mut self) -> bool {
        let (table, last) = outbox_read::numbering();
        if table != self.table || last < self.commits.seen() {
            *self = OutboxReader {
                table,
                ..OutboxReader::default()
            };
        }
        let ended = outbox_read::ended();
        let (found, are_more) = outbox_read::commits(self.commits.seen(), &self.commits.missing());
        let running = state::next_transaction();
        self.commits.give_up_missing(ended);
        for (partition, commit) in found {
            self.commits.found(partition, commit, running);
        }
        for (partition, above) in self.commits.with_room() {
            let (commits, are_all) = outbox_read::commits_of(&partition, above);
            self.commits.refill(&partition, commits, are_all);
        }
        are_more
    }

    /// The next messages of the partition with the oldest commit, among those that may be read; `None` if there are
    /// none.
    fn next(&mut self, table: &OwnTables, order: &Fetch) -> Option<(Batch, Vec<u8>)> {
        let mut open = self.commits.partitions();
        open.retain(|partition| !order.busy.contains(partition) && !self.given.contains_key(partition));
        for partition in open {
            let held = order.held.iter().find(|(other, _)| *other == partition);
            let held = held.map_or(&[][..], |(_, subjects)| subjects);
            let (read, messages, body) =
                outbox_read::messages(table, &partition, self.commits.commits(&partition, held), held);
            if messages.is_empty() {
                self.commits.pass(&partition, read.passed(&[]));
                // These commits may have no messages left, or never have had any because savepoints were rolled back.
                let after = read.after(&[]);
                let finished = outbox_read::finish(table, &after);
                self.commits.keep(&partition, &finished, &after);
                continue;
            }
            let source = outbox_read::source(&partition);
            self.given.insert(partition.clone(), read);
            let batch = Batch {
                partition,
                source,
                messages,
            };
            return Some((batch, body));
        }
        None
    }
}
