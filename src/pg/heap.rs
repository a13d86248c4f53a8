//! Writes rows straight into the extension's own tables, past parser, planner and executor, where speed counts. The
//! tables have no triggers, and no constraints but keys and NOT NULL, which callers must respect. Runs where SQL runs, on
//! the main thread, in a transaction.

use std::ffi::CStr;

use pgrx::pg_sys;

use super::encoding::{c_string, to_server};
use super::fmgr::{jsonb, varlena};
use crate::error::{Error, Kind, Result};

unsafe extern "C-unwind" {
    // Not in pgrx's bindings.
    fn nextval_internal(sequence: pg_sys::Oid, check_permissions: bool) -> i64;
}

/// A value for a column; the variant is the column's type. Text is UTF-8.
#[derive(Clone, Copy, Debug)]
pub enum Column<'a> {
    Null,
    Int8(i64),
    Oid(u32),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// JSON text, for a column of type jsonb.
    Json(&'a str),
    Uuid(&'a str),
    NewUuid,
    /// The time at which the transaction began.
    Now,
}

impl Column<'_> {
    /// # Safety
    /// A transaction is running. The datum lives as long as the current memory context.
    unsafe fn datum(self) -> Option<pg_sys::Datum> {
        // SAFETY: each function is given arguments of its own types, and raises an error for text that it cannot read.
        unsafe {
            match self {
                Column::Null => None,
                Column::Int8(number) => Some(pg_sys::Datum::from(number)),
                Column::Oid(oid) => Some(pg_sys::Datum::from(oid as usize)),
                Column::Text(text) => Some(varlena(&to_server(text))),
                Column::Bytes(bytes) => Some(varlena(bytes)),
                Column::Json(text) => jsonb(&to_server(text)),
                Column::Uuid(text) => {
                    let text = c_string(text);
                    let text = pg_sys::Datum::from(text.as_ptr());
                    pgrx::direct_function_call_as_datum(pg_sys::uuid_in, &[Some(text)])
                }
                Column::NewUuid => pgrx::direct_function_call_as_datum(pg_sys::gen_random_uuid, &[]),
                Column::Now => Some(pg_sys::Datum::from(pg_sys::GetCurrentTransactionStartTimestamp())),
            }
        }
    }
}

/// Object id of a table or sequence in the schema `litmus_pgnats`; fails if there is none.
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

/// The next number of one of the extension's sequences.
pub fn next(sequence: &CStr) -> Result<i64> {
    let oid = relation(sequence)?;
    // SAFETY: the relation is a sequence. It is the extension's own and users have no rights on it, so no permission is
    // checked.
    Ok(unsafe { nextval_internal(oid, false) })
}

/// Whether a new row takes nothing but index entries: the table has no insert triggers, CHECK constraints, generated
/// columns or row-level security, and is not partitioned.
///
/// # Safety
/// `relation` is open.
unsafe fn is_plain(relation: pg_sys::Relation) -> bool {
    // SAFETY: an open relation has a class and a descriptor; the pointers in these are null or valid.
    unsafe {
        let class = (*relation).rd_rel;
        let constraints = (*(*relation).rd_att).constr;
        let has_checks =
            !constraints.is_null() && ((*constraints).num_check > 0 || (*constraints).has_generated_stored);
        let triggers = (*relation).trigdesc;
        let has_triggers = !triggers.is_null()
            && ((*triggers).trig_insert_before_row
                || (*triggers).trig_insert_after_row
                || (*triggers).trig_insert_before_statement
                || (*triggers).trig_insert_after_statement);
        !has_triggers
            && !has_checks
            && !(*class).relrowsecurity
            && (*class).relkind as u8 == pg_sys::RELKIND_RELATION
    }
}

/// Inserts a row with a value for each column. `what` names the command in the error of a read-only transaction. Fails
/// if the table has another number of columns, or anything that `is_plain` excludes.
pub fn insert(table: &CStr, columns: &[Column<'_>], what: &CStr) -> Result<()> {
    let oid = relation(table)?;
    // SAFETY: the table is locked until the end of the transaction. A row is only inserted if the descriptor has as
    // many columns as are given and the row takes nothing but index entries (`is_plain`), which CatalogTupleInsert
    // makes. The columns have the types of the extension's script.
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
        if !is_plain(relation) {
            pg_sys::table_close(relation, lock);
            let name = table.to_string_lossy();
            let message =
                format!("table \"litmus_pgnats.{name}\" has insert triggers, checks or row-level security");
            return Err(Error::new(Kind::Unsupported, message)
                .detail("Rows are written straight into the table, past these.")
                .hint("Drop what was added to the extension's table."));
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
