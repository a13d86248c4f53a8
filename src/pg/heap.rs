//! Rows written straight into the extension's own tables, past parser, planner and executor, where speed counts. The tables
//! have no triggers, and no constraints but keys. Runs where SQL runs, on the main thread, in a transaction.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use super::encoding::to_server;
use super::fmgr::{jsonb, varlena};
use crate::error::{Error, Kind, Result};

unsafe extern "C-unwind" {
    // Not in pgrx's bindings.
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// A value of a column, of that type; text is UTF-8.
#[derive(Clone, Copy, Debug)]
pub enum Column<'a> {
    Null,
    Int8(i64),
    Oid(u32),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// JSON text, for jsonb.
    Json(&'a str),
    Uuid(&'a str),
    NewUuid,
    /// When the transaction began.
    Now,
}

impl Column<'_> {
    /// # Safety
    /// In a transaction; what is allocated lives as long as the memory context.
    unsafe fn datum(self) -> Option<pg_sys::Datum> {
        // SAFETY: the functions take what they are given here; they raise errors for what they cannot read.
        unsafe {
            match self {
                Column::Null => None,
                Column::Int8(number) => Some(pg_sys::Datum::from(number)),
                Column::Oid(oid) => Some(pg_sys::Datum::from(oid as usize)),
                Column::Text(text) => Some(varlena(&to_server(text))),
                Column::Bytes(bytes) => Some(varlena(bytes)),
                Column::Json(text) => jsonb(&to_server(text)),
                Column::Uuid(text) => {
                    let text = CString::new(text).unwrap_or_default();
                    let text = pg_sys::Datum::from(text.as_ptr());
                    pgrx::direct_function_call_as_datum(pg_sys::uuid_in, &[Some(text)])
                }
                Column::NewUuid => pgrx::direct_function_call_as_datum(pg_sys::gen_random_uuid, &[]),
                Column::Now => Some(pg_sys::Datum::from(pg_sys::GetCurrentTransactionStartTimestamp())),
            }
        }
    }
}

/// The object id of a table or sequence of the schema `litmus_pgnats`.
fn relation(name: &CStr) -> Result<pg_sys::Oid> {
    // SAFETY: looks names up in the catalogue's caches; 0 is no object.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(c"litmus_pgnats".as_ptr(), true);
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    if oid == pg_sys::InvalidOid {
        let message = "extension \"litmus_pgnats\" is not in this database";
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(oid)
}

/// The next number of a sequence.
pub fn next(sequence: &CStr) -> Result<i64> {
    let oid = relation(sequence)?;
    // SAFETY: it is a sequence; it is the extension's own, on which users have no rights.
    Ok(unsafe { nextval_internal(oid, false) })
}

/// Inserts a row; `what` names the command for the error of a transaction that is read only.
pub fn insert(table: &CStr, columns: &[Column<'_>], what: &CStr) -> Result<()> {
    let oid = relation(table)?;
    // SAFETY: the table is locked until the end of the transaction, and its descriptor has as many columns as are given, or
    // nothing is done; their types are those of the extension's script. Index entries are made as for a catalogue.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(what.as_ptr());
        pg_sys::PreventCommandIfParallelMode(what.as_ptr());
        let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
        let relation = pg_sys::table_open(oid, lock);
        let descriptor = (*relation).rd_att;
        if usize::try_from((*descriptor).natts).unwrap_or(0) != columns.len() {
            pg_sys::table_close(relation, lock);
            let message = "the extension's tables are of another version than the library";
            return Err(Error::new(Kind::Protocol, message)
                .hint("ALTER EXTENSION litmus_pgnats UPDATE updates them."));
        }
        let values: Vec<Option<pg_sys::Datum>> = columns.iter().map(|column| column.datum()).collect();
        let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
        let mut values: Vec<pg_sys::Datum> = values
            .into_iter()
            .map(|value| value.unwrap_or(pg_sys::Datum::from(0)))
            .collect();
        let tuple = pg_sys::heap_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(relation, tuple);
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
    Ok(())
}
