//! Follows the deliveries of a durable subscription's consumer, which are numbered: a number that is missing is a message
//! that was lost on its way, or that another client has taken. Pure; in the actor thread.

use async_nats::jetstream::consumer::Info;

use crate::actors::jetstream::consumer::{Found, PendingPull};
use crate::channel::work::StreamPosition;
use crate::nats::ack::Delivery;

/// The state of the consumer, and the number of the last delivery when JetStream was asked for it.
pub struct Answered {
    pub info: Info,
    pub consumer_sequence: u64,
}

/// Sequences of the stream between which there are messages that the consumer has delivered, but not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub after: u64,
    pub before: u64,
}

/// Follows the consumer's deliveries.
pub struct Deliveries {
    /// What was pulled.
    pub asked: PendingPull,
    /// Number of the last delivery.
    pub consumer_sequence: u64,
    /// Sequence in the stream of the last message that was delivered for the first time.
    stream_sequence: u64,
    /// Where deliveries are missing: they were lost, and come again, or another client has taken them.
    pub gap: Option<Gap>,
    /// The number of the last delivery that JetStream has said last, where that was none of those here.
    elsewhere: Option<u64>,
}

impl Deliveries {
    pub fn from(found: &Found) -> Deliveries {
        Deliveries {
            asked: PendingPull::default(),
            consumer_sequence: found.consumer_sequence,
            stream_sequence: found.stream_sequence,
            gap: None,
            elsewhere: None,
        }
    }

    /// Whether the consumer counts its deliveries anew: its stream was lost, and is another one now.
    pub fn begins_anew(&self, delivery: Delivery) -> bool {
        delivery.consumer_sequence <= self.consumer_sequence
            && delivery.deliveries == 1
            && delivery.sequence <= self.stream_sequence
    }

    /// Notes a gap up to a message of the stream.
    fn note_gap(&mut self, before: u64) {
        let after = self
            .gap
            .map_or(self.stream_sequence, |gap| gap.after.min(self.stream_sequence));
        let before = self.gap.map_or(before, |gap| gap.before.max(before));
        self.gap = Some(Gap { after, before });
    }

    /// Compares with what JetStream says of its deliveries. A delivery that JetStream has said twice is not on its way.
    pub fn compare(&mut self, answered: &Answered) {
        let delivered = &answered.info.delivered;
        let is_elsewhere = delivered.consumer_sequence > self.consumer_sequence
            && answered.consumer_sequence == self.consumer_sequence;
        if is_elsewhere && self.elsewhere == Some(delivered.consumer_sequence) {
            self.note_gap(delivered.stream_sequence + 1);
            self.consumer_sequence = delivered.consumer_sequence;
            self.stream_sequence = self.stream_sequence.max(delivered.stream_sequence);
        }
        self.elsewhere = is_elsewhere.then_some(delivered.consumer_sequence);
    }

    /// The stream position of a delivered message. The stream has no message for this consumer between this one and the
    /// one before, unless a delivery is missing: the missing message will come again, and must not be taken for done.
    pub fn position(&mut self, delivery: Delivery) -> StreamPosition {
        self.asked.came();
        let follows = delivery.consumer_sequence == self.consumer_sequence + 1;
        if delivery.consumer_sequence > self.consumer_sequence + 1 {
            self.note_gap(delivery.sequence);
        }
        self.consumer_sequence = self.consumer_sequence.max(delivery.consumer_sequence);
        let sequence = delivery.sequence;
        let mut after = sequence.saturating_sub(1);
        if delivery.deliveries == 1 {
            if follows {
                after = after.min(self.stream_sequence);
            }
            self.stream_sequence = self.stream_sequence.max(sequence);
        }
        StreamPosition {
            sequence,
            after,
            deliveries: delivery.deliveries,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(sequence: u64, consumer_sequence: u64, deliveries: u32) -> Delivery {
        Delivery {
            sequence,
            consumer_sequence,
            deliveries,
            time_ns: 0,
            pending: 0,
        }
    }

    #[test]
    fn what_lies_between_two_deliveries_is_known_unless_one_is_missing() {
        let mut following = Deliveries {
            asked: PendingPull(9),
            consumer_sequence: 4,
            stream_sequence: 10,
            gap: None,
            elsewhere: None,
        };
        // Messages 11 to 14 have other subjects.
        assert_eq!(following.position(delivery(15, 5, 1)).after, 10);
        // Message 8 is delivered again, and then the next one.
        assert_eq!(following.position(delivery(8, 6, 2)).after, 7);
        assert_eq!(following.position(delivery(20, 7, 1)).after, 15);
        // Delivery 8 is missing.
        assert_eq!(following.position(delivery(30, 9, 1)).after, 29);
        assert_eq!(following.position(delivery(33, 10, 1)).after, 30);
        assert_eq!(following.position(delivery(25, 11, 2)).after, 24);
        assert_eq!(following.asked.0, 3);
        assert_eq!(
            following.gap,
            Some(Gap {
                after: 20,
                before: 30
            })
        );
    }

    #[test]
    fn a_consumer_that_begins_anew_is_noticed() {
        let following = Deliveries {
            asked: PendingPull(9),
            consumer_sequence: 4,
            stream_sequence: 10,
            gap: None,
            elsewhere: None,
        };
        assert!(following.begins_anew(delivery(1, 1, 1)));
        assert!(!following.begins_anew(delivery(11, 5, 1)));
        assert!(!following.begins_anew(delivery(9, 4, 2)), "one that comes again");
    }
}
