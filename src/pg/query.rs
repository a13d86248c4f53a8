//! Queries through SPI. Runs where SQL runs, on the main thread, in a transaction.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use pgrx::pg_sys;

use super::encoding::{c_string, from_server, to_server, utf8};
use super::fmgr::varlena;
use crate::row::Row;

/// An argument of a query.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    Text(&'a str),
    OptionalText(Option<&'a str>),
    Bytes(&'a [u8]),
    Oid(u32),
    Int8(i64),
}

/// Arguments as SPI takes them: three arrays of the same length.
#[derive(Default)]
struct Bound {
    types: Vec<pg_sys::Oid>,
    values: Vec<pg_sys::Datum>,
    nulls: Vec<std::ffi::c_char>,
}

impl Bound {
    fn of(arguments: &[Argument<'_>]) -> Bound {
        let mut bound = Bound::default();
        for argument in arguments {
            let text = |text: &str| (pg_sys::TEXTOID, Some(varlena(&to_server(text))));
            let (oid, value) = match argument {
                Argument::Text(value) => text(value),
                Argument::OptionalText(value) => value.map_or((pg_sys::TEXTOID, None), text),
                Argument::Bytes(bytes) => (pg_sys::BYTEAOID, Some(varlena(bytes))),
                Argument::Oid(oid) => (pg_sys::OIDOID, Some(pg_sys::Datum::from(*oid as usize))),
                Argument::Int8(number) => (pg_sys::INT8OID, Some(pg_sys::Datum::from(*number))),
            };
            bound.types.push(oid);
            bound.nulls.push(if value.is_some() { NOT_NULL } else { NULL });
            bound.values.push(value.unwrap_or(pg_sys::Datum::from(0)));
        }
        bound
    }

    fn count(&self) -> i32 {
        i32::try_from(self.types.len()).unwrap_or(0)
    }
}

/// Runs a query and returns its rows, each column in its type's text form. Raises PostgreSQL's own errors.
pub fn query(sql: &str, arguments: &[Argument<'_>]) -> Vec<Row> {
    let sql = c_string(sql);
    let mut bound = Bound::of(arguments);
    // SAFETY: the arrays have as many elements as SPI is told, and live until the call returns. An error ends the
    // (sub)transaction, and with it this level of SPI. The tuple table is valid until SPI_finish.
    unsafe {
        pg_sys::SPI_connect();
        pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            bound.count(),
            bound.types.as_mut_ptr(),
            bound.values.as_mut_ptr(),
            bound.nulls.as_ptr(),
            false,
            0,
        );
        let rows = tuples();
        pg_sys::SPI_finish();
        rows
    }
}

thread_local! {
    /// Kept plans, by the text of the query.
    static PLANS: RefCell<HashMap<&'static str, pg_sys::SPIPlanPtr>> = RefCell::default();
}

/// Like [`query`], for queries that run often: the plan is kept as long as the process lives. Each call has to give
/// arguments of the same types, under the same search path.
pub fn prepared(sql: &'static str, arguments: &[Argument<'_>]) -> Vec<Row> {
    // SAFETY: the table is read before SPI frees it.
    run_prepared(sql, arguments, || unsafe { tuples() })
}

/// Like [`prepared`], for many rows: `work` reads each row in place, by its columns' types.
pub fn prepared_each(sql: &'static str, arguments: &[Argument<'_>], mut work: impl FnMut(&Fields)) {
    // SAFETY: the rows are read before SPI frees the table.
    run_prepared(sql, arguments, || unsafe {
        each_tuple(|tuple, descriptor| work(&Fields { tuple, descriptor }));
    });
}

/// A row of a result while it is read. Columns are counted from 1; a column that does not exist reads as NULL.
pub struct Fields {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Fields {
    fn datum(&self, column: i32) -> Option<pg_sys::Datum> {
        let mut is_null = true;
        // SAFETY: the descriptor is the tuple's; SPI says of a column that does not exist that it is NULL.
        let datum = unsafe { pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &raw mut is_null) };
        (!is_null).then_some(datum)
    }

