//! What the outbox of one database needs next: whether its relay is started, reads, waits or leaves. A plain struct of
//! the outbox actor, without I/O; in the actor thread.

use std::time::{Duration, Instant};

use super::partition::Partitions;
use crate::actors::base::backoff::exponential;
use crate::actors::workers::launcher::{RESTART, RESTART_LIMIT};
use crate::channel::outbox::{Fetch, Settled};
use crate::channel::worker_id::WorkerId;

/// Under load, a relay reads no more often than this, so that each read finds more messages. The first message after a
/// pause does not wait.
const READ_INTERVAL: Duration = Duration::from_millis(5);
/// After a batch of at least so many messages, the next one is read at once.
const WORTHWHILE: usize = 500;

/// The next step for the outbox of a database.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Ask for the next step again when this time has passed.
    Wait(Duration),
    StartRelay,
    /// The relay is to carry out this order.
    Order(Box<Fetch>),
    /// The relay is to leave.
    Leave,
    /// There is no relay, and none may be started.
    Drained,
}

/// The worker that reads the outbox.
#[derive(Debug)]
struct Relay {
    worker: WorkerId,
    /// The relay has opened its channel.
    is_joined: bool,
    /// The relay carries out an order.
    is_busy: bool,
    /// The order has outcomes that the relay writes down.
    is_writing: bool,
    is_leaving: bool,
    idle_since: Instant,
}

/// The outbox of one database, whose partitions keep connections of type `C`.
#[derive(Debug)]
pub struct DatabaseOutbox<C> {
    relay: Option<Relay>,
    /// There may be messages to read.
    is_wanted: bool,
    /// Outcomes of batches that the relay has to write down.
    settled: Vec<Settled>,
    pub partitions: Partitions<C>,
    /// Number of drains that were not resumed yet.
    draining: u32,
    /// No relay is started, and nothing is read, before this time.
    not_before: Option<Instant>,
    failures: u32,
}

impl<C> Default for DatabaseOutbox<C> {
    fn default() -> Self {
        DatabaseOutbox {
            relay: None,
            is_wanted: false,
            settled: Vec::new(),
            partitions: Partitions::default(),
            draining: 0,
            not_before: None,
            failures: 0,
        }
    }
}

impl<C> DatabaseOutbox<C> {
    /// The relay; `None` if there is none.
    pub fn worker(&self) -> Option<WorkerId> {
        self.relay.as_ref().map(|relay| relay.worker)
    }

    /// There may be something to deliver.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Drains the database: its relay has to leave.
    pub fn drain(&mut self) {
        self.draining += 1;
    }

    /// Undoes one [`DatabaseOutbox::drain`].
    pub fn resume(&mut self) {
        self.draining = self.draining.saturating_sub(1);
    }

    /// The next step. `is_enabled`: whether anything may be delivered at all.
    pub fn step(&mut self, is_enabled: bool, now: Instant) -> Step {
        let may_stay = is_enabled && self.draining == 0;
        if !may_stay {
            return match &mut self.relay {
                Some(relay) => {
                    relay.is_leaving = true;
                    Step::Leave
                }
                None => Step::Drained,
            };
        }
        if !self.is_wanted && self.settled.is_empty() {
            return Step::Nothing;
        }
        if let Some(time) = self.not_before.filter(|time| *time > now) {
            return Step::Wait(time.duration_since(now));
        }
        let Some(relay) = &mut self.relay else {
            return Step::StartRelay;
        };
        if !relay.is_joined || relay.is_busy || relay.is_leaving {
            return Step::Nothing;
        }
        self.is_wanted = false;
        let (busy, held) = self.partitions.closed(now);
        let settled = std::mem::take(&mut self.settled);
        relay.is_writing = !settled.is_empty();
        relay.is_busy = true;
        Step::Order(Box::new(Fetch { settled, busy, held }))
    }

    /// A relay is being started.
    pub fn started(&mut self, worker: WorkerId, now: Instant) {
        self.relay = Some(Relay {
            worker,
            is_joined: false,
            is_busy: false,
            is_writing: false,
            is_leaving: false,
            idle_since: now,
        });
    }

    /// The relay has opened its channel. `true` if it is to leave at once.
    pub fn joined(&mut self) -> bool {
        self.not_before = None;
        self.relay.as_mut().is_some_and(|relay| {
            relay.is_joined = true;
            relay.is_leaving
        })
    }

    /// The relay has carried out its order, and has read so many messages; `None` if it found none.
    pub fn fetched(&mut self, messages: Option<usize>, now: Instant) {
        let Some(relay) = &mut self.relay else {
            return;
        };
        relay.is_busy = false;
        relay.idle_since = now;
        // Reading alone is no success: a relay that reads, but fails to remove delivered messages, has them sent again
        // and again.
        let is_done = messages.is_none() && self.partitions.are_idle() && self.settled.is_empty();
        if relay.is_writing || is_done {
            self.failures = 0;
        }
        if messages.is_none_or(|messages| messages < WORTHWHILE) {
            self.not_before = Some(now + READ_INTERVAL);
        }
        match messages {
            // There may be messages of other partitions.
            Some(_) => self.is_wanted = true,
            None => self.partitions.nothing_left(now),
        }
    }

    /// The outcomes of a batch are to be written down.
    pub fn settle(&mut self, settled: Settled) {
        self.settled.push(settled);
        self.is_wanted = true;
    }

