//! What a durable subscription has applied: kept in its own table, changed in the transaction of the effects themselves,
//! so that a message which comes again is skipped. Runs in executors.

use std::fmt::Write as _;

use bytes::Bytes;

use super::{dead_letter, logging};
use crate::channel::work::{Delivered, StreamPosition, StreamWork, Work};
use crate::pg::query::Argument::{Int8, Text};
use crate::pg::query::prepared;
use crate::pg::transaction::{Caught, Parameters, transaction, with_snapshot};

/// The subscription's row, locked until the transaction ends.
pub struct Applied {
    /// Sequences that are done with: from the first of each pair to before the second.
    ranges: Vec<(u64, u64)>,
    /// Of an earlier stream of the same name.
    is_of_other: bool,
}

/// Names and operators are PostgreSQL's own, whatever the search path of the handler's role is.
fn own_names() -> Parameters {
    Parameters::of(&[("search_path".into(), "pg_catalog, pg_temp".into())])
}

/// The same for a transaction of our own, which writes whatever the database says of its users' transactions.
fn own_transaction() -> Parameters {
    Parameters::of(&[
        ("search_path".into(), "pg_catalog, pg_temp".into()),
        ("transaction_read_only".into(), "off".into()),
    ])
}

impl Applied {
    /// Locks the row; `None` if the subscription is gone or has stopped, or these messages are of a stream that is.
    pub fn lock(stream: &StreamWork) -> Option<Applied> {
        let _names = own_names();
        let rows = prepared(
            "SELECT applied::text, stopped IS NULL, stream_created IS NOT NULL AND stream_created <> $2, \
             stream_created::timestamptz > $2::timestamptz FROM litmus_pgnats.handler_stream WHERE id = $1::uuid FOR UPDATE",
            &[Text(&stream.id), Text(&stream.stream_created)],
        );
        let row = rows.into_iter().next()?;
        let [ranges, goes_on, is_of_other, is_stale] = <[Option<String>; 4]>::try_from(row).ok()?;
        let is = |flag: Option<String>| flag.as_deref() == Some("t");
        let is_of_other = is(is_of_other);
        (is(goes_on) && !is(is_stale)).then(|| Applied {
            ranges: if is_of_other {
                Vec::new()
            } else {
                ranges_of(&ranges.unwrap_or_default())
            },
            is_of_other,
        })
    }

    /// Whether the message was applied before.
    pub fn has(&self, message: &Delivered) -> bool {
        let sequence = message.place.map_or(0, |place| place.sequence);
        let next = self.ranges.partition_point(|(_, end)| *end <= sequence);
        self.ranges.get(next).is_some_and(|(start, _)| *start <= sequence)
    }

    /// Writes down what is applied now; up to where all is, then.
    pub fn add(self, stream: &StreamWork, messages: impl Iterator<Item = StreamPosition>) -> Option<u64> {
        let _names = own_names();
        let mut ranges = format!("{{[0,{}]", stream.base);
        for place in messages {
            let _ = write!(ranges, ",({},{}]", place.after, place.sequence);
        }
        ranges.push('}');
        let before = if self.is_of_other { "{}" } else { "{(,)}" };
        let rows = prepared(
            "UPDATE litmus_pgnats.handler_stream SET applied = applied * $4::int8multirange + $3::int8multirange, \
             stream_created = $2 WHERE id = $1::uuid \
             RETURNING (SELECT CASE WHEN lower(a) = 0 THEN upper(a) - 1 END FROM unnest(applied) a LIMIT 1)",
            &[
                Text(&stream.id),
                Text(&stream.stream_created),
                Text(&ranges),
                Text(before),
            ],
        );
        rows.into_iter().flatten().flatten().next()?.parse().ok()
    }
}

/// Reads what PostgreSQL writes: `{[1,5),[7,9)}`.
fn ranges_of(text: &str) -> Vec<(u64, u64)> {
    let numbers = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|n| !n.is_empty());
    let numbers: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
    numbers
        .chunks_exact(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)))
        .collect()
}

/// Gives a message up, in a transaction of its own: it goes to the dead letters and is done with, or the subscription
/// stops at it. `false` if that was not possible, or the subscription is gone.
pub fn give_up(
    work: &Work,
    stream: &StreamWork,
    message: &Delivered,
    payload: &Bytes,
    error: &Caught,
) -> bool {
    let Some(place) = message.place else {
        return false;
    };
    let why = format!("{}: {}", error.sqlstate, error.message);
    let done = transaction(|| {
        let _own = own_transaction();
        with_snapshot(|| {
            let Some(applied) = Applied::lock(stream) else {
                return false;
            };
            if applied.has(message) {
                return true;
            }
            if stream.stop_on_failure {
                stop(stream, place, &why);
            } else {
                dead_letter::of_stream(work.role, &stream.id, message, place, payload, &why);
                applied.add(stream, std::iter::once(place));
            }
            true
        })
    });
    let done = done.unwrap_or(false);
    if done && stream.stop_on_failure {
        let text = format!(
            "durable subscription of stream \"{}\" stops at message {}, which has failed {} times: {why}",
            work.subject, place.sequence, place.deliveries
        );
        logging::write(log::Level::Warn, &text, "", "");
    }
    done
}

fn stop(stream: &StreamWork, place: StreamPosition, why: &str) {
    prepared(
        "UPDATE litmus_pgnats.handler_stream SET stopped = format('message %s of the stream has failed %s times: %s', \
         $2, $3, $4) WHERE id = $1::uuid",
        &[
            Text(&stream.id),
            Int8(i64::try_from(place.sequence).unwrap_or(i64::MAX)),
            Int8(place.deliveries.into()),
            Text(why),
        ],
    );
}
