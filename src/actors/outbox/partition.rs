//! The partitions of an outbox: which are being delivered, and which of their subjects wait because JetStream has
//! refused a message. A plain struct of the outbox actor, without I/O; in the actor thread.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::fate::{MessageFate, is_permanent};
use crate::actors::base::backoff::Backoff;
use crate::channel::outbox::{DeliveryOutcome, Partition};
use crate::error::{Error, Kind, Result};
use crate::flood::Flood;

/// Bounds of the pause before a subject whose message was refused is tried again.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_LIMIT: Duration = Duration::from_secs(5);
/// Most subjects of a partition that are held back one by one; with more, the whole partition is held back.
const MAX_HELD: usize = 100_000;
/// So many subjects are tried again in a second, at most: more would take the time of those that are not refused.
const RETRIES_PER_SECOND: usize = 1000;

/// A subject, or a whole partition, that is held back.
#[derive(Debug)]
struct HeldBack {
    since: Instant,
    backoff: Backoff,
    due: Instant,
    /// The relay was told not to read the subject.
    is_closed: bool,
}

#[derive(Debug)]
struct PartitionState<C> {
    is_busy: bool,
    held: HashMap<String, HeldBack>,
    /// Set while the whole partition is held back.
    whole: Option<HeldBack>,
    /// The connection of the last batch, kept for the next one.
    connection: Option<C>,
    complaints: Flood,
}

impl<C> Default for PartitionState<C> {
    fn default() -> Self {
        PartitionState {
            is_busy: false,
            held: HashMap::new(),
            whole: None,
            connection: None,
            complaints: Flood::default(),
        }
    }
}

/// What has become of a batch: the fate of each message and the connection, or why nothing could be sent.
pub type BatchFate<C> = Result<(Vec<MessageFate>, Option<C>)>;

/// What the relay has to skip: whole partitions, and subjects of other partitions.
pub type Closed = (Vec<Partition>, Vec<(Partition, Vec<String>)>);

/// All partitions of a database, which keep connections of type `C`.
#[derive(Debug)]
pub struct Partitions<C>(HashMap<Partition, PartitionState<C>>);

impl<C> Default for Partitions<C> {
    fn default() -> Self {
        Partitions(HashMap::new())
    }
}

impl<C> Partitions<C> {
    /// What the relay has to skip now.
    pub fn closed(&mut self, now: Instant) -> Closed {
        for held in self.0.values_mut().flat_map(|state| state.held.values_mut()) {
            held.is_closed = held.due > now;
        }
        let waits = |state: &PartitionState<C>| {
            state.is_busy || state.whole.as_ref().is_some_and(|held| held.due > now)
        };
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

    /// A batch of the partition is being delivered. Returns the subjects of which one message at a time may be sent.
    pub fn begin(&mut self, partition: &Partition) -> HashSet<String> {
        let state = self.0.entry(partition.clone()).or_default();
        state.is_busy = true;
        state.held.keys().cloned().collect()
    }

    /// A batch was delivered: returns the outcomes to write down, by the messages' place in the batch; messages without
    /// one were not sent. A subject's message that is refused is given up once the subject has been refused for
    /// `retry`; `None`: never.
    pub fn end(
        &mut self,
        partition: &Partition,
        subjects: &[String],
        delivery: BatchFate<C>,
        retry: Option<Duration>,
        now: Instant,
    ) -> Vec<DeliveryOutcome> {
        let state = self.0.entry(partition.clone()).or_default();
        state.is_busy = false;
        match delivery {
            Ok((fates, connection)) => {
                state.whole = None;
                state.connection = connection;
                let fates = subjects.iter().zip(fates);
                let outcomes =
                    fates.map(|(subject, fate)| state.outcome(partition, subject, fate, retry, now));
                let outcomes = outcomes.collect();
                if state.held.len() > MAX_HELD {
                    state.whole(now).postpone(now);
                }
                outcomes
            }
            Err(error) => state.not_sent(partition, subjects.len(), error, retry, now),
        }
    }

    /// Time until a subject or partition that is held back is due next; `None` if none is.
    pub fn next_due(&self, now: Instant) -> Option<Duration> {
        let all = self.0.values().flat_map(|state| {
            let held = state.held.values().chain(&state.whole);
            held.map(|held| held.due)
        });
        let soonest = all.filter(|due| *due > now).min();
        soonest.map(|due| due.duration_since(now))
    }

    /// The relay has found no messages in what it did not skip: the subjects that were held back there have none any
    /// more.
    pub fn nothing_left(&mut self, now: Instant) {
        for state in self.0.values_mut() {
            if !state.is_busy && state.whole.as_ref().is_none_or(|held| held.due <= now) {
                state.whole = None;
                state.held.retain(|_, held| held.is_closed);
            }
        }
    }

    /// Whether no batch is being delivered, and nothing is held back.
    pub fn are_idle(&self) -> bool {
        self.0
            .values()
            .all(|state| !state.is_busy && state.held.is_empty() && state.whole.is_none())
    }

    /// The relay is gone: what is held back stays so, and connections are no longer used.
    pub fn relay_gone(&mut self) {
        for state in self.0.values_mut() {
            state.is_busy = false;
            state.connection = None;
        }
        self.0
            .retain(|_, state| !state.held.is_empty() || state.whole.is_some());
    }
}

impl<C> PartitionState<C> {
    fn whole(&mut self, now: Instant) -> &mut HeldBack {
        self.whole.get_or_insert_with(|| HeldBack::new(now))
    }

