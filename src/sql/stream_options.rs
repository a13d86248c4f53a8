//! The arguments of durable subscriptions, and the rows that hold them. Runs in backends, on the main thread.

use std::borrow::Cow;

use super::arguments::{domain_argument, null};
use super::handlers::{Written, batch_size};
use super::own_tables::OwnTables;
use crate::error::{Error, Kind, Result};
use crate::nats::{names, subject};
use crate::pg::fmgr::Call;
use crate::pg::query::Argument::{Int8, OptionalText, Text};
use crate::pg::query::query;

/// Most filters of one subscription, and most steps of its backoff.
const MAX_FILTERS: usize = 100;
/// Longest name of a subscription, in bytes.
const MAX_NAME: usize = 255;
/// Bounds of ack_wait, in milliseconds: JetStream has no use for less, and nobody for more.
const ACK_WAIT: std::ops::RangeInclusive<i64> = 1_000..=86_400_000;

/// Where a subscription begins; `None` stands for what is usual.
#[derive(Default)]
pub struct Start {
    pub deliver: Option<&'static str>,
    pub sequence: Option<i64>,
    /// Microseconds since 1970.
    pub time: Option<i64>,
}

impl Start {
    /// The arguments `deliver`, `start_sequence` and `start_time` of `nats_subscribe_stream`.
    pub fn read(call: &Call<'_>) -> Result<Start> {
        let deliver = call.text(3)?;
        let time = time_argument(call, 5, "start_time")?;
        Start::check(deliver.as_deref(), ("start_sequence", call.int8(4)), time)
    }

    /// Where the consumer begins, by the name that the table has for that. `time` is in microseconds since 1970.
    /// The sequence comes with the name of its argument.
    pub fn check(
        deliver: Option<&str>,
        (argument, sequence): (&str, Option<i64>),
        time: Option<i64>,
    ) -> Result<Start> {
        if sequence.is_some_and(|sequence| sequence < 1) {
            return Err(
                Error::new(Kind::InvalidArgument, format!("{argument} is out of range"))
                    .detail("The first message of a stream has sequence 1."),
            );
        }
        let deliver = match (deliver, sequence, time) {
            (None, None, None) => None,
            (Some("all"), None, None) => Some("all"),
            (Some("new"), None, None) => Some("new"),
            (None | Some("all"), Some(_), None) => Some("sequence"),
            (None | Some("all"), None, Some(_)) => Some("time"),
            (None | Some("all" | "new"), ..) => {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    "deliver => 'new', start_sequence and start_time exclude each other",
                ));
            }
            (Some(deliver), ..) => {
                let text = format!("invalid value for deliver: \"{deliver}\"");
                return Err(Error::new(Kind::InvalidArgument, text).hint("It is \"all\" or \"new\"."));
            }
        };
        Ok(Start {
            deliver,
            sequence,
            time,
        })
    }
}

/// What only a durable subscription has; intervals are text. `None` stands for the usual value, or for what was before.
#[derive(Default)]
pub struct StreamOptions {
    pub start: Start,
    filters: Option<Vec<String>>,
    batch_size: Option<i64>,
    ack_wait: Option<String>,
    max_deliveries: Option<i32>,
    backoff: Option<String>,
    stop_on_failure: Option<bool>,
    durable: Option<String>,
    domain: Option<String>,
    pub name: Option<String>,
}

