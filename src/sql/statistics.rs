//! What the runtime worker counts, as rows for the views of schema `litmus_pgnats`. Runs in backends, on the main
//! thread.

use super::{call, parameters, session};
use crate::channel::message::{Reply, Request};
use crate::channel::statistics::{Statistics, StatisticsRows};
use crate::error::Result;
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::{databases, encoding, rights};
use crate::row::Row;

sql_function!(litmus_pgnats_stat_handlers, |_: &Call<'_>| rows(
    Statistics::Handlers
));
sql_function!(litmus_pgnats_stat_executors, |_: &Call<'_>| rows(
    Statistics::Executors
));
sql_function!(litmus_pgnats_stat_connections, |_: &Call<'_>| rows(
    Statistics::Connections
));
sql_function!(litmus_pgnats_stat_transfers, |_: &Call<'_>| rows(
    Statistics::Transfers
));
sql_function!(litmus_pgnats_stat_control_channel, |_: &Call<'_>| rows(
    Statistics::Channel
));
sql_function!(litmus_pgnats_stat_reset, |_: &Call<'_>| reset());

/// The rows of a view. None if the runtime worker does not run: a view does not start it.
fn rows(of: Statistics) -> Result<Value> {
    if !call::join_runtime_if_running() {
        return Ok(Value::Rows(Vec::new()));
    }
    let database = databases::database_oid();
    let request = Request::Statistics { database, of };
    match call::tell(&request, parameters::connect_timeout())?.message {
        Reply::Statistics(rows) => Ok(displayable(visible(rows).columns())),
        _ => Err(session::unexpected_reply()),
    }
}

/// The rows that the current role may see: of handlers its own, unless it may monitor all.
fn visible(rows: StatisticsRows) -> StatisticsRows {
    match rows {
        StatisticsRows::Handlers(mut rows) if !rights::may_monitor() => {
            rows.retain(|row| rights::has_privileges_of(row.role));
            StatisticsRows::Handlers(rows)
        }
        rows => rows,
    }
}

/// The rows, with text that this database's encoding can hold: names from other databases and from NATS may have
/// characters that it lacks.
pub fn displayable(rows: Vec<Row>) -> Value {
    let row = |row: Row| {
        row.into_iter()
            .map(|text| text.map(encoding::displayable))
            .collect()
    };
    Value::Rows(rows.into_iter().map(row).collect())
}

/// Resets the statistics; if the runtime worker does not run, there are none.
fn reset() -> Result<Value> {
    if call::join_runtime_if_running() {
        let database = databases::database_oid();
        call::tell(
            &Request::ResetStatistics { database },
            parameters::connect_timeout(),
        )?;
    }
    Ok(Value::Void)
}
