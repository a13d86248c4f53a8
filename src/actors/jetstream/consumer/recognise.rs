//! Finds out which incarnation a stream is, by comparing the marks of those that are known with the messages that the
//! stream holds. In the actor thread; does no I/O but through [`History`].

use std::cmp::Reverse;

use crate::channel::marks::Mark;
use crate::channel::progress::{Branch, Position};
use crate::error::{Error, Kind, Result};

/// The messages that a stream holds now.
pub trait History {
    /// When the message with this sequence was stored, in microseconds since 1970; `None` if the stream has no such
    /// message.
    fn time_of(&self, sequence: u64) -> impl Future<Output = Result<Option<i64>>>;

    /// The first message from a sequence on; `None` if there is none.
    fn first_from(&self, sequence: u64) -> impl Future<Output = Result<Option<Mark>>>;
}

/// What a stream says of itself.
pub struct Stream<'a> {
    /// When the stream was created, in JetStream's own text.
    pub created: &'a str,
    /// Sequence of the last message that the stream has ever held.
    pub last_sequence: u64,
    /// The stream has the subscription's consumer, which nobody else makes. A stream that is made anew has none.
    pub has_own_consumer: bool,
}

/// Which incarnation a stream is.
#[derive(Debug, PartialEq, Eq)]
pub enum Recognised {
    /// The one with this token.
    Known(String),
    /// A new one that has messages of a known one.
    Branch(Branch),
    /// A new one.
    New,
}

/// How a stream compares with one position.
enum Likeness {
    Same,
    /// The stream is the same up to the first mark, and no longer so at the second. Without a first mark nothing is
    /// known to be the same but the time of creation.
    Departs(Option<Mark>, Mark),
    Other,
    /// There is no message left to compare with. The mark is the newest one; `None` without marks.
    Unknown(Option<Mark>),
}

/// Recognises a stream; the position that was in use last is the first. Fails with `Stopped` if that cannot be told.
pub async fn recognise(
    history: &impl History,
    stream: &Stream<'_>,
    positions: &[Position],
) -> Result<Recognised> {
    // Of several whose messages are all there, the one with the newest has what the others have. As a rule its newest
    // mark tells, and the stream is asked for nothing else.
    let mut in_order: Vec<(usize, &Position)> = positions.iter().enumerate().collect();
    in_order.sort_by_key(|(_, position)| Reverse(position.marks.newest().map(|mark| mark.sequence)));
    let (mut others, mut is_unknown) = (Vec::new(), false);
    for (place, position) in in_order {
        if lacks_newest(history, stream, position).await? {
            others.push(position);
            continue;
        }
        match compare(history, stream, position).await? {
            Likeness::Same => return Ok(Recognised::Known(position.token.clone())),
            Likeness::Unknown(_) if stream.has_own_consumer && place == 0 => {
                return Ok(Recognised::Known(position.token.clone()));
            }
            // Without a message that is done with, nothing is lost by beginning anew.
            Likeness::Unknown(newest) => is_unknown |= newest.is_some(),
            Likeness::Departs(..) | Likeness::Other => others.push(position),
        }
    }
    if is_unknown {
        return Err(unknown(
            "None of the messages that are done with is left in the stream, which was created at another time.",
        ));
    }
    let mut departs: Option<(Option<Mark>, Mark, &Position)> = None;
    for position in others {
        if let Likeness::Departs(equal, differs) = compare(history, stream, position).await? {
            departs = departs
                .filter(|(other, ..)| *other >= equal)
                .or(Some((equal, differs, position)));
        }
    }
    let Some((equal, differs, position)) = departs else {
        return Ok(Recognised::New);
    };
    let up_to = departure(history, stream, equal, differs, position).await?;
    let of = position.token.clone();
    Ok(Recognised::Branch(Branch { of, up_to }))
}

/// Whether the stream certainly has something else in place of the newest message that is done with, or has not come so
/// far.
async fn lacks_newest(history: &impl History, stream: &Stream<'_>, position: &Position) -> Result<bool> {
    let Some(newest) = position.marks.newest() else {
        return Ok(false);
    };
    if newest.sequence > stream.last_sequence {
        return Ok(true);
    }
    let time = history.time_of(newest.sequence).await?;
    Ok(time.is_some_and(|time| time != newest.time_us))
}

async fn compare(history: &impl History, stream: &Stream<'_>, position: &Position) -> Result<Likeness> {
    let is_as_old = stream.created == position.created;
    let newest = position.marks.newest();
    // The lowest mark that the stream does not have.
    let mut differs = None;
    for mark in position.marks.newest_first() {
        if mark.sequence > stream.last_sequence {
            differs = Some(mark);
            continue;
        }
        match history.time_of(mark.sequence).await? {
            Some(time) if time == mark.time_us => {
                return Ok(differs.map_or(Likeness::Same, |differs| Likeness::Departs(Some(mark), differs)));
            }
            Some(_) => differs = Some(mark),
            // The message is gone, which says nothing.
            None => {}
        }
    }
    Ok(match (differs, is_as_old) {
        (None, true) => Likeness::Same,
        (None, false) => Likeness::Unknown(newest),
        (Some(differs), true) => Likeness::Departs(None, differs),
        (Some(_), false) => Likeness::Other,
    })
}