impl StreamOptions {
    /// Reads and checks arguments: `filter_subjects`, and `batch_size` with those behind it.
    pub fn read(call: &Call<'_>, filters: usize, first: usize) -> Result<StreamOptions> {
        let filters = filters_argument(call, filters)?;
        let batch_size = batch_size(call.int4(first))?;
        if call
            .interval_ms(first + 1)
            .is_some_and(|ack_wait| !ACK_WAIT.contains(&ack_wait))
        {
            return Err(Error::new(Kind::InvalidArgument, "ack_wait is out of range")
                .detail("It is between one second and one day."));
        }
        let max_deliveries = call.int4(first + 2);
        if max_deliveries.is_some_and(|most| most < 0) {
            return Err(Error::new(Kind::InvalidArgument, "max_deliveries is negative")
                .hint("With 0 a message is tried for ever."));
        }
        let backoff = call.any_as_text(first + 3)?;
        check_backoff(backoff.as_deref())?;
        let durable = call.text(first + 5)?.map(Cow::into_owned);
        durable.as_deref().map_or(Ok(()), names::check_durable)?;
        let name = call.text(first + 7)?.map(Cow::into_owned);
        if name
            .as_deref()
            .is_some_and(|name| name.is_empty() || name.len() > MAX_NAME)
        {
            return Err(Error::new(
                Kind::InvalidName,
                "the name of a subscription is empty or too long",
            )
            .detail(format!("It has up to {MAX_NAME} bytes.")));
        }
        Ok(StreamOptions {
            start: Start::default(),
            filters,
            batch_size,
            ack_wait: call.any_as_text(first + 1)?,
            max_deliveries,
            backoff,
            stop_on_failure: call.boolean(first + 4),
            durable,
            domain: domain_argument(call, first + 6)?,
            name,
        })
    }

    /// Fails if another subscription has the consumer that `durable` names: each would take messages from the other.
    pub fn check_consumer(&self, stream: &str, written: &Written) -> Result<()> {
        let Some(durable) = &self.durable else {
            return Ok(());
        };
        let others = query(
            "SELECT signature FROM litmus_pgnats.handler_stream WHERE server = $1 AND subject = $2 AND signature <> $3 \
             AND durable = $4 AND coalesce(domain, '') = coalesce($5, (SELECT domain FROM litmus_pgnats.handler_stream \
             WHERE server = $1 AND subject = $2 AND signature = $3), '')",
            &[
                Text(&written.server),
                Text(stream),
                Text(&written.signature),
                Text(durable),
                OptionalText(self.domain.as_deref()),
            ],
        );
        if others.is_empty() {
            return Ok(());
        }
        let message =
            format!("consumer \"{durable}\" is that of another durable subscription of stream \"{stream}\"");
        Err(Error::new(Kind::InvalidName, message).hint("Give another name, or none."))
    }

    /// Fails if another subscription of the stream has the name.
    pub fn check_name(&self, stream: &str, written: &Written) -> Result<()> {
        let Some(name) = &self.name else {
            return Ok(());
        };
        let others = query(
            "SELECT signature FROM litmus_pgnats.handler_stream WHERE (server, subject, name) = ($1, $2, $3) \
             AND signature <> $4",
            &[
                Text(&written.server),
                Text(stream),
                Text(name),
                Text(&written.signature),
            ],
        );
        if others.is_empty() {
            return Ok(());
        }
        let text = format!("\"{name}\" is another durable subscription of stream \"{stream}\"");
        Err(Error::new(Kind::InvalidName, text).hint("Give another name, or none."))
    }

