//! Which commits of an outbox wait, and how far each is delivered. Pure; used by outbox relays, where `outbox_relay.rs`
//! reads and writes the tables.
//!
//! A transaction takes its number just before it commits, so new commits are found above the highest number that was
//! seen. A number that is missing belongs to a transaction that is about to commit or has failed; it is looked for
//! until all transactions of that time have ended. So delivered messages are never read again, however long their dead
//! rows stay in the table.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use crate::channel::outbox::{DeliveryOutcome, Partition};

/// Most commits that are remembered. Partitions share this number, so that one that waits for long leaves room to the
/// others; its further commits are read when there is room.
const MAX_KNOWN: usize = 1_000_000;
/// A partition may remember at least so many, however many partitions there are.
const LEAST_KNOWN: usize = 1000;
/// Most numbers of one gap that are looked for. In a larger gap, which a restore or a crash leaves, these are the last
/// ones.
const MAX_MISSING: i64 = 10_000;

/// A commit with messages of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub number: i64,
    pub batch: i64,
    /// All messages up to this id are stored or given up.
    pub after: i64,
}

/// A resume point: up to the message `id` of the commit `number`, only messages of held subjects remain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    held: Vec<String>,
    number: i64,
    id: i64,
}

impl Passed {
    /// Whether the resume point is valid while these subjects are held.
    fn holds(&self, held: &[String]) -> bool {
        let now: HashSet<&String> = held.iter().collect();
        self.held.iter().all(|subject| now.contains(subject))
    }
}

/// The messages that were read of a partition.
#[derive(Debug, Default)]
pub struct ReadMessages {
    /// Batch and id of each message.
    pub keys: Vec<(i64, i64)>,
    /// The commits that were read, the last one perhaps not to its end.
    pub commits: Vec<Commit>,
    /// Subjects whose messages were left out.
    pub held: Vec<String>,
}

impl ReadMessages {
    /// The commits with how far each is done with after these outcomes; unchanged if messages of held subjects were
    /// left out, since these may lie in between.
    pub fn after(&self, outcomes: &[DeliveryOutcome]) -> Vec<Commit> {
        let mut commits = self.commits.clone();
        if !self.held.is_empty() {
            return commits;
        }
        let mut current = 0;
        let mut keys = self.keys.iter().enumerate().peekable();
        while let (Some(commit), Some((index, (batch, id)))) = (commits.get_mut(current), keys.peek()) {
            if *batch != commit.batch {
                current += 1;
                continue;
            }
            let outcome = outcomes.get(*index);
            if outcome.is_none_or(|outcome| *outcome == DeliveryOutcome::Waits) {
                // Messages of a commit that follow one that waits no longer count.
                let waits = commit.batch;
                while keys.next_if(|(_, (batch, _))| *batch == waits).is_some() {}
            } else {
                commit.after = *id;
                keys.next();
            }
        }
        commits
    }

