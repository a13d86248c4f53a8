//! What a durable subscription has applied: a row that is changed in the transaction of the effects themselves, so that
//! a message which is delivered again is skipped. Runs in executors, on the main thread.

use bytes::Bytes;

use super::applied_ranges::{AppliedRanges, added};
use super::{dead_letter, logging, stream_positions};
use crate::channel::marks::Marks;
use crate::channel::work::{Delivered, StreamPosition, StreamWork, Work};
use crate::pg::query::Argument::{Int8, Text};
use crate::pg::query::prepared;
use crate::pg::transaction::{Caught, Parameters, transaction, with_snapshot};

/// The subscription's row, locked until the transaction ends.
pub struct Applied {
    /// The sequences that are done with, in the incarnation of the stream that the messages come from.
    ranges: AppliedRanges,
    marks: Marks,
}

/// Names for a transaction that runs no function of a user: it writes even if the database's settings make transactions
/// read-only.
fn own_transaction() -> Parameters {
    Parameters::own_names(&[("transaction_read_only", "off")])
}

impl Applied {
    /// Locks the row, and has it be about the incarnation that the messages come from; `None` if the subscription is
    /// gone, was paused, altered or moved, or has stopped.
    pub fn lock(stream: &StreamWork) -> Option<Applied> {
        let _names = Parameters::own_names(&[]);
        let (token, applied) = read(stream)?;
        if token.as_ref() == Some(&stream.incarnation.token) {
            return Some(applied);
        }
        stream_positions::switch(&stream.id, token.as_deref(), &stream.incarnation);
        read(stream).map(|(_, applied)| applied)
    }

    /// Whether the message was applied already.
    pub fn has(&self, message: &Delivered) -> bool {
        let sequence = message.position.map_or(0, |position| position.sequence);
        self.ranges.contains(sequence)
    }

    /// Adds messages to those that are applied. Returns the ack floor after that; `None` if there is none yet.
    pub fn add<'a>(
        mut self,
        stream: &StreamWork,
        messages: impl Iterator<Item = &'a Delivered> + Clone,
    ) -> Option<u64> {
        let _names = Parameters::own_names(&[]);
        let ranges = added(
            stream.base,
            messages.clone().filter_map(|message| message.position),
        );
        let mark = |message: &Delivered| message.position.map(|position| position.mark(message.time_us));
        self.marks.add(messages.filter_map(mark));
        let rows = prepared(
            "UPDATE litmus_pgnats.handler_stream SET applied = applied + $3::int8multirange, stream_created = $2, \
             marks = $4::bigint[] WHERE id = $1::uuid \
             RETURNING (SELECT CASE WHEN lower(a) = 0 THEN upper(a) - 1 END FROM unnest(applied) a LIMIT 1)",
            &[
                Text(&stream.id),
                Text(&stream.incarnation.created),
                Text(&ranges),
                Text(&self.marks.array()),
            ],
        );
        rows.into_iter().flatten().flatten().next()?.parse().ok()
    }
}

/// Locks and reads the row: the token of the incarnation that the row is about, which is `None` before the first message,
/// and what is applied there.
fn read(stream: &StreamWork) -> Option<(Option<String>, Applied)> {
    let rows = prepared(
        "SELECT stopped IS NULL AND NOT paused AND resumed = $2, applied::text, marks::text, incarnation \
         FROM litmus_pgnats.handler_stream WHERE id = $1::uuid FOR UPDATE",
        &[Text(&stream.id), Int8(stream.resumed.into())],
    );
    let row = rows.into_iter().next()?;
    let [goes_on, ranges, marks, token] = <[Option<String>; 4]>::try_from(row).ok()?;
    let applied = Applied {
        ranges: AppliedRanges::parse(&ranges?),
        marks: Marks::parse(&marks?),
    };
    (goes_on.as_deref() == Some("t")).then_some((token, applied))
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
                applied.add(stream, std::iter::once(message));
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
