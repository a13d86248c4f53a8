//! Queries by SPI whose arguments and results are text. Runs where SQL runs, on the main thread, in a transaction.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use super::catalog::utf8;
use super::fmgr::{to_server, varlena};
use crate::channel::message::Row;

/// An argument of a query.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    Text(&'a str),
    OptionalText(Option<&'a str>),
    Oid(u32),
    Int8(i64),
}

/// Runs a query and returns its rows, each column in its type's text form. Raises PostgreSQL's own errors.
pub fn query(sql: &str, arguments: &[Argument<'_>]) -> Vec<Row> {
    let sql = CString::new(to_server(sql).into_owned()).unwrap_or_default();
    let mut types = Vec::with_capacity(arguments.len());
    let mut values = Vec::with_capacity(arguments.len());
    let mut nulls = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let text = match argument {
            Argument::Text(text) => Some(*text),
            Argument::OptionalText(text) => *text,
            Argument::Oid(oid) => {
                types.push(pg_sys::OIDOID);
                values.push(pg_sys::Datum::from(*oid as usize));
                nulls.push(NOT_NULL);
                continue;
            }
            Argument::Int8(number) => {
                types.push(pg_sys::INT8OID);
                values.push(pg_sys::Datum::from(*number));
                nulls.push(NOT_NULL);
                continue;
            }
        };
        types.push(pg_sys::TEXTOID);
        values.push(text.map_or(pg_sys::Datum::from(0), |text| varlena(&to_server(text))));
        nulls.push(if text.is_some() { NOT_NULL } else { NULL });
    }
    // SAFETY: the arrays have as many elements as the call is told, and live until it returns. What it raises ends the
    // (sub)transaction, and SPI's own stack with it. Its tuple table is valid until SPI_finish.
    unsafe {
        pg_sys::SPI_connect();
        pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            i32::try_from(types.len()).unwrap_or(0),
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            false,
            0,
        );
        let rows = tuples();
        pg_sys::SPI_finish();
        rows
    }
}

/// How SPI is told which arguments are null.
pub const NULL: std::ffi::c_char = b'n' as std::ffi::c_char;
pub const NOT_NULL: std::ffi::c_char = b' ' as std::ffi::c_char;

/// # Safety
/// SPI has just executed something.
unsafe fn tuples() -> Vec<Row> {
    // SAFETY: as the caller promises; the table is null or has SPI_processed tuples of its descriptor.
    unsafe {
        let table = pg_sys::SPI_tuptable;
        if table.is_null() {
            return Vec::new();
        }
        let (descriptor, count) = (
            (*table).tupdesc,
            usize::try_from(pg_sys::SPI_processed).unwrap_or(0),
        );
        let tuples = std::slice::from_raw_parts((*table).vals, count);
        let columns = (*descriptor).natts;
        let row = |tuple: &pg_sys::HeapTuple| {
            (1..=columns)
                .map(|column| {
                    let text = pg_sys::SPI_getvalue(*tuple, descriptor, column);
                    (!text.is_null()).then(|| utf8(CStr::from_ptr(text)))
                })
                .collect()
        };
        tuples.iter().map(row).collect()
    }
}
