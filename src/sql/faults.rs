//! Faults on demand, for the tests; in debug builds alone. No SQL object of the extension calls them.

use std::time::Duration;

use super::call;
use crate::channel::message::Request;
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(litmus_pgnats_fault_panic, |_: &Call<'_>| {
    call::tell(&Request::Panic, Duration::from_secs(5)).map(|_| Value::Void)
});