    /// A column of type bigint; `None` if it is NULL.
    pub fn int8(&self, column: i32) -> Option<i64> {
        self.datum(column).map(|datum| datum.value() as i64)
    }

    /// The bytes of a column of type bytea or text; `None` if it is NULL.
    pub fn bytes(&self, column: i32) -> Option<&[u8]> {
        let datum = self.datum(column)?;
        // SAFETY: the caller asks for this of a column of type bytea or text, which is a varlena; the detoasted value
        // lives as long as the result.
        unsafe {
            let varlena = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
            let length = pgrx::varsize_any_exhdr(varlena);
            Some(std::slice::from_raw_parts(
                pgrx::vardata_any(varlena).cast::<u8>(),
                length,
            ))
        }
    }

    /// A column of type text, as UTF-8; `None` if it is NULL or not valid.
    pub fn text(&self, column: i32) -> Option<String> {
        from_server(self.bytes(column)?).ok().map(Cow::into_owned)
    }

    /// A column of any type, in its text form; `None` if it is NULL.
    pub fn any(&self, column: i32) -> Option<String> {
        // SAFETY: as in `datum`.
        unsafe { text_of(self.tuple, self.descriptor, column) }
    }
}

fn run_prepared<T>(sql: &'static str, arguments: &[Argument<'_>], read: impl FnOnce() -> T) -> T {
    let mut bound = Bound::of(arguments);
    // SAFETY: as in `query`; a kept plan lives until it is freed, and these plans never are.
    unsafe {
        pg_sys::SPI_connect();
        let known = PLANS.with_borrow(|plans| plans.get(sql).copied());
        let plan = known.unwrap_or_else(|| {
            let plan = pg_sys::SPI_prepare(c_string(sql).as_ptr(), bound.count(), bound.types.as_mut_ptr());
            pg_sys::SPI_keepplan(plan);
            PLANS.with_borrow_mut(|plans| plans.insert(sql, plan));
            plan
        });
        pg_sys::SPI_execute_plan(plan, bound.values.as_mut_ptr(), bound.nulls.as_ptr(), false, 0);
        let result = read();
        pg_sys::SPI_finish();
        result
    }
}

/// How SPI is told which arguments are null.
pub const NULL: std::ffi::c_char = b'n' as std::ffi::c_char;
pub const NOT_NULL: std::ffi::c_char = b' ' as std::ffi::c_char;

/// # Safety
/// SPI has just executed something.
unsafe fn tuples() -> Vec<Row> {
    let mut rows = Vec::new();
    // SAFETY: as the caller promises.
    unsafe {
        each_tuple(|tuple, descriptor| {
            let columns = (*descriptor).natts;
            rows.push(
                (1..=columns)
                    .map(|column| text_of(tuple, descriptor, column))
                    .collect(),
            );
        });
    }
    rows
}

/// # Safety
/// SPI has just executed something.
unsafe fn each_tuple(mut work: impl FnMut(pg_sys::HeapTuple, pg_sys::TupleDesc)) {
    // SAFETY: as the caller promises; the table is null or has SPI_processed tuples of its descriptor.
    unsafe {
        let table = pg_sys::SPI_tuptable;
        if table.is_null() {
            return;
        }
        let count = usize::try_from(pg_sys::SPI_processed).unwrap_or(0);
        for tuple in std::slice::from_raw_parts((*table).vals, count) {
            work(*tuple, (*table).tupdesc);
        }
    }
}

/// # Safety
/// The tuple is of the descriptor, which has the column.
unsafe fn text_of(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc, column: i32) -> Option<String> {
    // SAFETY: as the caller promises; the text is palloc'd or null.
    unsafe {
        let text = pg_sys::SPI_getvalue(tuple, descriptor, column);
        (!text.is_null()).then(|| utf8(CStr::from_ptr(text)))
    }
}
