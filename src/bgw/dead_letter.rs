//! Writes dead letters: messages that could not be delivered or executed after all attempts. Runs in outbox relays and
//! executors, on the main thread, in their transactions and under a search path that has only PostgreSQL's own names.

use bytes::Bytes;

use crate::channel::outbox::Partition;
use crate::channel::work::{Delivered, StreamPosition};
use crate::error::Error;
use crate::nats::headers::{self, Headers};
use crate::pg::encoding::displayable;
use crate::pg::query::Argument::{Bytes as Bytea, Int8, Oid, OptionalText, Text};
use crate::pg::query::{Argument, prepared};
use crate::pg::sqlstates;
use crate::pg::transaction::sqlstate;
use crate::sql::parameters;

/// Writes a message of the outbox as a dead letter; the caller removes it from the outbox.
pub fn of_outbox(partition: &Partition, batch: i64, id: i64, error: &Error) {
    let why = format!("{}: {error}", sqlstate(sqlstates::describe(error.kind).0 as i32));
    prepared(
        "INSERT INTO litmus_pgnats.dead_letter \
         (source, server, role, subject, payload, headers, domain, message_id, error, sent) \
         SELECT 'outbox', $1, $2::regrole, o.subject, o.payload, o.headers, o.domain, o.message_id, $3, o.created \
         FROM litmus_pgnats.outbox o WHERE o.batch = $4 AND o.id = $5",
        &[
            Text(&partition.server),
            Oid(partition.role),
            Text(&why),
            Int8(batch),
            Int8(id),
        ],
    );
    expire();
}

/// Writes a message of the durable subscription `id` as a dead letter. `role` is the role that the function runs as,
/// and `why` the error.
pub fn of_stream(
    role: u32,
    id: &str,
    message: &Delivered,
    position: StreamPosition,
    payload: &Bytes,
    why: &str,
) {
    let content = content(message);
    prepared(
        "INSERT INTO litmus_pgnats.dead_letter (source, server, role, stream, function, stream_sequence, delivery_count, \
         subject, payload, headers, domain, error, sent) \
         SELECT 'stream', s.server, $2::regrole, s.subject, s.signature, $3, $4::integer, $5, $6, $7::jsonb, s.domain, $8, \
         to_timestamp($9 / 1000000.0) FROM litmus_pgnats.handler_stream s WHERE s.id = $1::uuid",
        &columns(
            [Text(id), Oid(role)],
            &content,
            position,
            payload,
            why,
            message.time_us,
        ),
    );
    expire();
}

/// Keeps the message at which the durable subscription `id` has stopped, in case somebody skips it.
pub fn of_stopped(id: &str, message: &Delivered, position: StreamPosition, payload: &Bytes, why: &str) {
    let content = content(message);
    let after = Int8(i64::try_from(position.after).unwrap_or(i64::MAX));
    prepared(
        "INSERT INTO litmus_pgnats.stopped_message (id, after_sequence, stream_sequence, delivery_count, subject, payload, \
         headers, error, sent) \
         SELECT $1::uuid, $2, $3, $4::integer, $5, $6, $7::jsonb, $8, to_timestamp($9 / 1000000.0) \
         ON CONFLICT (id) DO UPDATE SET after_sequence = excluded.after_sequence, \
         stream_sequence = excluded.stream_sequence, delivery_count = excluded.delivery_count, \
         subject = excluded.subject, payload = excluded.payload, headers = excluded.headers, error = excluded.error, \
         sent = excluded.sent",
        &columns(
            [Text(id), after],
            &content,
            position,
            payload,
            why,
            message.time_us,
        ),
    );
}

/// The columns of a stream's message, behind two of their own.
fn columns<'a>(
    [first, second]: [Argument<'a>; 2],
    (subject, headers): &'a (String, Option<String>),
    position: StreamPosition,
    payload: &'a Bytes,
    why: &'a str,
    time_us: i64,
) -> [Argument<'a>; 9] {
    [
        first,
        second,
        Int8(i64::try_from(position.sequence).unwrap_or(i64::MAX)),
        Int8(position.deliveries.into()),
        Text(subject),
        Bytea(payload),
        OptionalText(headers.as_deref()),
        Text(why),
        Int8(time_us),
    ]
}

/// Subject and headers, as far as the database can hold them.
fn content(message: &Delivered) -> (String, Option<String>) {
    let headers = message.headers.iter();
    let headers: Headers = headers
        .map(|(name, value)| (storable(name), storable(value)))
        .collect();
    let json = (!headers.is_empty()).then(|| headers::to_json(&headers));
    (storable(&message.subject), json)
}

/// Text that the database can hold: the characters that it cannot hold are written as escapes.
fn storable(text: &str) -> String {
    displayable(text.replace('\0', "\\0"))
}

/// Removes dead letters that are older than `litmus_pgnats.dead_letter_retention`. Those that a session has locked are
/// left for the next time: the outbox and durable subscriptions wait for nobody's lock.
fn expire() {
    if let Some(retention) = parameters::dead_letter_retention() {
        prepared(
            "DELETE FROM litmus_pgnats.dead_letter WHERE id IN ( \
             SELECT id FROM litmus_pgnats.dead_letter WHERE died < now() - make_interval(secs => $1) \
             FOR UPDATE SKIP LOCKED)",
            &[Int8(i64::try_from(retention.as_secs()).unwrap_or(i64::MAX))],
        );
    }
}
