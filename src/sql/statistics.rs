//! What the runtime counts, as rows for the views of schema `litmus_pgnats`.

use super::{call, settings};
use crate::channel::message::{Reply, Request, Statistics};
use crate::error::Result;
use crate::pg::catalog;
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(litmus_pgnats_stat_handlers, |_: &Call<'_>| rows(
    Statistics::Handlers
));
sql_function!(litmus_pgnats_stat_executors, |_: &Call<'_>| rows(
    Statistics::Executors
));

/// No rows if the runtime does not run: nothing is started to be looked at.
fn rows(of: Statistics) -> Result<Value> {
    if !call::join_runtime_if_running() {
        return Ok(Value::Rows(Vec::new()));
    }
    let database = catalog::database_oid();
    let request = Request::Statistics { database, of };
    match call::tell(&request, settings::connect_timeout())?.message {
        Reply::Rows(rows) => Ok(Value::Rows(rows)),
        _ => Err(call::unexpected_reply()),
    }
}
