//! The extension's own objects in the catalogue. Runs where SQL runs, on the main thread.

use pgrx::pg_sys;

use super::query::query;

/// Object id of the role that owns the extension and its tables; `None` if the extension is not in this database.
pub fn extension_owner() -> Option<u32> {
    let rows = query(
        "SELECT extowner FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'litmus_pgnats'",
        &[],
    );
    rows.into_iter().flatten().next()??.parse().ok()
}

/// Object ids of the type `litmus_pgnats.message` and of its array type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageType {
    pub row: u32,
    pub array: u32,
}

/// Finds the type `litmus_pgnats.message`; `None` if it is not in this database.
pub fn message_type() -> Option<MessageType> {
    // SAFETY: looks names up in the catalogue; 0 is no object.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"litmus_pgnats".as_ptr(), true);
        let row = pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::TYPENAMENSP as i32,
            pg_sys::Anum_pg_type_oid as i16,
            pg_sys::Datum::from(c"message".as_ptr()),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0),
            pg_sys::Datum::from(0),
        );
        let array = pg_sys::get_array_type(row);
        (array != pg_sys::InvalidOid).then(|| MessageType {
            row: row.to_u32(),
            array: array.to_u32(),
        })
    }
}
