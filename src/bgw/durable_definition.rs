//! Reads what only durable subscriptions have, as a definition takes it. Pure; used by executors.

use serde::Deserialize;

use crate::channel::marks::Marks;
use crate::channel::progress::{Position, StreamProgress};
use crate::channel::work::{Consumer, DeliverFrom};

/// What only a durable subscription has.
pub struct Durable {
    pub consumer: Consumer,
    pub progress: StreamProgress,
    /// Why the subscription has stopped; `None` if it has not.
    pub stopped: Option<String>,
    /// Whether the subscription has a name of its own.
    pub is_named: bool,
}

/// The JSON object that the query in `definitions.rs` builds.
#[derive(Deserialize)]
struct Columns {
    id: String,
    cluster: i64,
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
    sought: bool,
    is_named: bool,
    stopped: Option<String>,
    positions: Vec<PositionColumns>,
}

/// The position in an incarnation of the stream. The first one is that of `handler_stream`, whose token is `None` as long
/// as no message was applied.
#[derive(Deserialize)]
struct PositionColumns {
    token: Option<String>,
    created: Option<String>,
    marks: String,
    ack_floor: Option<u64>,
}

impl PositionColumns {
    fn position(self) -> Option<Position> {
        Some(Position {
            token: self.token?,
            created: self.created.unwrap_or_default(),
            ack_floor: self.ack_floor,
            marks: Marks::parse(&self.marks),
            branch: None,
        })
    }
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
            cluster: row.cluster,
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
            is_sought: row.sought,
            first_floor: row.positions.first().and_then(|position| position.ack_floor),
            positions: row
                .positions
                .into_iter()
                .filter_map(PositionColumns::position)
                .collect(),
        },
        stopped: row.stopped,
        is_named: row.is_named,
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
            r#"{{"id": "1", "cluster": 7, "filter_subjects": ["a"], "durable": "d", "deliver": "{deliver}", "batch_size": 10,
            "ack_wait_ms": 30000.5, "max_deliveries": 5, "backoff_ms": [100, -1], "stop_on_failure": false, "resumed": 0, "sought": false, "is_named": false,
            "positions": [{{"marks": "{{}}"}}]{more}}}"#
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
        let durable = read(&row("all", r#", "stopped": "why""#));
        let durable = durable.expect("a subscription");
        assert_eq!(
            (durable.consumer.ack_wait_ms, durable.consumer.backoff_ms),
            (30_000, vec![100, 0])
        );
        assert_eq!(
            durable.progress,
            StreamProgress::default(),
            "no message was applied"
        );
        assert_eq!(durable.stopped.as_deref(), Some("why"));
        assert!(!durable.is_named);
        assert!(read("{}").is_none());
        let row = row("all", "").replace(
            r#"[{"marks": "{}"}]"#,
            r#"[{"token": "b", "created": "now", "marks": "{3,7}", "ack_floor": 3}, {"token": "a", "marks": "{}"}]"#,
        );
        let progress = read(&row).expect("a subscription").progress;
        assert_eq!(progress.first_floor, Some(3));
        let tokens: Vec<&str> = progress
            .positions
            .iter()
            .map(|position| position.token.as_str())
            .collect();
        assert_eq!(tokens, ["b", "a"]);
        assert_eq!(
            progress
                .position("b")
                .map(|position| position.marks.array())
                .as_deref(),
            Some("{3,7}")
        );
    }
}
