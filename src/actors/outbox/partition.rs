//! The partitions of an outbox: which are being delivered, and which of their subjects wait because JetStream has refused a
//! message. A plain struct; in the actor thread.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use actix::Addr;

use super::delivery::{MessageFate, is_permanent};
use crate::actors::base::backoff::backoff;
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::{ConnectionHandle, ConnectionLeft};
use crate::channel::outbox::{DeliveryOutcome, Partition};
use crate::channel::target::Key;
use crate::error::{Error, Kind, Result};
use crate::flood::Flood;

/// Before a subject whose message was refused is tried again; doubled each time, up to the limit.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_LIMIT: Duration = Duration::from_secs(5);
/// Most subjects of a partition that wait one by one; beyond, the partition waits.
const MAX_HELD: usize = 1000;

/// A connection that a partition keeps.
pub type KeptConnection = Option<(Key, ConnectionHandle)>;

/// A subject that waits, or a whole partition.
struct HeldBack {
    since: Instant,
    attempts: u32,
    due: Instant,
    /// The relay was told not to read it.
    is_closed: bool,
}

#[derive(Default)]
struct PartitionState {
    is_busy: bool,
    held: HashMap<String, HeldBack>,
    /// The whole partition waits.
    whole: Option<HeldBack>,
    connection: KeptConnection,
    complaints: Flood,
}

/// All partitions of a database.
#[derive(Default)]
pub struct Partitions(HashMap<Partition, PartitionState>);

impl Partitions {
    /// The partitions that nothing is to be read of now, and the subjects of others.
    pub fn closed(&mut self) -> (Vec<Partition>, Vec<(Partition, Vec<String>)>) {
        let now = Instant::now();
        for held in self.0.values_mut().flat_map(|state| state.held.values_mut()) {
            held.is_closed = held.due > now;
        }
        let waits =
            |state: &PartitionState| state.is_busy || state.whole.as_ref().is_some_and(|held| held.due > now);
        let busy = self.0.iter().filter(|(_, state)| waits(state));
        let busy = busy.map(|(partition, _)| partition.clone()).collect();
        let held = self.0.iter().filter(|(_, state)| !waits(state));
        let held = held.filter_map(|(partition, state)| {
            let subjects = state.held.iter().filter(|(_, held)| held.is_closed);
            let subjects: Vec<String> = subjects.map(|(subject, _)| subject.clone()).collect();
            (!subjects.is_empty()).then(|| (partition.clone(), subjects))
        });
        (busy, held.collect())
    }

    /// A batch of the partition is on its way; the subjects of which it may have one message at a time.
    pub fn begin(&mut self, partition: &Partition) -> HashSet<String> {
        let state = self.0.entry(partition.clone()).or_default();
        state.is_busy = true;
        state.held.keys().cloned().collect()
    }

    /// What became of a batch, as it is written down. A subject whose messages are refused for longer than `retry` has
    /// them given up; none: never.
    pub fn end(
        &mut self,
        partition: &Partition,
        subjects: &[String],
        outcome: Result<(Vec<MessageFate>, KeptConnection)>,
        retry: Option<Duration>,
        supervisor: &Addr<Supervisor>,
    ) -> Vec<DeliveryOutcome> {
        let state = self.0.entry(partition.clone()).or_default();
        state.is_busy = false;
        let fates = match outcome {
            Ok((fates, connection)) => {
                state.whole = None;
                keep(&mut state.connection, connection, supervisor);
                fates
            }
            // Without a server or the right to use it nothing can be sent.
            Err(error) => {
                complain(partition, &error, &mut state.complaints);
                let whole = state.whole.get_or_insert_with(HeldBack::now);
                // Other reasons, such as too many connections, go by.
                let is_lasting = matches!(error.kind, Kind::NoServer | Kind::PermissionDenied);
                if is_lasting && whole.is_over(retry) {
                    whole.due = Instant::now();
                    return vec![DeliveryOutcome::Dead(error); subjects.len()];
                }
                whole.postpone();
                return Vec::new();
            }
        };
        let outcomes = subjects.iter().zip(fates).map(|(subject, fate)| match fate {
            MessageFate::Stored => {
                state.held.remove(subject);
                DeliveryOutcome::Stored
            }
            MessageFate::NotSent => DeliveryOutcome::Waits,
            MessageFate::Refused(error) if is_permanent(&error) => DeliveryOutcome::Dead(error),
            MessageFate::Refused(error) => {
                complain(partition, &error, &mut state.complaints);
                let held = state.held.entry(subject.clone()).or_insert_with(HeldBack::now);
                if held.is_over(retry) {
                    return DeliveryOutcome::Dead(error);
                }
                held.postpone();
                DeliveryOutcome::Waits
            }
        });
        let outcomes = outcomes.collect();
        if state.held.len() > MAX_HELD {
            state.whole.get_or_insert_with(HeldBack::now).postpone();
        }
        outcomes
    }

    /// When something that waits is due.
    pub fn next_due(&self) -> Option<Duration> {
        let now = Instant::now();
        let all = self.0.values().flat_map(|state| {
            let held = state.held.values().chain(&state.whole);
            held.map(|held| held.due)
        });
        let soonest = all.filter(|due| *due > now).min();
        soonest.map(|due| due.saturating_duration_since(now))
    }

    /// The relay has found nothing, in all that it was not told to leave: what was held there is gone.
    pub fn nothing_left(&mut self) {
        let now = Instant::now();
        for state in self.0.values_mut() {
            if !state.is_busy && state.whole.as_ref().is_none_or(|held| held.due <= now) {
                state.whole = None;
                state.held.retain(|_, held| held.is_closed);
            }
        }
    }

    /// Nothing is on its way, and nothing waits.
    pub fn are_idle(&self) -> bool {
        self.0
            .values()
            .all(|state| !state.is_busy && state.held.is_empty() && state.whole.is_none())
    }

    /// The relay is gone: what waits keeps waiting, and connections are left.
    pub fn leave(&mut self, supervisor: &Addr<Supervisor>) {
        for state in self.0.values_mut() {
            state.is_busy = false;
            keep(&mut state.connection, None, supervisor);
        }
        self.0
            .retain(|_, state| !state.held.is_empty() || state.whole.is_some());
    }
}

impl HeldBack {
    fn now() -> HeldBack {
        HeldBack {
            since: Instant::now(),
            attempts: 0,
            due: Instant::now(),
            is_closed: false,
        }
    }

    /// Whether it has been refused for longer than it is tried.
    fn is_over(&self, retry: Option<Duration>) -> bool {
        retry.is_some_and(|retry| self.since.elapsed() >= retry)
    }

    fn postpone(&mut self) {
        self.due = Instant::now() + backoff(BACKOFF, BACKOFF_LIMIT, self.attempts);
        self.attempts += 1;
    }
}

/// Keeps a connection in place of another, which may have no user any more.
fn keep(kept: &mut KeptConnection, connection: KeptConnection, supervisor: &Addr<Supervisor>) {
    if let Some((key, handle)) = std::mem::replace(kept, connection) {
        drop(handle);
        supervisor.do_send(ConnectionLeft(key));
    }
}

fn complain(partition: &Partition, error: &Error, complaints: &mut Flood) {
    if let Some(suppressed) = complaints.pass() {
        log::warn!(
            "messages of the outbox for foreign server \"{}\" wait: {error}{suppressed}",
            partition.server
        );
    }
}
