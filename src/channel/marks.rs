//! Marks in the history of a stream: exact pairs of sequence and time of messages that a durable subscription is done
//! with. A stream that has other messages at these sequences has another history. Pure; used by executors, which write
//! the marks, and by the actor thread, which compares them with the stream.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// So many of the newest messages are all marked.
const NEWEST: usize = 16;

/// A message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    pub sequence: u64,
    /// When the stream stored the message, in microseconds since 1970.
    pub time_us: i64,
}

/// Marks in the order of their sequences: the first message, messages at doubling distances behind the newest, and all
/// of the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks(Vec<Mark>);

impl Marks {
    /// Reads the text of a PostgreSQL array in which sequences and times alternate.
    pub fn parse(text: &str) -> Marks {
        let numbers = text.trim_matches(['{', '}']).split(',');
        let numbers: Vec<i64> = numbers.filter_map(|number| number.parse().ok()).collect();
        let (pairs, _) = numbers.as_chunks::<2>();
        let mark = |[sequence, time_us]: &[i64; 2]| {
            let sequence = u64::try_from(*sequence).ok()?;
            Some(Mark {
                sequence,
                time_us: *time_us,
            })
        };
        Marks(pairs.iter().filter_map(mark).collect())
    }

    /// The text of a PostgreSQL array in which sequences and times alternate.
    pub fn array(&self) -> String {
        let pairs = self
            .0
            .iter()
            .map(|mark| format!("{},{}", mark.sequence, mark.time_us));
        format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
    }

    /// The marks, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = Mark> {
        self.0.iter().rev().copied()
    }

    /// The mark with the highest sequence; `None` without marks.
    pub fn newest(&self) -> Option<Mark> {
        self.0.last().copied()
    }

    /// The greatest time of all marks; `None` without marks.
    pub fn latest_time_us(&self) -> Option<i64> {
        self.0.iter().map(|mark| mark.time_us).max()
    }

    /// The marks up to a sequence.
    pub fn up_to(&self, sequence: u64) -> Marks {
        let end = self.0.partition_point(|mark| mark.sequence <= sequence);
        Marks(self.0.iter().take(end).copied().collect())
    }

    /// Marks more messages, and forgets marks that are no longer needed.
    pub fn add(&mut self, marks: impl Iterator<Item = Mark>) {
        self.0.extend(marks);
        self.0.sort_unstable();
        self.0.dedup_by_key(|mark| mark.sequence);
        self.thin();
    }

    /// Forgets a mark where those beside it are no more than about twice as far behind the newest.
    fn thin(&mut self) {
        let Some(newest) = self.newest() else { return };
        let distance = |mark: &Mark| newest.sequence - mark.sequence;
        let mut kept: Vec<Mark> = Vec::with_capacity(self.0.len());
        for (place, mark) in self.0.iter().rev().enumerate() {
            let before = self.0.len().checked_sub(place + 2);
            let before = before.and_then(|before| self.0.get(before));
            let is_needed = match (kept.last(), before) {
                (Some(after), Some(before)) if place >= NEWEST => {
                    distance(before) > distance(after).saturating_mul(2)
                }
                _ => true,
            };
            if is_needed {
                kept.push(*mark);
            }
        }
        kept.reverse();
        self.0 = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64) -> Mark {
        Mark {
            sequence,
            time_us: 1000 + sequence as i64,
        }
    }

    fn sequences(marks: &Marks) -> Vec<u64> {
        marks.0.iter().map(|mark| mark.sequence).collect()
    }

    #[test]
    fn marks_are_read_as_they_are_written() {
        let mut marks = Marks::default();
        assert_eq!(marks.array(), "{}");
        marks.add([mark(7), mark(3)].into_iter());
        assert_eq!(marks.array(), "{3,1003,7,1007}");
        assert_eq!(Marks::parse(&marks.array()), marks);
        assert_eq!(Marks::parse("{}"), Marks::default());
        assert_eq!(marks.newest(), Some(mark(7)));
        assert_eq!(sequences(&marks.up_to(6)), [3]);
    }

    #[test]
    fn the_newest_are_all_there_and_the_others_at_doubling_distances() {
        let mut marks = Marks::default();
        for first in (1..1_000_000).step_by(7) {
            marks.add((first..first + 7).map(mark));
        }
        let kept = sequences(&marks);
        let newest = *kept.last().expect("a mark");
        assert!(
            kept.ends_with(&(newest - 15..=newest).collect::<Vec<_>>()),
            "{kept:?}"
        );
        assert_eq!(kept.first(), Some(&1));
        assert!(kept.len() < 60, "{}", kept.len());
        for pair in kept.windows(2) {
            let [far, near] = [newest - pair[0], newest - pair[1]];
            assert!(near < 16 || far <= near * 4, "{far} and {near} in {kept:?}");
        }
    }

    #[test]
    fn a_message_that_is_done_late_is_marked_in_its_place() {
        let mut marks = Marks::default();
        marks.add([1, 2, 4, 5].map(mark).into_iter());
        marks.add([3, 4].map(mark).into_iter());
        assert_eq!(sequences(&marks), [1, 2, 3, 4, 5]);
        assert_eq!(marks.latest_time_us(), Some(1005));
    }
}