    /// The outcome to write down for a message.
    fn outcome(
        &mut self,
        partition: &Partition,
        subject: &String,
        fate: MessageFate,
        retry: Option<Duration>,
        now: Instant,
    ) -> DeliveryOutcome {
        match fate {
            MessageFate::Stored => {
                self.held.remove(subject);
                DeliveryOutcome::Stored
            }
            MessageFate::NotSent => DeliveryOutcome::Waits,
            MessageFate::Refused(error) if is_permanent(&error) => DeliveryOutcome::Dead(error),
            MessageFate::Refused(error) => {
                report(partition, &error, &mut self.complaints);
                let spread = spread(self.held.len());
                let held = self.held.entry(subject.clone());
                let held = held.or_insert_with(|| HeldBack::new(now));
                if held.is_over(retry, now) {
                    return DeliveryOutcome::Dead(error);
                }
                held.postpone(now);
                held.due += spread;
                DeliveryOutcome::Waits
            }
        }
    }

    /// Nothing of a batch could be sent, for want of a server or of the right to use it, say: the whole partition is
    /// held back.
    fn not_sent(
        &mut self,
        partition: &Partition,
        messages: usize,
        error: Error,
        retry: Option<Duration>,
        now: Instant,
    ) -> Vec<DeliveryOutcome> {
        report(partition, &error, &mut self.complaints);
        let whole = self.whole(now);
        // Other reasons, such as too many connections, pass by themselves.
        let is_lasting = matches!(error.kind, Kind::NoServer | Kind::PermissionDenied);
        if is_lasting && whole.is_over(retry, now) {
            whole.due = now;
            return vec![DeliveryOutcome::Dead(error); messages];
        }
        whole.postpone(now);
        Vec::new()
    }
}

/// What is added to the pause of a subject, so that many that are held back are tried again one after another.
fn spread(held: usize) -> Duration {
    let all = Duration::from_secs_f64(held as f64 / RETRIES_PER_SECOND as f64);
    all.mul_f64(rand::random())
}

impl HeldBack {
    fn new(now: Instant) -> HeldBack {
        HeldBack {
            since: now,
            backoff: Backoff::new(BACKOFF, BACKOFF_LIMIT),
            due: now,
            is_closed: false,
        }
    }

    /// Whether messages are given up, because they have been refused for `retry`; `None`: never.
    fn is_over(&self, retry: Option<Duration>, now: Instant) -> bool {
        retry.is_some_and(|retry| now.duration_since(self.since) >= retry)
    }