    /// How long the relay may go on without anything to do: zero if it has had nothing to do for `limit`, and is to
    /// leave. `None` if it works, or there is no relay.
    pub fn idle_for(&mut self, limit: Duration, now: Instant) -> Option<Duration> {
        let is_idle = !self.is_wanted && self.settled.is_empty() && self.partitions.are_idle();
        let relay = self.relay.as_mut().filter(|relay| is_idle && !relay.is_busy)?;
        let rest = limit.saturating_sub(now.duration_since(relay.idle_since));
        relay.is_leaving |= rest.is_zero();
        Some(rest)
    }

    /// The relay is gone. Another one reads its messages again, and JetStream recognises repetitions by their message
    /// ids.
    pub fn gone(&mut self, now: Instant) {
        let Some(relay) = self.relay.take() else {
            return;
        };
        let had_more = !self.partitions.are_idle() || !self.settled.is_empty() || relay.is_busy;
        self.settled.clear();
        self.partitions.relay_gone();
        if !relay.is_leaving {
            let wait = exponential(RESTART, RESTART_LIMIT, self.failures);
            self.failures += 1;
            self.not_before = Some(now + wait);
        }
        self.is_wanted |= had_more;
    }

    /// No worker slot is free for the relay.
    pub fn lacks_slot(&mut self, now: Instant) {
        self.relay = None;
        self.not_before = Some(now + RESTART_LIMIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::outbox::{DeliveryOutcome, Partition};

    const RELAY: fn() -> WorkerId = || WorkerId::outbox_relay(1);

    /// An outbox whose relay waits for orders.
    fn ready(now: Instant) -> DatabaseOutbox<()> {
        let mut outbox = DatabaseOutbox::default();
        outbox.want();
        assert_eq!(outbox.step(true, now), Step::StartRelay);
        outbox.started(RELAY(), now);
        assert_eq!(outbox.step(true, now), Step::Nothing, "not joined yet");
        assert!(!outbox.joined());
        outbox
    }

    fn is_order(step: Step) -> bool {
        matches!(step, Step::Order(_))
    }

    #[test]
    fn a_relay_is_started_when_there_is_something_and_reads_one_batch_at_a_time() {
        let now = Instant::now();
        assert_eq!(DatabaseOutbox::<()>::default().step(true, now), Step::Nothing);
        let mut outbox = ready(now);
        assert!(is_order(outbox.step(true, now)));
        outbox.want();
        assert_eq!(outbox.step(true, now), Step::Nothing, "it reads");
        outbox.fetched(Some(1000), now);
        assert!(is_order(outbox.step(true, now)), "there may be more");
        outbox.fetched(Some(1), now);
        assert_eq!(outbox.step(true, now), Step::Wait(READ_INTERVAL), "few at a time");
    }

    #[test]
    fn what_was_delivered_is_written_down() {
        let now = Instant::now();
        let mut outbox = ready(now);
        let settled = Settled {
            partition: Partition {
                server: "nats".into(),
                role: 10,
            },
            outcomes: vec![DeliveryOutcome::Stored],
        };
        outbox.settle(settled.clone());
        let Step::Order(fetch) = outbox.step(true, now) else {
            panic!("no order")
        };
        assert_eq!(fetch.settled, [settled]);
    }

    #[test]
    fn somebody_who_wants_the_database_has_the_relay_leave() {
        let now = Instant::now();
        let mut outbox = ready(now);
        outbox.drain();
        assert_eq!(outbox.step(true, now), Step::Leave);
        outbox.gone(now);
        assert_eq!(outbox.step(true, now), Step::Drained);
        outbox.resume();
        assert_eq!(
            outbox.step(true, now),
            Step::StartRelay,
            "no pause after a relay that was told to leave"
        );
        assert_eq!(
            outbox.step(false, now),
            Step::Drained,
            "a standby delivers nothing"
        );
    }

    #[test]
    fn a_relay_that_fails_is_started_ever_later() {
        let now = Instant::now();
        let mut outbox = DatabaseOutbox::<()>::default();
        outbox.want();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let start = outbox.not_before.unwrap_or(now);
            assert_eq!(outbox.step(true, start), Step::StartRelay);
            outbox.started(RELAY(), start);
            outbox.joined();
            assert!(is_order(outbox.step(true, start)));
            outbox.gone(start);
            let Step::Wait(wait) = outbox.step(true, start) else {
                panic!("no pause")
            };
            waits.push(wait.as_millis());
        }
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn an_idle_relay_leaves_after_a_while() {
        let now = Instant::now();
        let limit = Duration::from_secs(60);
        let mut outbox = ready(now);
        assert_eq!(outbox.idle_for(limit, now), None, "something is wanted");
        assert!(is_order(outbox.step(true, now)));
        assert_eq!(outbox.idle_for(limit, now), None, "it reads");
        outbox.fetched(None, now);
        assert_eq!(outbox.idle_for(limit, now + limit / 2), Some(limit / 2));
        assert_eq!(outbox.idle_for(limit, now + limit), Some(Duration::ZERO));
        outbox.want();
        assert_eq!(outbox.step(true, now + limit), Step::Nothing, "it is leaving");
        outbox.gone(now + limit);
        assert_eq!(outbox.step(true, now + limit), Step::StartRelay);
    }

    #[test]
    fn without_a_slot_the_start_is_tried_again_later() {
        let now = Instant::now();
        let mut outbox = DatabaseOutbox::<()>::default();
        outbox.want();
        outbox.started(RELAY(), now);
        outbox.lacks_slot(now);
        assert_eq!(outbox.step(true, now), Step::Wait(RESTART_LIMIT));
        assert_eq!(outbox.worker(), None);
    }
}
