//! What the runtime worker counts, as rows of the views in schema `litmus_pgnats`. Pure.
//!
//! Each row is a struct, and its `columns` is the one place that knows the order of the columns, which is that of the
//! SQL function named beside the struct. No row is lost if the library's rows have more or fewer columns than the SQL
//! function declares: see `pg/fmgr.rs`.

#![forbid(unsafe_code)]

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::row::Row;

/// The kinds of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistics {
    /// Handlers of the session's database.
    Handlers,
    /// Executors of all databases.
    Executors,
    /// NATS connections of all databases.
    Connections,
    /// Objects that are being put and got, in all databases.
    Transfers,
    /// The control channel: one row.
    Channel,
}

/// Rows of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StatisticsRows {
    Handlers(Vec<HandlerRow>),
    Executors(Vec<ExecutorRow>),
    Connections(Vec<ConnectionRow>),
    Transfers(Vec<TransferRow>),
    Channel(ChannelRow),
}

impl StatisticsRows {
    /// The rows as text that the columns' types read.
    pub fn columns(self) -> Vec<Row> {
        match self {
            StatisticsRows::Handlers(rows) => rows.into_iter().map(HandlerRow::columns).collect(),
            StatisticsRows::Executors(rows) => rows.into_iter().map(ExecutorRow::columns).collect(),
            StatisticsRows::Connections(rows) => rows.into_iter().map(ConnectionRow::columns).collect(),
            StatisticsRows::Transfers(rows) => rows.into_iter().map(TransferRow::columns).collect(),
            StatisticsRows::Channel(row) => vec![row.columns()],
        }
    }
}

/// Seconds since 1970, as `to_timestamp` takes them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seconds(f64);

impl From<SystemTime> for Seconds {
    fn from(time: SystemTime) -> Seconds {
        // A clock before 1970 was never set.
        Seconds(
            time.duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
        )
    }
}

/// An error, and when it happened.
pub type LastError = (String, Seconds);

/// A row of `litmus_pgnats.stat_handlers()`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HandlerRow {
    /// Object id of the role that the function runs as; no column, but who may see the row.
    pub role: u32,
    pub kind: String,
    pub server: String,
    pub subject: String,
    pub function: String,
    pub state: String,
    pub problem: Option<String>,
    pub messages: u64,
    pub calls: u64,
    pub errors: u64,
    pub last_error: Option<LastError>,
    pub dropped: u64,
    pub queued: u64,
    pub queued_bytes: u64,
    /// Messages of the stream that a durable subscription has still to execute; `None` for other handlers, and for a
    /// handler that is not subscribed.
    pub pending: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub total_exec_ms: f64,
    pub max_exec_ms: f64,
    /// Calls by bucket of `litmus_pgnats.exec_time_bounds()`.
    pub exec_time_histogram: Vec<u64>,
    pub reset: Seconds,
    /// Name of a durable subscription's consumer; `None` for other handlers.
    pub consumer: Option<String>,
    /// Messages of a durable subscription that have failed and wait to be tried again; `None` for other handlers.
    pub retrying: Option<u64>,
}

impl HandlerRow {
    fn columns(self) -> Row {
        let (last_error, last_error_seconds) = error_columns(self.last_error);
        let histogram: Vec<String> = self.exec_time_histogram.iter().map(u64::to_string).collect();
        vec![
            Some(self.kind),
            Some(self.server),
            Some(self.subject),
            Some(self.function),
            Some(self.state),
            self.problem,
            bigint(self.messages),
            bigint(self.calls),
            bigint(self.errors),
            last_error,
            last_error_seconds,
            bigint(self.dropped),
            bigint(self.queued),
            bigint(self.queued_bytes),
            self.pending.and_then(bigint),
            self.lag_seconds.map(|lag| lag.to_string()),
            Some(self.total_exec_ms.to_string()),
            Some(self.max_exec_ms.to_string()),
            Some(format!("{{{}}}", histogram.join(","))),
            Some(self.reset.0.to_string()),
            self.consumer,
            self.retrying.and_then(bigint),
        ]
    }
}

/// A row of `litmus_pgnats.stat_executors()`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExecutorRow {
    pub database: u32,
    /// `None` while there is no process yet.
    pub pid: Option<u32>,
    pub state: String,
    pub handler: Option<String>,
    /// For how long the executor has been in this state.
    pub seconds: f64,
}

impl ExecutorRow {
    fn columns(self) -> Row {
        vec![
            Some(self.database.to_string()),
            self.pid.map(|pid| pid.to_string()),
            Some(self.state),
            self.handler,
            Some(self.seconds.to_string()),
        ]
    }
}

/// A row of `litmus_pgnats.stat_connections()`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionRow {
    pub database: u32,
    pub server: u32,
    pub server_name: String,
    pub user_mapping: Option<u32>,
    /// Process of the session that alone uses the connection; `None` if the connection is shared.
    pub pid: Option<u32>,
    pub sessions: u64,
    pub state: String,
    pub host: Option<String>,
    pub since: Seconds,
    pub reconnects: u64,
    pub last_error: Option<LastError>,
    pub rtt_ms: Option<f64>,
    pub in_msgs: u64,
    pub out_msgs: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
    pub queued: u64,
    pub queued_bytes: u64,
    pub reset: Seconds,
}

