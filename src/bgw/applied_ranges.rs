//! The ranges of stream sequences that a durable subscription has applied, in the text form of PostgreSQL's
//! int8multirange. Pure; used by executors.

#![forbid(unsafe_code)]

use crate::channel::work::StreamPosition;

/// Ranges of sequences in ascending order, each with its first sequence and the one after its last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedRanges(Vec<(u64, u64)>);

impl AppliedRanges {
    /// Reads the text that PostgreSQL writes: `{[1,5),[7,9)}`.
    pub fn parse(text: &str) -> AppliedRanges {
        let numbers = text
            .split(|c: char| !c.is_ascii_digit())
            .filter(|number| !number.is_empty());
        let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
        let (pairs, _) = numbers.as_chunks::<2>();
        AppliedRanges(pairs.iter().map(|[start, end]| (*start, *end)).collect())
    }

    /// Whether a sequence is in one of the ranges.
    pub fn contains(&self, sequence: u64) -> bool {
        let next = self.0.partition_point(|(_, end)| *end <= sequence);
        self.0.get(next).is_some_and(|(start, _)| *start <= sequence)
    }
}

/// The ranges that messages add, as the input of a multirange: all sequences up to `base`, and each message together
/// with the sequences before it that do not concern the subscription.
pub fn added(base: u64, messages: impl Iterator<Item = StreamPosition>) -> String {
    let ranges = messages.map(|position| format!(",({},{}]", position.after, position.sequence));
    format!("{{[0,{base}]{}}}", ranges.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_postgresql_writes_them() {
        let ranges = AppliedRanges::parse("{[0,5),[7,9),[20,21)}");
        assert_eq!(ranges, AppliedRanges(vec![(0, 5), (7, 9), (20, 21)]));
        let inside: Vec<u64> = (0..25).filter(|sequence| ranges.contains(*sequence)).collect();
        assert_eq!(inside, [0, 1, 2, 3, 4, 7, 8, 20]);
        assert_eq!(AppliedRanges::parse("{}"), AppliedRanges::default());
        assert!(!AppliedRanges::default().contains(0));
    }

    #[test]
    fn a_message_takes_along_what_lies_before_it() {
        let position = |after, sequence| StreamPosition {
            sequence,
            after,
            deliveries: 1,
        };
        let messages = [position(3, 4), position(4, 9)];
        assert_eq!(added(3, messages.into_iter()), "{[0,3],(3,4],(4,9]}");
        assert_eq!(added(0, std::iter::empty()), "{[0,0]}");
    }
}
