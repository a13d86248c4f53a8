//! Decides whether the consumer of a durable subscription is kept, created, or removed and created anew, from what
//! JetStream has and how far the database is. Pure; `consumer.rs` carries the plan out.

use std::time::Duration;

use async_nats::datetime::{DateTime, from_nanos};
use async_nats::jetstream::consumer::{AckPolicy, Config, DeliverPolicy, Info, ReplayPolicy};
use async_nats::jetstream::stream::RetentionPolicy;

use crate::actors::jetstream::answers::{ConsumerLimits, StreamInfo};
use crate::channel::work::{Consumer, DeliverFrom};
use crate::error::{Error, Kind, Result};
use crate::nats::names::OWN_CONSUMER;

/// Most messages that may be ack pending: those with executors, and those that wait to be tried again.
const MAX_ACK_PENDING: i64 = 65_536;

/// What to do before pulling begins.
#[derive(Debug)]
pub struct Plan {
    /// The existing consumer is removed before one with `config` is created.
    pub removes_former: bool,
    /// Configuration of the consumer to create, or to update.
    pub config: Config,
    /// The consumer has acknowledged messages up to the first sequence, and the database has only those up to the
    /// second; `None` if nothing is lost.
    pub lost: Option<(u64, u64)>,
    /// How a new consumer that has taken up the state of a former one is recognised.
    leftover: Leftover,
}

/// How the state of a former consumer is recognised in a new one. A nats-server that is killed while it removes a
/// consumer leaves the consumer's state behind, and the next consumer of that name takes the state up: with its
/// deliveries, and with acknowledgements of messages that the database has lost.
#[derive(Debug, PartialEq, Eq)]
enum Leftover {
    /// Not at all: the consumer existed, or others may rightly have used it.
    Impossible,
    /// Nobody else uses the consumer, so any delivery is the former one's.
    AnyDelivery,
    /// Others may use the consumer, and may have created it just now, so only acknowledgements beyond this sequence are
    /// the former one's.
    AcknowledgedBeyond(u64),
}

/// How far the database is.
#[derive(Clone, Copy)]
pub struct Done {
    /// All messages of the stream up to this sequence are done with; `None` if that is not known.
    pub floor: Option<u64>,
    /// Somebody has said where to go on, and an existing consumer is elsewhere.
    pub is_sought: bool,
    /// This was read just now, so that a consumer which is further has acknowledged messages that the database has lost,
    /// in a failover say.
    pub is_read: bool,
    /// The existing consumer is this very subscription's, whatever its name.
    pub is_own: bool,
}

/// Decides what the subscription's consumer needs. Fails with `InvalidArgument` if the time to begin at is not one.
pub fn plan(
    consumer: &Consumer,
    Done {
        floor,
        is_sought,
        is_read,
        is_own: is_made_here,
    }: Done,
    stream: &StreamInfo,
    existing: Option<&Info>,
) -> Result<Plan> {
    let retention = stream.config.retention;
    // A consumer that the user has named may be used by others too.
    let is_own = consumer.durable.starts_with(OWN_CONSUMER);
    // Without a consumer, a stream with interest retention drops messages that are not acknowledged.
    let keeps_consumer = retention == RetentionPolicy::Interest;
    let lost = existing
        .map(|existing| existing.ack_floor.stream_sequence)
        .zip(floor)
        .filter(|(acknowledged, floor)| *floor > 0 && acknowledged > floor);
    // Messages that a former runtime worker had taken come at once, and in order, from a new consumer; the former
    // consumer would wait `ack_wait` for their acknowledgements. For a new consumer it must be known where to begin.
    let is_made_anew = consumer.stop_on_failure || lost.is_some() || (is_read && (is_own || is_made_here));
    let removes_former =
        existing.is_some() && !keeps_consumer && (is_sought || (floor.is_some() && is_made_anew));
    let former = existing.filter(|_| !removes_former);
    // A work queue holds only messages that are not acknowledged, and its consumers cannot begin elsewhere than at the
    // first.
    let floor = if retention == RetentionPolicy::WorkQueue {
        Some(0)
    } else {
        floor
    };
    let leftover = match (former, floor) {
        (Some(_), _) => Leftover::Impossible,
        _ if keeps_consumer => Leftover::Impossible,
        _ if is_own => Leftover::AnyDelivery,
        // Not on a work queue, where acknowledgements may be for messages that others have processed.
        (None, Some(floor)) if retention == RetentionPolicy::Limits => Leftover::AcknowledgedBeyond(floor),
        _ => Leftover::Impossible,
    };
    let mut config = configuration(consumer, floor, former, &stream.config.consumer_limits)?;
    // Whoever has paused the consumer has not paused it for this runtime worker alone.
    config.pause_until = existing
        .filter(|existing| existing.paused)
        .and_then(|existing| existing.config.pause_until);
    Ok(Plan {
        removes_former,
        config,
        lost: lost.filter(|_| removes_former && is_read && !is_sought),
        leftover,
    })
}

