//! `nats_subscribe_stream` and `nats_unsubscribe_stream`: durable subscriptions, which are handlers with a row of their
//! own in `litmus_pgnats.handler_stream`. Runs in backends, on the main thread.

use std::borrow::Cow;

use super::arguments::null;
use super::handlers;
use super::handlers::{NewHandler, Written, batch_size, function_argument};
use super::own_tables::OwnTables;
use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::nats::{names, subject};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::query::Argument::{Int8, OptionalText, Text};
use crate::pg::query::query;

sql_function!(nats_subscribe_stream, subscribe);
sql_function!(nats_unsubscribe_stream, unsubscribe);

/// Most filters of one subscription, and most steps of its backoff.
const MAX_FILTERS: usize = 100;
/// Bounds of ack_wait, in milliseconds: JetStream has no use for less, and nobody for more.
const ACK_WAIT: std::ops::RangeInclusive<i64> = 1_000..=86_400_000;

/// `(stream, fn, filter_subjects, deliver, start_sequence, start_time, batch_size, ack_wait, max_deliveries, backoff,
/// stop_on_failure, durable, domain)`.
fn subscribe(call: &Call<'_>) -> Result<Value> {
    let stream = stream_argument(call)?;
    let function = function_argument(call)?;
    let filters = call.text_array(2)?;
    if filters.len() > MAX_FILTERS {
        return Err(Error::new(Kind::InvalidArgument, "too many filter subjects")
            .detail(format!("The limit is {MAX_FILTERS}.")));
    }
    for filter in &filters {
        subject::check_subscribe(filter)?;
    }
    let options = StreamOptions::read(call, filters)?;
    let size = function.takes_batches().then_some(options.batch_size);
    let written = handlers::write(&NewHandler {
        kind: HandlerKind::Stream,
        subject: &stream,
        queue_group: None,
        batch_size: size,
        function: &function,
    })?;
    options.write(&stream, &written);
    Ok(Value::Void)
}

/// What only a durable subscription has; intervals and times are text.
struct StreamOptions {
    filters: Vec<String>,
    deliver: &'static str,
    start_sequence: Option<i64>,
    start_time: Option<String>,
    batch_size: i64,
    ack_wait: Option<String>,
    max_deliveries: i32,
    backoff: Option<String>,
    stop_on_failure: bool,
    durable: Option<String>,
    domain: Option<String>,
}

impl StreamOptions {
    /// Reads and checks the arguments from the fourth one on.
    fn read(call: &Call<'_>, filters: Vec<String>) -> Result<StreamOptions> {
        let deliver = deliver(call)?;
        let batch_size = batch_size(call.int4(6))?.ok_or_else(|| null("batch_size"))?;
        let ack_wait = call.interval_ms(7).ok_or_else(|| null("ack_wait"))?;
        if !ACK_WAIT.contains(&ack_wait) {
            return Err(Error::new(Kind::InvalidArgument, "ack_wait is out of range")
                .detail("It is between one second and one day."));
        }
        let max_deliveries = call.int4(8).unwrap_or(0);
        if max_deliveries < 0 {
            return Err(Error::new(Kind::InvalidArgument, "max_deliveries is negative")
                .hint("With 0 a message is tried for ever."));
        }
        let backoff = call.any_as_text(9)?;
        check_backoff(backoff.as_deref())?;
        let durable = call.text(11)?.map(Cow::into_owned);
        durable.as_deref().map_or(Ok(()), names::check_durable)?;
        let domain = call.text(12)?.map(Cow::into_owned);
        domain.as_deref().map_or(Ok(()), names::check_domain)?;
        Ok(StreamOptions {
            filters,
            deliver,
            start_sequence: call.int8(4),
            start_time: call.any_as_text(5)?,
            batch_size,
            ack_wait: call.any_as_text(7)?,
            max_deliveries,
            backoff,
            stop_on_failure: call.boolean(10).unwrap_or(false),
            durable,
            domain,
        })
    }