    /// The resume point after these outcomes; `None` if no subject is held, or if the first message waits.
    pub fn passed(&self, outcomes: &[DeliveryOutcome]) -> Option<Passed> {
        let is_decided = |outcome: &&DeliveryOutcome| **outcome != DeliveryOutcome::Waits;
        let decided = outcomes.iter().take_while(is_decided).count();
        let (batch, id) = match decided.checked_sub(1) {
            Some(last) => *self.keys.get(last)?,
            None if self.keys.is_empty() => (self.commits.last()?.batch, i64::MAX),
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

/// The commits of one partition that wait.
#[derive(Debug, Default)]
struct WaitingCommits {
    /// In the order of their numbers.
    commits: VecDeque<Commit>,
    /// There may be more commits above this number, for which there was no room.
    beyond: Option<i64>,
}

impl WaitingCommits {
    /// Adds a commit, unless it is there.
    fn add(&mut self, commit: Commit) {
        let place = self.commits.partition_point(|other| other.number < commit.number);
        if self
            .commits
            .get(place)
            .is_none_or(|other| other.number != commit.number)
        {
            self.commits.insert(place, commit);
        }
    }

    /// The lowest number that waits; `None` if nothing does.
    fn first(&self) -> Option<i64> {
        self.commits.front().map(|commit| commit.number).or(self.beyond)
    }
}

/// The commits that wait, by partition.
#[derive(Debug, Default)]
pub struct KnownCommits {
    /// The highest number that was seen.
    seen: i64,
    /// Missing numbers below `seen`, each with a transaction id: when all transactions with lower ids have ended, the
    /// number is given up.
    missing: BTreeMap<i64, u64>,
    partitions: HashMap<Partition, WaitingCommits>,
    /// The resume points of partitions with held subjects, whose messages would otherwise be scanned again and again.
    passed: HashMap<Partition, Passed>,
}

impl KnownCommits {
    /// Most commits that a partition may remember now.
    fn share(&self) -> usize {
        (MAX_KNOWN / self.partitions.len().max(1)).max(LEAST_KNOWN)
    }

    /// The partitions that have room for commits which they do not remember, each with the number above which these are.
    pub fn with_room(&self) -> Vec<(Partition, i64)> {
        let most = self.share() / 2;
        let room = self
            .partitions
            .iter()
            .filter(|(_, waiting)| waiting.commits.len() < most);
        room.filter_map(|(partition, waiting)| Some((partition.clone(), waiting.beyond?)))
            .collect()
    }

    /// Whether there is room for commits that are not remembered.
    pub fn has_room(&self) -> bool {
        !self.with_room().is_empty()
    }

    /// Adds commits for which there was no room before; `are_all` if there are no more.
    pub fn refill(&mut self, partition: &Partition, commits: Vec<Commit>, are_all: bool) {
        let Some(waiting) = self.partitions.get_mut(partition) else {
            return;
        };
        // Commits above the highest number that was seen are found as others are.
        let seen = self.seen;
        for commit in commits.into_iter().filter(|commit| commit.number <= seen) {
            waiting.beyond = Some(commit.number);
            waiting.add(commit);
        }
        if are_all {
            waiting.beyond = None;
        }
        if waiting.first().is_none() {
            self.partitions.remove(partition);
        }
    }

    /// The highest number that was seen.
    pub fn seen(&self) -> i64 {
        self.seen
    }

    /// The missing numbers below `seen`, which are looked for.
    pub fn missing(&self) -> Vec<i64> {
        self.missing.keys().copied().collect()
    }

    /// Gives up missing numbers: all transactions with ids below `ended` had ended before the missing numbers were last
    /// looked for.
    pub fn give_up_missing(&mut self, ended: u64) {
        self.missing.retain(|_, until| *until > ended);
    }

    /// Adds a commit that was found. `running` is the transaction id that is assigned next.
    pub fn found(&mut self, partition: Partition, commit: Commit, running: u64) {
        if commit.number > self.seen {
            let first = (self.seen + 1).max(commit.number - MAX_MISSING);
            let missed = (first..commit.number).map(|number| (number, running));
            self.missing.extend(missed);
            self.seen = commit.number;
        }
        self.missing.remove(&commit.number);
        // A commit that is found late lies before the resume point, which is no longer valid then.
        let is_passed = |passed: &Passed| commit.number <= passed.number;
        if self.passed.get(&partition).is_some_and(is_passed) {
            self.passed.remove(&partition);
        }
        let share = self.share();
        let waiting = self.partitions.entry(partition).or_default();
        let last = waiting.commits.back().map(|last| last.number);
        if waiting.beyond.is_none() && waiting.commits.len() >= share && last < Some(commit.number) {
            waiting.beyond = last;
        }
        if waiting.beyond.is_none_or(|beyond| commit.number <= beyond) {
            waiting.add(commit);
        }
    }

    /// Forgets the finished commits, given by number, and remembers how far the others are.
    pub fn keep(&mut self, partition: &Partition, finished: &HashSet<i64>, read: &[Commit]) {
        let Some(waiting) = self.partitions.get_mut(partition) else {
            return;
        };
        let commits = &mut waiting.commits;
        commits.retain(|commit| !finished.contains(&commit.number));
        for commit in read {
            let place = commits.partition_point(|other| other.number < commit.number);
            let known = commits.get_mut(place);
            if let Some(known) = known.filter(|known| known.number == commit.number) {
                known.after = commit.after;
            }
        }
        if waiting.first().is_none() {
            self.partitions.remove(partition);
        }
    }

    /// Sets the resume point of a partition; `None` leaves the former one.
    pub fn pass(&mut self, partition: &Partition, passed: Option<Passed>) {
        if let Some(passed) = passed {
            self.passed.insert(partition.clone(), passed);
        }
    }

    /// The partitions, ordered by the age of their oldest commits, the oldest first.
    pub fn partitions(&self) -> Vec<Partition> {
        let first = self
            .partitions
            .iter()
            .filter_map(|(partition, waiting)| Some((waiting.first()?, partition)));
        let mut all: Vec<(i64, &Partition)> = first.collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, partition)| partition.clone()).collect()
    }

    /// The commits of a partition, each with the message id after which to begin while these subjects are held.
    pub fn commits(&self, partition: &Partition, held: &[String]) -> impl Iterator<Item = (Commit, i64)> {
        let passed = self.passed.get(partition).filter(|passed| passed.holds(held));
        let (number, id) = passed.map_or((0, 0), |passed| (passed.number, passed.id));
        let rest = self.partitions.get(partition).map(|waiting| {
            let commits = &waiting.commits;
            let start = commits.partition_point(|commit| commit.number < number);
            commits.range(start..)
        });
        rest.into_iter().flatten().map(move |commit| {
            let from = if commit.number == number { id } else { 0 };
            (*commit, commit.after.max(from))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};

    fn partition(server: &str) -> Partition {
        Partition {
            server: server.into(),
            role: 10,
        }
    }

    fn commit(number: i64) -> Commit {
        Commit {
            number,
            batch: number * 100,
            after: 0,
        }
    }

    fn known(numbers: &[i64]) -> KnownCommits {
        let mut known = KnownCommits::default();
        for number in numbers {
            known.found(partition("nats"), commit(*number), 50);
        }
        known
    }

    fn numbers(known: &KnownCommits, held: &[String]) -> Vec<(i64, i64)> {
        let partition = partition("nats");
        let commits = known.commits(&partition, held);
        commits.map(|(commit, from)| (commit.number, from)).collect()
    }

    /// Two messages of the first commit, one of the second.
    fn read(held: &[&str]) -> ReadMessages {
        ReadMessages {
            keys: vec![(100, 1), (100, 2), (200, 3)],
            commits: vec![commit(1), commit(2)],
            held: held.iter().map(|subject| subject.to_string()).collect(),
        }
    }

    const STORED: DeliveryOutcome = DeliveryOutcome::Stored;
    const WAITS: DeliveryOutcome = DeliveryOutcome::Waits;

    #[test]
    fn missing_numbers_are_looked_for_until_their_transactions_have_ended() {
        let mut known = known(&[1, 4]);
        assert_eq!((known.seen(), known.missing()), (4, vec![2, 3]));
        known.found(partition("nats"), commit(3), 60);
        known.give_up_missing(49);
        assert_eq!(known.missing(), [2]);
        known.give_up_missing(50);
        assert!(known.missing().is_empty());
        assert_eq!(
            numbers(&known, &[]),
            [(1, 0), (3, 0), (4, 0)],
            "in the order of the commits"
        );
    }

    #[test]
    fn of_a_large_gap_the_last_numbers_are_looked_for() {
        let known = known(&[1, 1_000_000]);
        let missing = known.missing();
        assert_eq!(missing.len(), usize::try_from(MAX_MISSING).expect("small"));
        assert_eq!(missing.last(), Some(&999_999));
    }

    #[test]
    fn the_partition_with_the_oldest_commit_comes_first() {
        let mut known = known(&[2]);
        known.found(partition("other"), commit(1), 50);
        assert_eq!(known.partitions(), [partition("other"), partition("nats")]);
        known.keep(&partition("other"), &HashSet::from([1]), &[]);
        assert_eq!(known.partitions(), [partition("nats")]);
    }

    #[test]
    fn a_commit_is_done_with_up_to_the_first_message_that_waits() {
        let after = |outcomes: &[DeliveryOutcome]| {
            let commits = read(&[]).after(outcomes);
            commits.iter().map(|commit| commit.after).collect::<Vec<_>>()
        };
        let dead = DeliveryOutcome::Dead(Error::new(Kind::StreamFull, "full"));
        assert_eq!(after(&[STORED, dead, STORED]), [2, 3]);
        assert_eq!(after(&[STORED, WAITS, STORED]), [1, 3]);
        assert_eq!(after(&[WAITS, STORED, STORED]), [0, 3]);
        assert_eq!(after(&[STORED]), [1, 0], "the others were not sent");
        let held = read(&["full"]).after(&[STORED, STORED, STORED]);
        assert!(
            held.iter().all(|commit| commit.after == 0),
            "held messages remain between them"
        );
    }

    #[test]
    fn messages_that_wait_are_not_walked_over_again() {
        let mut known = known(&[1, 2, 3]);
        let held = ["full".to_string()];
        let passed = read(&["full"]).passed(&[STORED, STORED, STORED]);
        known.pass(&partition("nats"), passed);
        assert_eq!(numbers(&known, &held), [(2, 3), (3, 0)]);
        assert_eq!(
            numbers(&known, &[]),
            [(1, 0), (2, 0), (3, 0)],
            "nothing is held any more"
        );
        assert_eq!(read(&["full"]).passed(&[WAITS]), None);
        assert_eq!(read(&[]).passed(&[STORED]), None);
        let nothing = ReadMessages {
            keys: Vec::new(),
            ..read(&["full"])
        };
        known.pass(&partition("nats"), nothing.passed(&[]));
        assert_eq!(numbers(&known, &held), [(2, i64::MAX), (3, 0)]);
        known.found(partition("nats"), commit(2), 50);
        assert_eq!(
            numbers(&known, &held).len(),
            3,
            "a late commit is behind the resume point"
        );
    }

    #[test]
    fn how_far_a_commit_is_is_remembered() {
        let mut known = known(&[1, 2]);
        let far = Commit {
            after: 7,
            ..commit(2)
        };
        known.keep(&partition("nats"), &HashSet::from([1]), &[far]);
        assert_eq!(numbers(&known, &[]), [(2, 7)]);
    }

    #[test]
    fn a_partition_that_waits_leaves_room_to_others() {
        let most = i64::try_from(MAX_KNOWN).expect("small");
        let mut known = KnownCommits::default();
        for number in 1..=most + 5 {
            known.found(partition("away"), commit(number), 50);
        }
        known.found(partition("nats"), commit(most + 6), 50);
        assert_eq!(numbers(&known, &[]), [(most + 6, 0)]);
        assert!(!known.has_room());
        let delivered = (1..=most).collect();
        known.keep(&partition("away"), &delivered, &[]);
        assert_eq!(known.partitions(), [partition("away"), partition("nats")]);
        assert_eq!(known.with_room(), [(partition("away"), most)]);
        let rest = (most + 1..=most + 5).map(commit).collect();
        known.refill(&partition("away"), rest, true);
        assert!(!known.has_room());
        known.found(partition("away"), commit(most + 7), 50);
        let server = partition("away");
        let away = known.commits(&server, &[]).map(|(commit, _)| commit.number);
        let expected: Vec<i64> = (most + 1..=most + 5).chain([most + 7]).collect();
        assert_eq!(away.collect::<Vec<_>>(), expected);
        known.refill(&partition("away"), Vec::new(), true);
        assert_eq!(known.partitions().len(), 2);
    }
}