impl Plan {
    /// Whether a consumer that was just created has the state of a former one.
    pub fn is_leftover(&self, made: &Info) -> bool {
        let has_delivered = made.delivered.consumer_sequence > 0;
        has_delivered
            && match self.leftover {
                Leftover::Impossible => false,
                Leftover::AnyDelivery => true,
                Leftover::AcknowledgedBeyond(floor) => made.ack_floor.stream_sequence > floor,
            }
    }
}

fn configuration(
    consumer: &Consumer,
    floor: Option<u64>,
    former: Option<&Info>,
    limits: &ConsumerLimits,
) -> Result<Config> {
    let (filter_subject, filter_subjects) = match consumer.filter_subjects.as_slice() {
        [one] => (one.clone(), Vec::new()),
        many => (String::new(), many.to_vec()),
    };
    Ok(Config {
        name: Some(consumer.durable.clone()),
        durable_name: Some(consumer.durable.clone()),
        deliver_policy: match former {
            // JetStream does not let an existing consumer begin elsewhere.
            Some(former) => former.config.deliver_policy,
            None => begin(&consumer.start, floor)?,
        },
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_millis(consumer.ack_wait_ms),
        // Without a limit, because the subscription itself gives messages up, and keeps them as dead letters.
        max_deliver: -1,
        max_ack_pending: limits
            .max_ack_pending
            .filter(|limit| *limit > 0)
            .map_or(MAX_ACK_PENDING, |limit| limit.min(MAX_ACK_PENDING)),
        replay_policy: ReplayPolicy::Instant,
        filter_subject,
        filter_subjects,
        ..Config::default()
    })
}

/// Where a new consumer begins. `floor` is the database's ack floor.
fn begin(start: &DeliverFrom, floor: Option<u64>) -> Result<DeliverPolicy> {
    let from = |start_sequence| DeliverPolicy::ByStartSequence { start_sequence };
    Ok(match (floor, start) {
        (Some(0), _) | (None, DeliverFrom::All) => DeliverPolicy::All,
        (Some(floor), _) => from(floor.saturating_add(1)),
        (None, DeliverFrom::New) => DeliverPolicy::New,
        (None, DeliverFrom::Sequence(start)) => from(*start),
        (None, DeliverFrom::Time(time)) => DeliverPolicy::ByStartTime {
            start_time: time_of(*time)?,
        },
    })
}

