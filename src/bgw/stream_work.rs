//! What a durable subscription has applied: a row that is changed in the transaction of the effects themselves, so that
//! a message which is delivered again is skipped. Runs in executors, on the main thread.

use bytes::Bytes;

use super::applied_ranges::{AppliedRanges, added};
use super::{dead_letter, logging};
use crate::channel::work::{Delivered, StreamPosition, StreamWork, Work};
use crate::pg::query::Argument::{Int8, Text};
use crate::pg::query::prepared;
use crate::pg::transaction::{Caught, Parameters, transaction, with_snapshot};

/// The subscription's row, locked until the transaction ends.
pub struct Applied {
    /// The sequences that are done with.
    ranges: AppliedRanges,
    /// Whether the row is about an earlier stream of the same name.
    is_of_other: bool,
}

/// Names for a transaction that runs no function of a user: it writes even if the database's settings make transactions
/// read-only.
fn own_transaction() -> Parameters {
    Parameters::own_names(&[("transaction_read_only", "off")])
}

impl Applied {
    /// Locks the row; `None` if the subscription is gone, was paused or has stopped, or if these messages are of an older
    /// stream than the row.
    pub fn lock(stream: &StreamWork) -> Option<Applied> {
        let _names = Parameters::own_names(&[]);
        let rows = prepared(
            "SELECT applied::text, stopped IS NULL AND NOT paused, stream_created IS NOT NULL AND stream_created <> $2, \
             stream_created::timestamptz > $2::timestamptz FROM litmus_pgnats.handler_stream WHERE id = $1::uuid FOR UPDATE",
            &[Text(&stream.id), Text(&stream.stream_created)],
        );
        let row = rows.into_iter().next()?;
        let [ranges, goes_on, is_of_other, is_stale] = <[Option<String>; 4]>::try_from(row).ok()?;
        let is = |flag: Option<String>| flag.as_deref() == Some("t");
        let is_of_other = is(is_of_other);
        (is(goes_on) && !is(is_stale)).then(|| Applied {
            ranges: match ranges {
                Some(ranges) if !is_of_other => AppliedRanges::parse(&ranges),
                _ => AppliedRanges::default(),
            },
            is_of_other,
        })
    }

    /// Whether the message was applied already.
    pub fn has(&self, message: &Delivered) -> bool {
        let sequence = message.position.map_or(0, |position| position.sequence);
        self.ranges.contains(sequence)
    }

    /// Adds messages to those that are applied. Returns the ack floor after that; `None` if there is none yet.
    pub fn add(self, stream: &StreamWork, messages: impl Iterator<Item = StreamPosition>) -> Option<u64> {
        let _names = Parameters::own_names(&[]);
        let ranges = added(stream.base, messages);
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

/// Gives up a message, in a transaction of its own: the message goes to the dead letters and is done with or, with
/// `stop_on_failure`, the subscription stops at it. `false` if that failed, or if the subscription is gone.
pub fn give_up(
    work: &Work,
    stream: &StreamWork,
    message: &Delivered,
    payload: &Bytes,
    error: &Caught,
) -> bool {
    let Some(position) = message.position else {
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
                stop(stream, position, &why);
                dead_letter::of_stopped(&stream.id, message, position, payload, &why);
            } else {
                dead_letter::of_stream(work.role, &stream.id, message, position, payload, &why);
                applied.add(stream, std::iter::once(position));
            }
            true
        })
    });
    let done = done.unwrap_or_else(|error| {
        let text = format!(
            "could not give up message {} of a stream: {}",
            position.sequence, error.message
        );
        logging::write(log::Level::Warn, &text, "The message is delivered again.", "");
        false
    });
    if done && stream.stop_on_failure {
        let text = format!(
            "durable subscription of stream \"{}\" stops at message {}, which has failed {} times: {why}",
            work.subject, position.sequence, position.deliveries
        );
        logging::write(log::Level::Warn, &text, "", "");
    }
    done
}

fn stop(stream: &StreamWork, position: StreamPosition, why: &str) {
    prepared(
        "UPDATE litmus_pgnats.handler_stream SET stopped = format('message %s of the stream has failed %s times: %s', \
         $2, $3, $4) WHERE id = $1::uuid",
        &[
            Text(&stream.id),
            Int8(i64::try_from(position.sequence).unwrap_or(i64::MAX)),
            Int8(position.deliveries.into()),
            Text(why),
        ],
    );
}
