//! What the table says of a durable subscription, as the runtime is told. Runs in executors.

use serde::Deserialize;

use crate::channel::work::{Consumer, DeliverFrom, StreamProgress};

/// A durable subscription, beyond what every handler has.
pub struct Durable {
    pub consumer: Consumer,
    pub progress: StreamProgress,
    /// Why it has stopped, if it has.
    pub stopped: Option<String>,
}

/// As the look's query builds it.
#[derive(Deserialize)]
struct Columns {
    id: String,
    domain: Option<String>,
    filter_subjects: Vec<String>,
    durable: String,
    deliver: String,
    start_sequence: Option<u64>,
    start_time: Option<String>,
    batch_size: u32,
    ack_wait_ms: f64,
    max_deliveries: u32,
    backoff_ms: Vec<f64>,
    stop_on_failure: bool,
    stopped: Option<String>,
    stream_created: Option<String>,
    floor: Option<u64>,
}

/// Reads the JSON object of a row; `None` if it is none.
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
        },
        progress: StreamProgress {
            floor: row.floor,
            stream_created: row.stream_created,
        },
        stopped: row.stopped,
    })
}

/// PostgreSQL's JSON has no whole numbers of its own; what is not one is cut off.
fn milliseconds(number: f64) -> u64 {
    number.clamp(0.0, 1e15) as u64
}
