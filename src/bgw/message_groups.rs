//! Which messages share a transaction. Pure; used by executors.

#![forbid(unsafe_code)]

use crate::channel::work::Work;

/// Most messages that share a transaction, each in a subtransaction: PostgreSQL keeps so many subtransactions in memory
/// for other sessions' snapshots; with more, these sessions have to look on disk.
const GROUP: usize = 64;
/// Longest time between the arrivals of messages that share a transaction, and so `now()`; in milliseconds.
const GROUP_SPREAD_MS: u32 = 10;

/// Says how many of the messages that are left share the next transaction. A group that has failed is tried again in
/// smaller groups.
#[derive(Debug, Default)]
pub struct MessageGroups {
    /// Sizes of the next groups that are known already, the last group first.
    sizes: Vec<usize>,
}

impl MessageGroups {
    /// The size of the next group. `arrived_ms` has an element for each message that is left: when it arrived, in
    /// milliseconds after the first message of the work.
    pub fn next(&mut self, work: &Work, arrived_ms: impl ExactSizeIterator<Item = u32>) -> usize {
        let left = arrived_ms.len();
        let size = self.sizes.pop().unwrap_or_else(|| {
            if work.is_batch {
                left
            } else {
                arrived_together(arrived_ms)
            }
        });
        size.min(left)
    }

    /// A group of this size has failed as a whole. Its halves are tried next if one call takes many messages, and
    /// otherwise each message alone.
    pub fn failed(&mut self, work: &Work, size: usize) {
        if work.is_batch {
            self.sizes.extend([size - size / 2, size / 2]);
        } else {
            self.sizes.extend(std::iter::repeat_n(1, size));
        }
    }

    /// Whether a group that has failed is still being tried in smaller groups.
    pub fn are_splitting(&self) -> bool {
        !self.sizes.is_empty()
    }
}

fn arrived_together(mut arrived_ms: impl Iterator<Item = u32>) -> usize {
    let Some(first) = arrived_ms.next() else {
        return 0;
    };
    let together = |ms: &u32| ms.saturating_sub(first) <= GROUP_SPREAD_MS;
    1 + arrived_ms.take(GROUP - 1).take_while(together).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::work::HandlerKind;

    fn work(is_batch: bool) -> Work {
        Work {
            kind: HandlerKind::Subscription,
            function: 1,
            role: 10,
            server: 1,
            subject: "a".into(),
            timeout_ms: 0,
            is_batch,
            stream: None,
            messages: Vec::new(),
        }
    }

    #[test]
    fn messages_that_came_together_share_a_transaction() {
        let mut groups = MessageGroups::default();
        let mut next = |arrived: &[u32]| groups.next(&work(false), arrived.iter().copied());
        assert_eq!(next(&[100, 105, 110, 111]), 3);
        assert_eq!(next(&[0; 1000]), GROUP);
        assert_eq!(next(&[7]), 1);
    }

    #[test]
    fn a_bad_message_is_found_by_halving_or_alone() {
        let batch = work(true);
        let mut groups = MessageGroups::default();
        assert_eq!(groups.next(&batch, [0; 5].into_iter()), 5);
        groups.failed(&batch, 5);
        assert!(groups.are_splitting());
        assert_eq!(groups.next(&batch, [0; 5].into_iter()), 2);
        assert_eq!(groups.next(&batch, [0; 3].into_iter()), 3);
        assert!(!groups.are_splitting());
        let single = work(false);
        groups.failed(&single, 3);
        let sizes = [3, 2, 1].map(|left| groups.next(&single, vec![0; left].into_iter()));
        assert_eq!(sizes, [1, 1, 1]);
    }
}