/// The last sequence that the stream has in common with a position. Between the two marks, what was stored later than
/// all that is done with is new.
async fn departure(
    history: &impl History,
    stream: &Stream<'_>,
    equal: Option<Mark>,
    differs: Mark,
    position: &Position,
) -> Result<u64> {
    let begin = equal.map_or(0, |mark| mark.sequence);
    let latest = position.marks.latest_time_us().unwrap_or(0);
    // The first message that is new lies between these two, or is the second.
    let (mut low, mut high) = (begin + 1, differs.sequence.min(stream.last_sequence + 1));
    while low < high {
        let middle = low + (high - low) / 2;
        match history.first_from(middle).await? {
            Some(message) if message.sequence < high && message.time_us <= latest => {
                low = message.sequence + 1
            }
            _ => high = middle,
        }
    }
    let up_to = low - 1;
    // Where the stream goes on with messages that are older than what is done with, their times tell nothing.
    let next = history.time_of(differs.sequence).await?;
    if up_to > begin && next.is_some_and(|time| time <= latest) && has_between(history, begin, up_to).await? {
        return Err(unknown(&format!(
            "The stream has other messages than before, from a sequence between {} and {} on: it is a copy that went on \
             elsewhere, or a clock was set back.",
            begin + 1,
            differs.sequence
        )));
    }
    Ok(up_to)
}

/// Whether the stream has messages after one sequence, up to another.
async fn has_between(history: &impl History, after: u64, up_to: u64) -> Result<bool> {
    let first = history.first_from(after + 1).await?;
    Ok(first.is_some_and(|message| message.sequence <= up_to))
}

