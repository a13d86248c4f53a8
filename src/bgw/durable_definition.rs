//! Reads what only durable subscriptions have, as a definition takes it. Pure; used by executors.

use serde::Deserialize;

use crate::channel::work::{Consumer, DeliverFrom, StreamProgress};

/// What only a durable subscription has.
pub struct Durable {
    pub consumer: Consumer,
    pub progress: StreamProgress,
    /// Why the subscription has stopped; `None` if it has not.
    pub stopped: Option<String>,
}

/// The JSON object that the query in `definitions.rs` builds.
#[derive(Deserialize)]
struct Columns {
    id: String,
    domain: Option<String>,
    filter_subjects: Vec<String>,
    durable: String,
    deliver: String,
    start_sequence: Option<u64>,
    start_time: Option<i64>,
    batch_size: u32,
    ack_wait_ms: f64,
    max_deliveries: u32,
    backoff_ms: Vec<f64>,
    stop_on_failure: bool,
    resumed: u32,
    stopped: Option<String>,
    stream_created: Option<String>,
    ack_floor: Option<u64>,
}

/// Reads the JSON object of a row; `None` if it does not have the fields of a durable subscription.
pub fn read(row: &str) -> Option<Durable> {
    let row: Columns = serde_json::from_str(row).ok()?;
    let start = match (row.deliver.as_str(), row.start_sequence, row.start_time) {
        ("new", ..) => DeliverFrom::New,
        ("sequence", Some(sequence), _) => DeliverFrom::Sequence(sequence),
        ("time", _, Some(time)) => DeliverFrom::Time(time),
        _ => DeliverFrom::All,
    };
    Some(Durable {
        consumer: Consumer {
            id: row.id,
            durable: row.durable,
            domain: row.domain,
            filter_subjects: row.filter_subjects,
            start,
            batch_size: row.batch_size,
            ack_wait_ms: milliseconds(row.ack_wait_ms),
            max_deliveries: row.max_deliveries,
            backoff_ms: row.backoff_ms.into_iter().map(milliseconds).collect(),
            stop_on_failure: row.stop_on_failure,
            resumed: row.resumed,
        },
        progress: StreamProgress {
            ack_floor: row.ack_floor,
            stream_created: row.stream_created,
        },
        stopped: row.stopped,
    })
}

/// Milliseconds come as JSON numbers with fractions, which are cut off.
fn milliseconds(number: f64) -> u64 {
    number.clamp(0.0, 1e15) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(deliver: &str, more: &str) -> String {
        format!(
            r#"{{"id": "1", "filter_subjects": ["a"], "durable": "d", "deliver": "{deliver}", "batch_size": 10,
            "ack_wait_ms": 30000.5, "max_deliveries": 5, "backoff_ms": [100, -1], "stop_on_failure": false, "resumed": 0{more}}}"#
        )
    }

    #[test]
    fn a_row_says_where_a_subscription_begins() {
        let start =
            |deliver: &str, more: &str| read(&row(deliver, more)).expect("a subscription").consumer.start;
        assert_eq!(start("all", ""), DeliverFrom::All);
        assert_eq!(start("new", ""), DeliverFrom::New);
        assert_eq!(
            start("sequence", r#", "start_sequence": 7"#),
            DeliverFrom::Sequence(7)
        );
        assert_eq!(
            start("time", r#", "start_time": 1767225600000000"#),
            DeliverFrom::Time(1_767_225_600_000_000)
        );
    }

    #[test]
    fn a_row_says_how_far_a_subscription_is() {
        let durable = read(&row(
            "all",
            r#", "ack_floor": 9, "stream_created": "now", "stopped": "why""#,
        ));
        let durable = durable.expect("a subscription");
        assert_eq!(
            (durable.consumer.ack_wait_ms, durable.consumer.backoff_ms),
            (30_000, vec![100, 0])
        );
        assert_eq!(durable.progress.ack_floor, Some(9));
        assert_eq!(durable.stopped.as_deref(), Some("why"));
        assert!(read("{}").is_none());
    }
}
