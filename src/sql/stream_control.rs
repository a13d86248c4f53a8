//! `litmus_pgnats.pause`, `resume` and `seek`, the verbs for durable subscriptions that are there. Runs in backends, on the main
//! thread.

use super::handlers::{self, function_argument};
use super::own_tables::OwnTables;
use super::stream_options::{Start, stream_argument, time_argument};
use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::query::Argument::{Int8, Text};
use crate::pg::query::{Argument, query};

sql_function!(litmus_pgnats_pause, pause);
sql_function!(litmus_pgnats_resume, resume);
sql_function!(litmus_pgnats_seek, seek);

/// The condition for a row `d` of a subscription.
const KEY: &str = "(d.kind, d.server, d.subject, d.signature) = ('stream', $1, $2, $3)";

/// `(stream, fn)`.
fn pause(call: &Call<'_>) -> Result<Value> {
    let subscription = Subscription::of(call)?;
    subscription.set("paused = true");
    Ok(Value::Void)
}

/// `(stream, fn, skip)`.
fn resume(call: &Call<'_>) -> Result<Value> {
    let subscription = Subscription::of(call)?;
    if call.boolean(2).unwrap_or(false) {
        subscription.skip()?;
    }
    // The handler begins anew in any case: another server may have taken its consumer.
    subscription.set("paused = false");
    let [server, stream, signature] = subscription.names();
    subscription.table.begin_anew(server, stream, signature);
    subscription.table.go_on(server, stream, signature);
    Ok(Value::Void)
}

/// `(stream, fn, sequence, time)`.
fn seek(call: &Call<'_>) -> Result<Value> {
    if call.int8(2).is_some() && call.timestamptz_us(3).is_some() {
        return Err(Error::new(
            Kind::InvalidArgument,
            "sequence and time exclude each other",
        ));
    }
    let start = Start::check(None, ("sequence", call.int8(2)), time_argument(call, 3, "time")?)?;
    let Some(deliver) = start.deliver else {
        return Err(Error::new(Kind::NullArgument, "either sequence or time has to be given").hint(""));
    };
    let subscription = Subscription::of(call)?;
    let [server, stream, signature] = subscription.key();
    query(
        &format!(
            "WITH moved AS (UPDATE litmus_pgnats.handler_stream d SET deliver = $4, start_sequence = nullif($5, 0), \
             start_time = CASE WHEN $4 = 'time' THEN timestamptz 'epoch' + $6 * interval '1 microsecond' END, \
             applied = CASE $4 WHEN 'sequence' THEN int8multirange(int8range(0, $5)) ELSE '{{}}' END, marks = '{{}}', \
             incarnation = NULL, stream_created = NULL, sought = true, stopped = NULL, resumed = resumed + 1 \
             WHERE {KEY} RETURNING id), \
             positions AS (DELETE FROM litmus_pgnats.stream_position p USING moved WHERE p.id = moved.id) \
             DELETE FROM litmus_pgnats.stopped_message m USING moved WHERE m.id = moved.id"
        ),
        &[
            server,
            stream,
            signature,
            Text(deliver),
            Int8(start.sequence.unwrap_or(0)),
            Int8(start.time.unwrap_or(0)),
        ],
    );
    Ok(Value::Void)
}

/// A durable subscription that the caller may change.
pub struct Subscription {
    pub server: String,
    pub stream: String,
    pub signature: String,
    pub table: OwnTables,
}

impl Subscription {
    /// The one that the arguments `(stream, fn)` name; fails if there is none.
    pub fn of(call: &Call<'_>) -> Result<Subscription> {
        let stream = stream_argument(call)?.into_owned();
        let function = function_argument(call)?;
        let (server, found) = handlers::changeable(HandlerKind::Stream, &stream, Some(&function))?;
        let signature = found.into_iter().next().map(|found| found.signature);
        let signature = signature.ok_or_else(|| {
            let text = handlers::none(HandlerKind::Stream, &stream, Some(&function));
            Error::new(Kind::InvalidName, text)
                .detail(format!("The foreign server is \"{server}\"."))
                .hint("litmus_pgnats.stream_subscriptions lists them.")
        })?;
        let subscription = Subscription {
            server,
            stream,
            signature,
            table: OwnTables::open()?,
        };
        // What follows sees what others have made of the row, executors too.
        let lock = format!("SELECT FROM litmus_pgnats.handler_stream d WHERE {KEY} FOR UPDATE");
        query(&lock, &subscription.key());
        Ok(subscription)
    }

    fn names(&self) -> [&str; 3] {
        [&self.server, &self.stream, &self.signature]
    }

    fn key(&self) -> [Argument<'_>; 3] {
        self.names().map(Text)
    }

    /// Sets columns of the subscription's row.
    fn set(&self, columns: &str) {
        let sql = format!("UPDATE litmus_pgnats.handler_stream d SET {columns} WHERE {KEY}");
        query(&sql, &self.key());
    }

    /// Makes the message that the subscription has stopped at a dead letter. Fails if there is none.
    fn skip(&self) -> Result<()> {
        let skipped = query(
            &format!(
                "WITH skipped AS (DELETE FROM litmus_pgnats.stopped_message m USING litmus_pgnats.handler_stream d \
                 WHERE m.id = d.id AND {KEY} AND d.stopped IS NOT NULL RETURNING m.*), \
                 done AS (UPDATE litmus_pgnats.handler_stream d \
                 SET applied = d.applied + int8multirange(int8range(s.after_sequence, s.stream_sequence, '(]')) \
                 FROM skipped s WHERE d.id = s.id RETURNING d.*) \
                 INSERT INTO litmus_pgnats.dead_letter (source, server, role, stream, function, stream_sequence, \
                 delivery_count, subject, payload, headers, domain, error, sent) \
                 SELECT 'stream', d.server, h.role, d.subject, d.signature, s.stream_sequence, s.delivery_count, s.subject, \
                 s.payload, s.headers, d.domain, s.error, s.sent FROM skipped s JOIN done d USING (id) \
                 JOIN litmus_pgnats.handler h USING (kind, server, signature) WHERE h.subject = d.subject RETURNING 1"
            ),
            &self.key(),
        );
        if skipped.is_empty() {
            let stream = &self.stream;
            let text =
                format!("the durable subscription of stream \"{stream}\" has not stopped at a message");
            return Err(Error::new(Kind::Stopped, text)
                .detail("A subscription with stop_on_failure stops when a message has failed max_deliveries times.")
                .hint(""));
        }
        Ok(())
    }
}