    /// Writes the row that only a durable subscription has.
    fn write(&self, stream: &str, written: &Written) {
        let filters = serde_json::Value::from(self.filters.clone()).to_string();
        query(
            "INSERT INTO litmus_pgnats.handler_stream (server, subject, signature, filter_subjects, deliver, start_sequence, \
             start_time, batch_size, ack_wait, max_deliveries, backoff, stop_on_failure, durable, domain, applied) \
             VALUES ($1, $2, $3, ARRAY(SELECT json_array_elements_text($4::json)), $5, nullif($6, 0), $7::timestamptz, $8, \
             $9::interval, $10, coalesce($11::interval[], '{}'), $12::boolean, $13, $14, \
             CASE $5 WHEN 'all' THEN '{[0,1)}' WHEN 'sequence' THEN int8multirange(int8range(0, $6)) ELSE '{}' END) \
             ON CONFLICT (kind, server, subject, signature) DO UPDATE SET filter_subjects = excluded.filter_subjects, \
             batch_size = excluded.batch_size, ack_wait = excluded.ack_wait, max_deliveries = excluded.max_deliveries, \
             backoff = excluded.backoff, stop_on_failure = excluded.stop_on_failure, durable = excluded.durable, \
             domain = excluded.domain, stopped = NULL",
            &[
                Text(&written.server),
                Text(stream),
                Text(&written.signature),
                Text(&filters),
                Text(self.deliver),
                Int8(self.start_sequence.unwrap_or(0)),
                OptionalText(self.start_time.as_deref()),
                Int8(self.batch_size),
                OptionalText(self.ack_wait.as_deref()),
                Int8(self.max_deliveries.into()),
                OptionalText(self.backoff.as_deref()),
                Text(if self.stop_on_failure { "true" } else { "false" }),
                OptionalText(self.durable.as_deref()),
                OptionalText(self.domain.as_deref()),
            ],
        );
    }
}

/// Checks `backoff`, the pauses between deliveries.
fn check_backoff(backoff: Option<&str>) -> Result<()> {
    let _table = OwnTables::open()?;
    let rows = query(
        "SELECT count(*), count(*) FILTER (WHERE b BETWEEN '0' AND '1 day') FROM unnest($1::interval[]) b",
        &[OptionalText(backoff)],
    );
    let mut counts = rows
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|count| count.parse().ok());
    let (all, good): (usize, usize) = (counts.next().unwrap_or(0), counts.next().unwrap_or(0));
    if all == good && all <= MAX_FILTERS {
        return Ok(());
    }
    Err(
        Error::new(Kind::InvalidArgument, "backoff is out of range").detail(format!(
            "It has up to {MAX_FILTERS} intervals between 0 and one day."
        )),
    )
}

/// Where the consumer begins, by the name that the table has for that.
fn deliver(call: &Call<'_>) -> Result<&'static str> {
    let deliver = call.text(3)?.ok_or_else(|| null("deliver"))?;
    let (sequence, time) = (call.int8(4), call.any_as_text(5)?);
    if sequence.is_some_and(|sequence| sequence < 1) {
        return Err(
            Error::new(Kind::InvalidArgument, "start_sequence is out of range")
                .detail("The first message of a stream has sequence 1."),
        );
    }
    match (&*deliver, sequence, time) {
        ("all", None, None) => Ok("all"),
        ("new", None, None) => Ok("new"),
        ("all", Some(_), None) => Ok("sequence"),
        ("all", None, Some(_)) => Ok("time"),
        ("all" | "new", ..) => Err(Error::new(
            Kind::InvalidArgument,
            "deliver => 'new', start_sequence and start_time exclude each other",
        )),
        _ => Err(Error::new(
            Kind::InvalidArgument,
            format!("invalid value for deliver: \"{deliver}\""),
        )
        .hint("It is \"all\" or \"new\".")),
    }
}

/// `(stream, fn)`.
fn unsubscribe(call: &Call<'_>) -> Result<Value> {
    let stream = stream_argument(call)?;
    let function = function_argument(call)?;
    handlers::remove(HandlerKind::Stream, &stream, Some(&function))
}

fn stream_argument<'a>(call: &Call<'a>) -> Result<std::borrow::Cow<'a, str>> {
    let stream = call.text(0)?.ok_or_else(|| null("stream"))?;
    names::check_stream(&stream)?;
    Ok(stream)
}
