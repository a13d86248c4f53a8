//! `litmus_pgnats_version()`.

use crate::error::Result;
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(litmus_pgnats_version, version);

/// What build.rs found out about the sources; unknown parts are NULL.
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