    fn postpone(&mut self, now: Instant) {
        self.due = now + self.backoff.failed();
    }
}

fn report(partition: &Partition, error: &Error, complaints: &mut Flood) {
    if let Some(suppressed) = complaints.pass() {
        log::warn!(
            "messages of the outbox for foreign server \"{}\" wait: {error}{suppressed}",
            partition.server
        );
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn partition() -> Partition {
        Partition {
            server: "nats".into(),
            role: 10,
        }
    }

    fn subjects(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    fn refused(kind: Kind) -> MessageFate {
        MessageFate::Refused(Error::new(kind, "no"))
    }

    const RETRY: Option<Duration> = Some(Duration::from_secs(60));

    /// A partition in which a message of subject "full" was refused, and the one behind it was not sent.
    fn held(now: Instant) -> Partitions<()> {
        let mut partitions = Partitions::default();
        assert!(partitions.begin(&partition()).is_empty());
        let fates = vec![
            MessageFate::Stored,
            refused(Kind::StreamFull),
            MessageFate::NotSent,
        ];
        let names = subjects(&["fine", "full", "full"]);
        let outcomes = partitions.end(&partition(), &names, Ok((fates, None)), RETRY, now);
        assert_eq!(
            outcomes,
            [
                DeliveryOutcome::Stored,
                DeliveryOutcome::Waits,
                DeliveryOutcome::Waits
            ]
        );
        partitions
    }

    #[test]
    fn a_busy_partition_is_not_read() {
        let now = Instant::now();
        let mut partitions = Partitions::<()>::default();
        partitions.begin(&partition());
        assert_eq!(partitions.closed(now), (vec![partition()], Vec::new()));
        assert!(!partitions.are_idle());
    }

    #[test]
    fn what_is_refused_waits_by_subject_and_then_goes_one_at_a_time() {
        let now = Instant::now();
        let mut partitions = held(now);
        // The pause is random. If it is zero, nothing waits.
        if let Some(due) = partitions.next_due(now) {
            assert!(due <= BACKOFF);
            let (busy, closed) = partitions.closed(now);
            assert_eq!(
                (busy, closed),
                (Vec::new(), vec![(partition(), subjects(&["full"]))])
            );
        }
        let later = now + BACKOFF;
        assert_eq!(partitions.closed(later), (Vec::new(), Vec::new()));
        assert_eq!(
            partitions.begin(&partition()),
            HashSet::from(["full".to_string()])
        );
        let stored = Ok((vec![MessageFate::Stored], None));
        partitions.end(&partition(), &subjects(&["full"]), stored, RETRY, later);
        assert!(partitions.are_idle());
    }

    #[test]
    fn what_is_refused_for_too_long_or_for_ever_is_given_up() {
        let now = Instant::now();
        let mut partitions = held(now);
        let late = now + Duration::from_secs(60);
        let again = |partitions: &mut Partitions<()>, retry, now| {
            let delivery = Ok((vec![refused(Kind::StreamFull)], None));
            partitions.end(&partition(), &subjects(&["full"]), delivery, retry, now)
        };
        assert_eq!(
            again(&mut partitions, None, late),
            [DeliveryOutcome::Waits],
            "tried for ever"
        );
        assert!(matches!(
            again(&mut partitions, RETRY, late)[..],
            [DeliveryOutcome::Dead(_)]
        ));
        let mut partitions = Partitions::<()>::default();
        let delivery = Ok((vec![refused(Kind::PayloadTooLarge)], None));
        let outcomes = partitions.end(&partition(), &subjects(&["large"]), delivery, None, now);
        assert!(
            matches!(outcomes[..], [DeliveryOutcome::Dead(_)]),
            "no time helps"
        );
        assert!(partitions.are_idle());
    }

    #[test]
    fn without_a_server_the_whole_partition_waits() {
        let now = Instant::now();
        let mut partitions = Partitions::<()>::default();
        let names = subjects(&["a", "b"]);
        let fail = |partitions: &mut Partitions<()>, kind, now| {
            partitions.begin(&partition());
            partitions.end(&partition(), &names, Err(Error::new(kind, "no")), RETRY, now)
        };
        assert!(fail(&mut partitions, Kind::NoServer, now).is_empty());
        assert!(!partitions.are_idle());
        let late = now + Duration::from_secs(60);
        assert!(
            fail(&mut partitions, Kind::TooManyConnections, late).is_empty(),
            "that goes by"
        );
        assert_eq!(fail(&mut partitions, Kind::NoServer, late).len(), 2);
        partitions.nothing_left(late);
        assert!(partitions.are_idle());
    }

    #[test]
    fn too_many_subjects_that_wait_hold_the_partition() {
        let now = Instant::now();
        let mut partitions = Partitions::<()>::default();
        let names: Vec<String> = (0..=MAX_HELD).map(|n| n.to_string()).collect();
        let fates = vec![refused(Kind::StreamFull); names.len()];
        partitions.end(&partition(), &names, Ok((fates, None)), RETRY, now);
        assert!(partitions.0[&partition()].whole.is_some());
    }

    #[test]
    fn a_connection_is_kept_until_the_relay_leaves() {
        let now = Instant::now();
        let mut partitions = Partitions::default();
        let connection = Rc::new(());
        let delivery = Ok((vec![MessageFate::Stored], Some(connection.clone())));
        partitions.end(&partition(), &subjects(&["a"]), delivery, RETRY, now);
        assert_eq!(Rc::strong_count(&connection), 2);
        partitions.relay_gone();
        assert_eq!(Rc::strong_count(&connection), 1);
    }
}
