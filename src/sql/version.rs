//! `litmus_pgnats_version()`, and what CREATE EXTENSION refuses. Runs in backends, on the main thread.

use crate::error::{Error, Kind, Result};
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(litmus_pgnats_version, version);
sql_function!(litmus_pgnats_refuse, refuse);

/// Called by the install script with the name of another extension and of a function in it that has the name of one of
/// this extension's. As overloads, both could be created, and calls would then mean one or the other, or be ambiguous.
fn refuse(call: &Call<'_>) -> Result<Value> {
    let (other, function) = (
        call.text(0)?.unwrap_or_default(),
        call.text(1)?.unwrap_or_default(),
    );
    let message = format!(
        "litmus_pgnats cannot be in one database with extension \"{other}\", which has functions of the same names"
    );
    Err(Error::new(Kind::Rival, message).detail(format!("One of them is {function}.")))
}

/// What build.rs has found out about the sources; unknown parts are NULL.
fn version(_: &Call<'_>) -> Result<Value> {
    let columns = [
        env!("LITMUS_PGNATS_VERSION"),
        env!("LITMUS_PGNATS_COMMIT_DATE"),
        env!("LITMUS_PGNATS_SHORT_COMMIT"),
        env!("LITMUS_PGNATS_BRANCH"),
        env!("LITMUS_PGNATS_LAST_TAG"),
    ];
    Ok(Value::Row(
        columns
            .iter()
            .map(|text| (!text.is_empty()).then(|| text.to_string()))
            .collect(),
    ))
}