impl ConnectionRow {
    fn columns(self) -> Row {
        let (last_error, last_error_seconds) = error_columns(self.last_error);
        vec![
            Some(self.database.to_string()),
            Some(self.server.to_string()),
            Some(self.server_name),
            self.user_mapping.map(|mapping| mapping.to_string()),
            self.pid.map(|pid| pid.to_string()),
            bigint(self.sessions),
            Some(self.state),
            self.host,
            Some(self.since.0.to_string()),
            bigint(self.reconnects),
            last_error,
            last_error_seconds,
            self.rtt_ms.map(|rtt| rtt.to_string()),
            bigint(self.in_msgs),
            bigint(self.out_msgs),
            bigint(self.in_bytes),
            bigint(self.out_bytes),
            bigint(self.queued),
            bigint(self.queued_bytes),
            Some(self.reset.0.to_string()),
        ]
    }
}

/// A row of `litmus_pgnats.stat_transfers()`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TransferRow {
    pub pid: u32,
    pub database: u32,
    pub server: u32,
    pub server_name: String,
    /// `put` or `get`.
    pub command: String,
    pub store: String,
    pub name: String,
    pub bytes_processed: u64,
    /// `None` as long as the size is not known.
    pub bytes_total: Option<u64>,
    pub since: Seconds,
}

impl TransferRow {
    fn columns(self) -> Row {
        vec![
            Some(self.pid.to_string()),
            Some(self.database.to_string()),
            Some(self.server.to_string()),
            Some(self.server_name),
            Some(self.command),
            Some(self.store),
            Some(self.name),
            bigint(self.bytes_processed),
            self.bytes_total.and_then(bigint),
            Some(self.since.0.to_string()),
        ]
    }
}

/// The row of `litmus_pgnats.stat_control_channel()`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChannelRow {
    pub pid: u32,
    pub started: Seconds,
    pub connections: u64,
    pub calls: u64,
    pub queued_bytes: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub reset: Seconds,
}

impl ChannelRow {
    fn columns(self) -> Row {
        vec![
            Some(self.pid.to_string()),
            Some(self.started.0.to_string()),
            bigint(self.connections),
            bigint(self.calls),
            bigint(self.queued_bytes),
            bigint(self.frames_in),
            bigint(self.frames_out),
            bigint(self.bytes_in),
            bigint(self.bytes_out),
            Some(self.reset.0.to_string()),
        ]
    }
}

/// A number as text for the type bigint, at most the largest bigint.
fn bigint(number: u64) -> Option<String> {
    Some(number.min(i64::MAX as u64).to_string())
}

fn error_columns(error: Option<LastError>) -> (Option<String>, Option<String>) {
    match error {
        Some((what, when)) => (Some(what), Some(when.0.to_string())),
        None => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of columns of a function in the SQL script.
    fn declared(function: &str) -> usize {
        let script = include_str!(concat!(
            "../../sql/litmus_pgnats--",
            env!("LITMUS_PGNATS_VERSION"),
            ".sql"
        ));
        let (_, rest) = script
            .split_once(&format!("FUNCTION litmus_pgnats.{function}("))
            .expect("a function");
        let (columns, _) = rest.split_once(") RETURNS").expect("a result");
        columns.matches("OUT ").count()
    }

    #[test]
    fn rows_have_the_columns_that_the_sql_script_declares() {
        let now = Seconds::from(SystemTime::now());
        let text = String::new;
        let handler = HandlerRow {
            role: 10,
            kind: text(),
            server: text(),
            subject: text(),
            function: text(),
            state: text(),
            problem: None,
            messages: 0,
            calls: 0,
            errors: 0,
            last_error: None,
            dropped: 0,
            queued: 0,
            queued_bytes: 0,
            pending: Some(u64::MAX),
            lag_seconds: None,
            total_exec_ms: 0.0,
            max_exec_ms: 0.0,
            exec_time_histogram: vec![1, 2],
            reset: now,
            consumer: None,
            retrying: Some(2),
        };
        let columns = handler.columns();
        assert_eq!(columns[14].as_deref(), Some("9223372036854775807"));
        assert_eq!(columns[18].as_deref(), Some("{1,2}"));
        assert_eq!(columns.len(), declared("stat_handlers"));
        let executor = ExecutorRow {
            database: 1,
            pid: None,
            state: text(),
            handler: None,
            seconds: 0.0,
        };
        assert_eq!(executor.columns().len(), declared("stat_executors"));
        let connection = ConnectionRow {
            database: 1,
            server: 2,
            server_name: text(),
            user_mapping: None,
            pid: None,
            sessions: 0,
            state: text(),
            host: None,
            since: now,
            reconnects: 0,
            last_error: Some((text(), now)),
            rtt_ms: None,
            in_msgs: 0,
            out_msgs: 0,
            in_bytes: 0,
            out_bytes: 0,
            queued: 0,
            queued_bytes: 0,
            reset: now,
        };
        assert_eq!(connection.columns().len(), declared("stat_connections"));
        let transfer = TransferRow {
            pid: 1,
            database: 1,
            server: 2,
            server_name: text(),
            command: text(),
            store: text(),
            name: text(),
            bytes_processed: 0,
            bytes_total: None,
            since: now,
        };
        assert_eq!(transfer.columns().len(), declared("stat_transfers"));
        let channel = ChannelRow {
            pid: 1,
            started: now,
            connections: 0,
            calls: 0,
            queued_bytes: 0,
            frames_in: 0,
            frames_out: 0,
            bytes_in: 0,
            bytes_out: 0,
            reset: now,
        };
        assert_eq!(channel.columns().len(), declared("stat_control_channel"));
    }
}