fn unknown(why: &str) -> Error {
    Error::new(
        Kind::Stopped,
        "it cannot be told which of the stream's messages are done with",
    )
    .detail(why)
    .hint("Say where to go on with litmus_pgnats.seek().")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::channel::marks::Marks;

    /// Messages by their sequences, with their times.
    struct Held(BTreeMap<u64, i64>);

    impl History for Held {
        async fn time_of(&self, sequence: u64) -> Result<Option<i64>> {
            Ok(self.0.get(&sequence).copied())
        }

        async fn first_from(&self, sequence: u64) -> Result<Option<Mark>> {
            let first = self.0.range(sequence..).next();
            Ok(first.map(|(sequence, time_us)| Mark {
                sequence: *sequence,
                time_us: *time_us,
            }))
        }
    }

    /// Messages `sequences`, stored a second apart from `from_us` on.
    fn stored(sequences: std::ops::RangeInclusive<u64>, from_us: i64) -> BTreeMap<u64, i64> {
        let second = |index: usize| from_us + 1_000_000 * index as i64;
        sequences
            .enumerate()
            .map(|(index, sequence)| (sequence, second(index)))
            .collect()
    }

    fn position(token: &str, created: &str, done: &BTreeMap<u64, i64>) -> Position {
        let mut marks = Marks::default();
        for (sequence, time_us) in done {
            marks.add(std::iter::once(Mark {
                sequence: *sequence,
                time_us: *time_us,
            }));
        }
        Position {
            token: token.into(),
            created: created.into(),
            ack_floor: None,
            marks,
            branch: None,
        }
    }

    fn in_use(positions: &[Position], created: &str) -> Result<Recognised> {
        let stream = Stream {
            created,
            last_sequence: 60,
            has_own_consumer: true,
        };
        wait(recognise(&Held(BTreeMap::new()), &stream, positions))
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.build().expect("a runtime").block_on(future)
    }

    fn recognised(
        held: &BTreeMap<u64, i64>,
        last_sequence: u64,
        created: &str,
        positions: &[Position],
    ) -> Result<Recognised> {
        let stream = Stream {
            created,
            last_sequence,
            has_own_consumer: false,
        };
        let history = Held(held.clone());
        wait(recognise(&history, &stream, positions))
    }

    fn known(token: &str) -> Recognised {
        Recognised::Known(token.into())
    }

    fn branch(of: &str, up_to: u64) -> Recognised {
        Recognised::Branch(Branch { of: of.into(), up_to })
    }

    const NOON: i64 = 1_800_000_000_000_000;
    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn a_stream_is_known_by_its_messages_and_not_by_its_creation() {
        let done = stored(1..=100, NOON);
        let positions = [position("a", "monday", &done)];
        let held = stored(1..=120, NOON);
        let same = known("a");
        assert_eq!(recognised(&held, 120, "monday", &positions).expect("one"), same);
        assert_eq!(recognised(&held, 120, "tuesday", &positions).expect("one"), same);
        // The newest messages were deleted.
        let thinned: BTreeMap<u64, i64> = held.into_iter().filter(|(n, _)| *n < 95 || *n > 105).collect();
        assert_eq!(
            recognised(&thinned, 120, "tuesday", &positions).expect("one"),
            same
        );
    }

    #[test]
    fn an_older_stream_of_the_name_is_another_one() {
        let positions = [position("a", "tuesday", &stored(1..=5, NOON))];
        let older = stored(1..=6, NOON - HOUR);
        assert_eq!(
            recognised(&older, 6, "monday", &positions).expect("one"),
            Recognised::New
        );
        assert_eq!(
            recognised(&BTreeMap::new(), 0, "monday", &positions).expect("one"),
            Recognised::New
        );
    }

    #[test]
    fn of_several_the_one_with_these_messages_is_chosen() {
        let (a, b) = (stored(1..=5, NOON), stored(1..=6, NOON - HOUR));
        let positions = [position("a", "tuesday", &a), position("b", "monday", &b)];
        assert_eq!(recognised(&b, 6, "monday", &positions).expect("one"), known("b"));
        assert_eq!(recognised(&a, 9, "tuesday", &positions).expect("one"), known("a"));
    }

    /// A branch in which nothing was applied yet has the marks of the other one up to there, and no more.
    #[test]
    fn of_two_that_are_the_same_the_one_that_is_further_is_chosen() {
        let a = stored(1..=10, NOON);
        let positions = [
            position("b", "monday", &stored(1..=5, NOON)),
            position("a", "monday", &a),
        ];
        assert_eq!(recognised(&a, 10, "monday", &positions).expect("one"), known("a"));
        let mut without_newest = a.clone();
        without_newest.remove(&10);
        assert_eq!(
            recognised(&without_newest, 10, "monday", &positions).expect("one"),
            known("a")
        );
        let b = stored(1..=5, NOON);
        assert_eq!(recognised(&b, 5, "monday", &positions).expect("one"), known("b"));
    }

    #[test]
    fn a_store_that_was_put_back_branches_off_where_it_was_copied() {
        for (done, copied_at) in [(10, 5), (2000, 1000), (2000, 3), (40, 39)] {
            let positions = [position("a", "monday", &stored(1..=done, NOON))];
            let mut held = stored(1..=copied_at, NOON);
            let expected = branch("a", copied_at);
            let before = recognised(&held, copied_at, "monday", &positions).expect("one");
            assert_eq!(before, expected, "{copied_at} of {done}, and nothing new");
            for news in [1, 20, done * 2] {
                held.extend(stored(copied_at + 1..=copied_at + news, NOON + HOUR));
                let found = recognised(&held, copied_at + news, "monday", &positions).expect("one");
                assert_eq!(found, expected, "{copied_at} of {done}, and {news} new");
            }
        }
    }

    #[test]
    fn a_memory_stream_that_was_lost_begins_anew() {
        let positions = [position("a", "monday", &stored(1..=50, NOON))];
        let anew = branch("a", 0);
        assert_eq!(
            recognised(&BTreeMap::new(), 0, "monday", &positions).expect("one"),
            anew
        );
        for count in [3, 50, 200] {
            let held = stored(1..=count, NOON + HOUR);
            assert_eq!(recognised(&held, count, "monday", &positions).expect("one"), anew);
        }
    }

    #[test]
    fn a_copy_that_went_on_elsewhere_is_told_apart_among_the_newest_and_stops_before() {
        let positions = [position("a", "monday", &stored(1..=110, NOON))];
        let elsewhere = |at: u64| {
            let mut held = stored(1..=at, NOON);
            held.extend(stored(at + 1..=120, NOON + 1_000_000 * at as i64 + 7));
            recognised(&held, 120, "monday", &positions)
        };
        assert_eq!(elsewhere(100).expect("one"), branch("a", 100));
        let error = elsewhere(60).expect_err("nothing tells");
        assert_eq!(error.kind, Kind::Stopped);
    }

    #[test]
    fn without_a_message_to_compare_with_creation_and_last_sequence_decide() {
        let positions = [position("a", "monday", &stored(1..=50, NOON))];
        let none = BTreeMap::new();
        assert_eq!(
            recognised(&none, 50, "monday", &positions).expect("one"),
            known("a")
        );
        let error = recognised(&none, 50, "tuesday", &positions).expect_err("nothing tells");
        assert_eq!(error.kind, Kind::Stopped);
        // Old NATS servers change the time of creation, but not the consumer.
        assert_eq!(in_use(&positions, "tuesday").expect("one"), known("a"));
        let nothing_done = [position("b", "monday", &BTreeMap::new()), positions[0].clone()];
        assert_eq!(in_use(&nothing_done, "tuesday").expect("one"), known("b"));
        assert_eq!(
            recognised(&none, 9, "monday", &nothing_done[..1]).expect("one"),
            known("b")
        );
        assert_eq!(
            recognised(&none, 9, "tuesday", &nothing_done[..1]).expect("one"),
            Recognised::New
        );
        // A work queue that was put back holds what was done with later than the copy was made.
        let mut queue = stored(48..=49, NOON + 47_000_000);
        assert_eq!(
            recognised(&queue, 49, "monday", &positions).expect("one"),
            branch("a", 49)
        );
        queue.extend(stored(50..=60, NOON + HOUR));
        assert_eq!(
            recognised(&queue, 60, "monday", &positions).expect("one"),
            branch("a", 49)
        );
    }
}
