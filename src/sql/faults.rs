//! Faults on demand for the tests, in debug builds only. No SQL object of the extension calls them. Runs in backends,
//! on the main thread.

use std::borrow::Cow;
use std::time::Duration;

use super::call;
use crate::channel::message::Request;
use crate::error::Result;
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::transaction;

sql_function!(litmus_pgnats_fault_panic, |_: &Call<'_>| panic(String::new()));
sql_function!(litmus_pgnats_fault_panic_task, |call: &Call<'_>| panic(
    call.text(0)?.map(Cow::into_owned).unwrap_or_default()
));

sql_function!(litmus_pgnats_fault_cancel_at_end, |_: &Call<'_>| {
    transaction::cancel_at_end();
    Ok(Value::Void)
});

/// Has the runtime worker's task whose name begins with `task` panic, or an actor if `task` is empty. No answer comes.
fn panic(task: String) -> Result<Value> {
    call::tell(&Request::Panic { task }, Duration::from_secs(5)).map(|_| Value::Void)
}