    /// Writes the row that only a durable subscription has; whether the row is new.
    pub fn write(&self, stream: &str, written: &Written) -> bool {
        let filters = self.filters.clone();
        let filters = filters.map(|filters| serde_json::Value::from(filters).to_string());
        let number = |number: Option<i64>| number.map(|number| number.to_string());
        let (batch_size, most) = (
            number(self.batch_size),
            number(self.max_deliveries.map(i64::from)),
        );
        let rows = query(
            "WITH given AS (SELECT ARRAY(SELECT json_array_elements_text($4::json)) AS filters, \
             $8::integer AS batch_size, $9::interval AS ack_wait, $10::integer AS max_deliveries, $11::interval[] AS backoff, \
             $12::boolean AS stop_on_failure) \
             INSERT INTO litmus_pgnats.handler_stream AS d (server, subject, signature, filter_subjects, deliver, \
             start_sequence, start_time, batch_size, ack_wait, max_deliveries, backoff, stop_on_failure, durable, domain, name, applied) \
             SELECT $1, $2, $3, filters, $5, nullif($6, 0), \
             CASE WHEN $5 = 'time' THEN timestamptz 'epoch' + $7 * interval '1 microsecond' END, coalesce(batch_size, 500), \
             coalesce(ack_wait, '30 s'), coalesce(max_deliveries, 5), coalesce(backoff, '{1 s,5 s,30 s}'), \
             coalesce(stop_on_failure, false), $13, $14, $15, \
             CASE $5 WHEN 'all' THEN '{[0,1)}' WHEN 'sequence' THEN int8multirange(int8range(0, $6)) ELSE '{}' END FROM given \
             ON CONFLICT (kind, server, subject, signature) DO UPDATE SET \
             filter_subjects = CASE WHEN $4 IS NULL THEN d.filter_subjects ELSE excluded.filter_subjects END, \
             batch_size = coalesce($8::integer, d.batch_size), ack_wait = coalesce($9::interval, d.ack_wait), \
             max_deliveries = coalesce($10::integer, d.max_deliveries), backoff = coalesce($11::interval[], d.backoff), \
             stop_on_failure = coalesce($12::boolean, d.stop_on_failure), durable = coalesce($13, d.durable), \
             domain = coalesce($14, d.domain), name = coalesce($15, d.name) \
             RETURNING xmax = 0",
            &[
                Text(&written.server),
                Text(stream),
                Text(&written.signature),
                OptionalText(filters.as_deref()),
                Text(self.start.deliver.unwrap_or("all")),
                Int8(self.start.sequence.unwrap_or(0)),
                Int8(self.start.time.unwrap_or(0)),
                OptionalText(batch_size.as_deref()),
                OptionalText(self.ack_wait.as_deref()),
                OptionalText(most.as_deref()),
                OptionalText(self.backoff.as_deref()),
                OptionalText(
                    self.stop_on_failure
                        .map(|stops| if stops { "true" } else { "false" }),
                ),
                OptionalText(self.durable.as_deref()),
                OptionalText(self.domain.as_deref()),
                OptionalText(self.name.as_deref()),
            ],
        );
        rows.into_iter().flatten().flatten().next().as_deref() == Some("t")
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

/// The subjects of the stream that a subscription wants.
fn filters_argument(call: &Call<'_>, index: usize) -> Result<Option<Vec<String>>> {
    let filters = call.text_array(index)?;
    if filters
        .as_ref()
        .is_some_and(|filters| filters.len() > MAX_FILTERS)
    {
        return Err(Error::new(Kind::InvalidArgument, "too many filter subjects")
            .detail(format!("The limit is {MAX_FILTERS}.")));
    }
    for filter in filters.iter().flatten() {
        subject::check_subscribe(filter)?;
    }
    Ok(filters)
}

/// A time to begin at, in microseconds since 1970, before which there are no messages. Fails for a time that JetStream
/// cannot count to, which names the argument.
pub fn time_argument(call: &Call<'_>, index: usize, argument: &str) -> Result<Option<i64>> {
    /// JetStream counts nanoseconds in 64 bits.
    const MOST_US: i64 = i64::MAX / 1000;
    match call.timestamptz_us(index) {
        Some(time) if time > MOST_US => Err(Error::new(
            Kind::InvalidArgument,
            format!("{argument} is out of range"),
        )
        .detail("JetStream knows times up to 2262-04-11.")),
        time => Ok(time.map(|time| time.max(0))),
    }
}

/// The first argument, the name of a stream. Fails if it is NULL or not valid.
pub fn stream_argument<'a>(call: &Call<'a>) -> Result<std::borrow::Cow<'a, str>> {
    let stream = call.text(0)?.ok_or_else(|| null("stream"))?;
    names::check_stream(&stream)?;
    Ok(stream)
}