fn time_of(us: i64) -> Result<DateTime> {
    let nanoseconds = i64::try_from(i128::from(us) * 1000).ok();
    let time = nanoseconds.and_then(|nanoseconds| from_nanos(nanoseconds.into()).ok());
    time.ok_or_else(|| {
        let message = "the time to begin at is beyond what JetStream can count";
        Error::new(Kind::InvalidArgument, message)
    })
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::consumer::SequenceInfo;

    use super::*;
    use crate::actors::jetstream::answers::{StreamConfig, StreamState};

    const OTHERS: &str = "shared";

    fn subscription(durable: &str) -> Consumer {
        Consumer {
            id: "1".into(),
            cluster: 7,
            durable: durable.into(),
            domain: None,
            filter_subjects: Vec::new(),
            start: DeliverFrom::New,
            batch_size: 1,
            ack_wait_ms: 30_000,
            max_deliveries: 5,
            backoff_ms: Vec::new(),
            stop_on_failure: false,
            resumed: 0,
        }
    }

    fn own() -> Consumer {
        subscription(&format!("{OWN_CONSUMER}abc"))
    }

    fn stream(retention: RetentionPolicy) -> StreamInfo {
        StreamInfo {
            created: "now".into(),
            config: StreamConfig {
                retention,
                consumer_limits: ConsumerLimits::default(),
            },
            state: StreamState {
                last_seq: 100,
                num_subjects: 0,
                subjects: Default::default(),
            },
            domain: None,
            total: None,
        }
    }

    /// A consumer that has delivered and acknowledged up to these sequences.
    fn info(delivered: u64, acknowledged: u64) -> Info {
        let json = serde_json::json!({
            "stream_name": "s", "name": "c", "created": "2026-01-01T00:00:00Z",
            "config": {"deliver_policy": "by_start_sequence", "opt_start_seq": 5, "ack_policy": "explicit",
                       "replay_policy": "instant"},
            "delivered": {"consumer_seq": delivered, "stream_seq": delivered},
            "ack_floor": {"consumer_seq": acknowledged, "stream_seq": acknowledged},
            "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": 0, "num_pending": 0,
        });
        serde_json::from_value(json).expect("a consumer")
    }

    fn planned(consumer: &Consumer, floor: Option<u64>, is_first: bool, existing: Option<&Info>) -> Plan {
        let stream = stream(RetentionPolicy::Limits);
        plan(consumer, done(floor, is_first), &stream, existing).expect("a plan")
    }

    fn done(floor: Option<u64>, is_read: bool) -> Done {
        Done {
            floor,
            is_sought: false,
            is_read,
            is_own: false,
        }
    }

    #[test]
    fn a_new_subscription_begins_where_it_was_told_to() {
        let plan = planned(&own(), None, true, None);
        assert!(!plan.removes_former);
        assert_eq!(plan.config.deliver_policy, DeliverPolicy::New);
        let mut consumer = own();
        consumer.start = DeliverFrom::Sequence(9);
        let from = |start_sequence| DeliverPolicy::ByStartSequence { start_sequence };
        assert_eq!(
            planned(&consumer, None, true, None).config.deliver_policy,
            from(9)
        );
        assert_eq!(
            planned(&consumer, Some(40), true, None).config.deliver_policy,
            from(41),
            "it knows better"
        );
        consumer.start = DeliverFrom::Time(i64::MAX);
        let error = plan_of_nothing(&consumer).expect_err("no time");
        assert_eq!(error.kind, Kind::InvalidArgument);
    }

    fn plan_of_nothing(consumer: &Consumer) -> Result<Plan> {
        plan(consumer, done(None, true), &stream(RetentionPolicy::Limits), None)
    }

    #[test]
    fn another_stream_of_the_name_is_read_from_its_beginning() {
        let found = planned(&own(), Some(0), true, None);
        assert_eq!(found.config.deliver_policy, DeliverPolicy::All);
    }

    #[test]
    fn its_own_consumer_is_made_anew_once_a_runtime() {
        let existing = info(50, 40);
        let first = planned(&own(), Some(40), true, Some(&existing));
        assert!(first.removes_former && first.lost.is_none());
        assert_eq!(
            first.config.deliver_policy,
            DeliverPolicy::ByStartSequence { start_sequence: 41 }
        );
        let later = planned(&own(), Some(40), false, Some(&existing));
        assert!(!later.removes_former);
        assert_eq!(later.config.deliver_policy, existing.config.deliver_policy);
        let mut stops = own();
        stops.stop_on_failure = true;
        assert!(
            planned(&stops, Some(40), false, Some(&existing)).removes_former,
            "order matters"
        );
        assert!(
            !planned(&own(), None, true, Some(&existing)).removes_former,
            "where would it begin?"
        );
    }

    #[test]
    fn a_consumer_of_others_is_kept_unless_the_database_has_lost_messages() {
        let existing = info(50, 40);
        let consumer = subscription(OTHERS);
        assert!(!planned(&consumer, Some(40), true, Some(&existing)).removes_former);
        let behind = planned(&consumer, Some(30), true, Some(&existing));
        assert!(behind.removes_former);
        assert_eq!(behind.lost, Some((40, 30)));
        let made_here = Done {
            is_own: true,
            ..done(Some(40), true)
        };
        let stream = stream(RetentionPolicy::Limits);
        let plan = plan(&consumer, made_here, &stream, Some(&existing)).expect("a plan");
        assert!(plan.removes_former, "what waits to be tried again comes at once");
        let later = planned(&consumer, Some(30), false, Some(&existing));
        assert!(
            later.removes_former && later.lost.is_none(),
            "somebody else has acknowledged them"
        );
    }

    #[test]
    fn retention_decides_what_may_be_removed() {
        let of = |retention, existing: Option<&Info>| {
            plan(&own(), done(Some(40), true), &stream(retention), existing).expect("a plan")
        };
        let existing = info(50, 40);
        assert!(!of(RetentionPolicy::Interest, Some(&existing)).removes_former);
        let queue = of(RetentionPolicy::WorkQueue, Some(&existing));
        assert!(queue.removes_former);
        assert_eq!(queue.config.deliver_policy, DeliverPolicy::All);
    }

    #[test]
    fn a_subscription_that_was_moved_has_its_consumer_made_anew() {
        let existing = info(50, 40);
        let consumer = subscription(OTHERS);
        let moved = |floor| Done {
            is_sought: true,
            ..done(floor, true)
        };
        let stream = stream(RetentionPolicy::Limits);
        for floor in [None, Some(0), Some(60)] {
            let plan = plan(&consumer, moved(floor), &stream, Some(&existing)).expect("a plan");
            assert!(plan.removes_former && plan.lost.is_none(), "{floor:?}");
        }
    }

    #[test]
    fn the_remains_of_a_former_consumer_are_recognised() {
        let made = info(7, 6);
        let fresh = info(0, 0);
        let own_plan = planned(&own(), Some(40), true, None);
        assert!(own_plan.is_leftover(&made) && !own_plan.is_leftover(&fresh));
        let others = planned(&subscription(OTHERS), Some(40), true, None);
        assert!(!others.is_leftover(&made), "somebody else may have made it");
        assert!(others.is_leftover(&info(50, 45)));
        let kept = planned(&own(), Some(40), false, Some(&made));
        assert!(!kept.is_leftover(&made));
        let SequenceInfo { stream_sequence, .. } = made.ack_floor;
        assert_eq!(stream_sequence, 6);
    }

    #[test]
    fn the_stream_may_allow_fewer_ack_pending_messages() {
        for (limit, expected) in [
            (None, MAX_ACK_PENDING),
            (Some(0), MAX_ACK_PENDING),
            (Some(10), 10),
            (Some(100_000), MAX_ACK_PENDING),
        ] {
            let mut stream = stream(RetentionPolicy::Limits);
            stream.config.consumer_limits.max_ack_pending = limit;
            let plan = plan(&own(), done(None, true), &stream, None).expect("a plan");
            assert_eq!(plan.config.max_ack_pending, expected, "{limit:?}");
        }
    }

    #[test]
    fn a_pause_is_kept() {
        let mut existing = info(50, 40);
        existing.config.pause_until = from_nanos(4_000_000_000_000_000_000).ok();
        let pause = |existing: &Info| planned(&own(), Some(40), true, Some(existing)).config.pause_until;
        assert_eq!(pause(&existing), None, "it is over");
        existing.paused = true;
        assert_eq!(pause(&existing), existing.config.pause_until);
        assert!(pause(&existing).is_some());
    }

    #[test]
    fn several_filters_are_a_list() {
        let mut consumer = own();
        consumer.filter_subjects = vec!["a".into()];
        let config = planned(&consumer, None, true, None).config;
        assert_eq!(
            (config.filter_subject.as_str(), config.filter_subjects.len()),
            ("a", 0)
        );
        consumer.filter_subjects.push("b".into());
        let config = planned(&consumer, None, true, None).config;
        assert_eq!(
            (config.filter_subject.as_str(), config.filter_subjects.len()),
            ("", 2)
        );
    }
}
