//! Databases, and the settings of databases and roles. Runs where SQL runs, and in the runtime worker; on the main
//! thread.

use std::collections::hash_map::DefaultHasher;
use std::ffi::CStr;
use std::hash::{Hash, Hasher};

use pgrx::pg_sys;

use super::encoding::string;
use super::query::{Argument, query};
use super::rights::current_role;

/// Object id of the catalogue pg_db_role_setting, for which pgrx has no constant.
const DB_ROLE_SETTING: u32 = 2964;
const ACCESS_SHARE: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
/// `datconnlimit` of a database whose DROP was interrupted.
const INVALID_DATABASE: i32 = -2;

/// Object id of the database of this session.
pub fn database_oid() -> u32 {
    // SAFETY: reads a variable.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// Object id and name of the database of this session.
pub fn database() -> (u32, String) {
    // SAFETY: the session is connected to a database; the name is palloc'd or null.
    unsafe {
        (
            pg_sys::MyDatabaseId.to_u32(),
            string(pg_sys::get_database_name(pg_sys::MyDatabaseId)),
        )
    }
}

/// Whether the current role owns a database.
pub fn owns_database(database: u32) -> bool {
    // SAFETY: looks into the system caches.
    unsafe {
        #[cfg(feature = "pg15")]
        let owns = pg_sys::pg_database_ownercheck(database.into(), pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        let owns =
            pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database.into(), pg_sys::GetUserId());
        owns
    }
}

/// Whether the current role may make a copy of a database.
pub fn may_copy_database(database: u32) -> bool {
    let sql = "SELECT (r.rolsuper OR r.rolcreatedb) AND (d.datistemplate OR pg_catalog.pg_has_role(r.oid, d.datdba, 'USAGE')) \
         FROM pg_catalog.pg_database d, pg_catalog.pg_roles r \
         WHERE d.oid OPERATOR(pg_catalog.=) $1 AND r.oid OPERATOR(pg_catalog.=) $2";
    let rows = query(sql, &[Argument::Oid(database), Argument::Oid(current_role())]);
    rows.into_iter().flatten().next().flatten().as_deref() == Some("t")
}

/// Object id of the database of this name; `None` if there is none.
pub fn database_by_name(name: &CStr) -> Option<u32> {
    // SAFETY: the name is NUL-terminated.
    let oid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
}

/// Object ids of the databases that allow connections. Needs a transaction, but no connection to a database.
pub fn databases() -> Vec<u32> {
    let mut found = Vec::new();
    // SAFETY: as PostgreSQL's own launchers read the shared catalogue: the scan ends before the relation is closed, and
    // each tuple is read before the next one.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, ACCESS_SHARE);
        let none = std::ptr::null_mut();
        let scan =
            pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, none, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            if (*form).datallowconn && (*form).datconnlimit != INVALID_DATABASE {
                found.push((*form).oid.to_u32());
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, ACCESS_SHARE);
    }
    found
}

/// A number that changes whenever a setting of a role or a database changes. The rows of pg_db_role_setting are hashed
/// for it, because no invalidation callback covers that catalogue.
pub fn settings_version() -> u64 {
    let mut version = DefaultHasher::new();
    // SAFETY: as in `databases`.
    unsafe {
        let relation = pg_sys::table_open(DB_ROLE_SETTING.into(), ACCESS_SHARE);
        let none = std::ptr::null_mut();
        let scan =
            pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, none, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let place = (*tuple).t_self;
            (place.ip_blkid.bi_hi, place.ip_blkid.bi_lo, place.ip_posid).hash(&mut version);
            u32::from((*(*tuple).t_data).t_choice.t_heap.t_xmin).hash(&mut version);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, ACCESS_SHARE);
    }
    version.finish()
}
