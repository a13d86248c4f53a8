//! Foreign servers, user mappings and rights. Runs in backends, on the main thread.

use std::cell::Cell;
use std::collections::hash_map::DefaultHasher;
use std::ffi::{CStr, c_char};
use std::hash::{Hash, Hasher};

use pgrx::pg_sys;
use pgrx::spi::Spi;

use super::fmgr::from_server;
use super::query::{Argument, query};
use crate::error::{Error, Kind, Result};
use crate::settings::Options;

/// The wrapper that our servers belong to.
pub const WRAPPER: &str = "litmus_pgnats_fdw";

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

/// Counts changes of servers, mappings and roles: what was read under an older number may be stale.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Registers for cache invalidations; called once, when the library is loaded.
pub fn watch_changes() {
    use pg_sys::SysCacheIdentifier::{
        AUTHMEMMEMROLE, AUTHOID, FOREIGNDATAWRAPPEROID, FOREIGNSERVEROID, USERMAPPINGOID,
    };
    for cache in [
        FOREIGNSERVEROID,
        FOREIGNDATAWRAPPEROID,
        USERMAPPINGOID,
        AUTHOID,
        AUTHMEMMEMROLE,
    ] {
        // SAFETY: the callback is a function of this library, which is never unloaded, and only sets a number.
        unsafe { pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(changed), pg_sys::Datum::from(0)) };
    }
}

/// No error can come out of this, so it needs no guard.
unsafe extern "C-unwind" fn changed(_: pg_sys::Datum, _: i32, _: u32) {
    GENERATION.set(GENERATION.get().wrapping_add(1));
}

/// A foreign server of our wrapper.
#[derive(Clone, Debug)]
pub struct Server {
    pub oid: u32,
    pub name: String,
}

/// All servers of our wrapper in this database, by name.
pub fn servers() -> Result<Vec<Server>> {
    let query = "SELECT s.oid FROM pg_catalog.pg_foreign_server s \
         JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid OPERATOR(pg_catalog.=) s.srvfdw \
         WHERE w.fdwname OPERATOR(pg_catalog.=) 'litmus_pgnats_fdw' ORDER BY s.srvname";
    let read = || -> pgrx::spi::Result<Vec<Server>> {
        Spi::connect(|client| {
            let rows = client.select(query, None, &[])?;
            let mut servers = Vec::with_capacity(rows.len());
            for row in rows {
                if let Some(oid) = row.get::<pg_sys::Oid>(1)?.map(pg_sys::Oid::to_u32)
                    && let Some(name) = server_name(oid)
                {
                    servers.push(Server { oid, name });
                }
            }
            Ok(servers)
        })
    };
    read().map_err(|error| {
        Error::new(Kind::NoServer, "could not read the foreign servers").detail(format!("{error}."))
    })
}

/// The name of a server; `None` if it is gone. Not read by SPI, which takes text for UTF-8.
pub fn server_name(server: u32) -> Option<String> {
    // SAFETY: with the flag a missing server gives a null pointer; the name lives in the current memory context.
    unsafe {
        let found = pg_sys::GetForeignServerExtended(server.into(), pg_sys::FSV_MISSING_OK as u16);
        (!found.is_null()).then(|| string((*found).servername))
    }
}

/// The options of a server; `None` if it is gone.
pub fn server_options(server: u32) -> Option<Options> {
    // SAFETY: with the flag a missing server gives a null pointer; the struct and its list live in the current
    // memory context.
    unsafe {
        let found = pg_sys::GetForeignServerExtended(server.into(), pg_sys::FSV_MISSING_OK as u16);
        if found.is_null() {
            None
        } else {
            Some(options((*found).options))
        }
    }
}

/// The user mapping for a role on a server, or else the one for PUBLIC: its object id.
pub fn user_mapping(role: u32, server: u32) -> Option<u32> {
    [role, 0].into_iter().find_map(|user| {
        let keys = [
            pg_sys::Datum::from(user as usize),
            pg_sys::Datum::from(server as usize),
        ];
        let [user, server] = keys;
        let none = pg_sys::Datum::from(0);
        // SAFETY: the cache takes two keys of type oid.
        let oid = unsafe {
            pg_sys::GetSysCacheOid(
                pg_sys::SysCacheIdentifier::USERMAPPINGUSERSERVER as i32,
                pg_sys::Anum_pg_user_mapping_oid as i16,
                user,
                server,
                none,
                none,
            )
        };
        (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
    })
}

/// Whether the running transaction itself has made or changed the server or the user mapping, and may yet take it back.
pub fn is_uncommitted(server: u32, mapping: u32) -> bool {
    use pg_sys::SysCacheIdentifier::{FOREIGNSERVEROID, USERMAPPINGOID};
    [(FOREIGNSERVEROID, server), (USERMAPPINGOID, mapping)]
        .into_iter()
        .any(|(cache, oid)| {
            // SAFETY: the caches take one key of type oid; the tuple is released after its header was read.
            unsafe {
                let tuple = pg_sys::SearchSysCache1(cache as i32, pg_sys::Datum::from(oid as usize));
                if tuple.is_null() {
                    return false;
                }
                let inserted_by = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
                let ours = pg_sys::TransactionIdIsCurrentTransactionId(inserted_by);
                pg_sys::ReleaseSysCache(tuple);
                ours
            }
        })
}

/// The options of a user mapping; `None` if it is gone.
pub fn mapping_options(mapping: u32) -> Option<Options> {
    let cache = pg_sys::SysCacheIdentifier::USERMAPPINGOID as i32;
    // SAFETY: the cache takes one key of type oid; the tuple is released before the function returns, after the
    // options were copied.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(mapping as usize));
        if tuple.is_null() {
            return None;
        }
        let mut is_null = true;
        let attribute = pg_sys::Anum_pg_user_mapping_umoptions as i16;
        let datum = pg_sys::SysCacheGetAttr(cache, tuple, attribute, &raw mut is_null);
        let found = if is_null {
            Options::new()
        } else {
            options(pg_sys::untransformRelOptions(datum))
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// # Safety
/// `list` is a valid list of DefElem with string values.
unsafe fn options(list: *mut pg_sys::List) -> Options {
    let mut found = Options::new();
    if list.is_null() {
        return found;
    }
    // SAFETY: as the caller promises; a list is an array of `length` cells; the strings are copied.
    unsafe {
        let length = usize::try_from((*list).length).unwrap_or(0);
        for cell in std::slice::from_raw_parts((*list).elements, length) {
            let element = cell.ptr_value.cast::<pg_sys::DefElem>();
            found.insert(string((*element).defname), string(pg_sys::defGetString(element)));
        }
    }
    found
}

/// # Safety
/// `text` is null or NUL-terminated.
unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    utf8(unsafe { CStr::from_ptr(text) })
}

/// A name or an option in the database's encoding as UTF-8.
pub fn utf8(text: &CStr) -> String {
    match from_server(text.to_bytes()) {
        Ok(text) => text.into_owned(),
        // The name of a database may be in another encoding.
        Err(_) => text.to_string_lossy().into_owned(),
    }
}

/// The role whose rights count at this moment.
pub fn current_role() -> u32 {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetUserId() }.to_u32()
}

/// Whether a role is a superuser.
pub fn is_superuser(role: u32) -> bool {
    // SAFETY: looks into the system caches.
    unsafe { pg_sys::superuser_arg(role.into()) }
}

/// The name of a role.
pub fn role_name(role: u32) -> String {
    // SAFETY: with the flag a missing role gives a null pointer.
    unsafe { string(pg_sys::GetUserNameFromId(role.into(), true)) }
}

/// Whether a role has USAGE on a server.
pub fn has_usage(role: u32, server: u32) -> bool {
    let mode = pg_sys::AclMode::from(pg_sys::ACL_USAGE);
    // SAFETY: looks into the system caches; raises an error if the server is gone.
    unsafe {
        #[cfg(feature = "pg15")]
        let result = pg_sys::pg_foreign_server_aclcheck(server.into(), role.into(), mode);
        #[cfg(not(feature = "pg15"))]
        let result =
            pg_sys::object_aclcheck(pg_sys::ForeignServerRelationId, server.into(), role.into(), mode);
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether a role may call a function.
pub fn has_execute(role: u32, function: u32) -> bool {
    let mode = pg_sys::AclMode::from(pg_sys::ACL_EXECUTE);
    // SAFETY: looks into the system caches; raises an error if the function is gone.
    unsafe {
        #[cfg(feature = "pg15")]
        let result = pg_sys::pg_proc_aclcheck(function.into(), role.into(), mode);
        #[cfg(not(feature = "pg15"))]
        let result = pg_sys::object_aclcheck(pg_sys::ProcedureRelationId, function.into(), role.into(), mode);
        result == pg_sys::AclResult::ACLCHECK_OK
    }
}

/// Whether the current role has the privileges of another one.
pub fn has_privileges_of(role: u32) -> bool {
    // SAFETY: looks into the system caches.
    unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), role.into()) }
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

/// The owner of this database's extension, and so of its tables; `None` if the extension is not there.
pub fn extension_owner() -> Option<u32> {
    let rows = query(
        "SELECT extowner FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'litmus_pgnats'",
        &[],
    );
    rows.into_iter().flatten().next()??.parse().ok()
}

/// Changes whenever a setting of a role or a database has changed, which nothing else tells of.
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

/// Whether a role exists.
pub fn role_exists(role: u32) -> bool {
    // SAFETY: the cache takes one key of type oid.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::AUTHOID as i32,
            pg_sys::Datum::from(role as usize),
        );
        if tuple.is_null() {
            return false;
        }
        pg_sys::ReleaseSysCache(tuple);
        true
    }
}

/// A database by name; `None` if there is none.
pub fn database_by_name(name: &CStr) -> Option<u32> {
    // SAFETY: the name is NUL-terminated.
    let oid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then(|| oid.to_u32())
}

/// The databases that allow connections. Needs a transaction, but no database.
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

/// The catalogue pg_db_role_setting, which pgrx does not name.
const DB_ROLE_SETTING: u32 = 2964;
const ACCESS_SHARE: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
/// The connection limit of a database whose DROP was interrupted.
const INVALID_DATABASE: i32 = -2;

/// Whether the current role may have the server process read files: superuser or pg_read_server_files.
pub fn may_read_server_files() -> bool {
    let reader = pg_sys::Oid::from(pg_sys::ROLE_PG_READ_SERVER_FILES);
    // SAFETY: looks into the system caches.
    unsafe { pg_sys::superuser() || pg_sys::has_privs_of_role(pg_sys::GetUserId(), reader) }
}

/// What tells this PostgreSQL cluster from all others, as a number that SQL can hold.
pub fn system_identifier() -> i64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }.cast_signed()
}

/// Whether the server is a standby.
pub fn is_in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

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

/// Whether the transaction has changed anything yet.
pub fn transaction_has_written() -> bool {
    // SAFETY: reads the state of the transaction.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// The catalogues that options are validated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalogue {
    Server,
    UserMapping,
    Other,
}

/// Which catalogue an object id of a validator's second argument means.
pub fn catalogue(oid: u32) -> Catalogue {
    if oid == pg_sys::ForeignServerRelationId.to_u32() {
        Catalogue::Server
    } else if oid == pg_sys::UserMappingRelationId.to_u32() {
        Catalogue::UserMapping
    } else {
        Catalogue::Other
    }
}

/// The type `litmus_pgnats.message`, and that of its arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageType {
    pub row: u32,
    pub array: u32,
}

/// Looks the type of messages up; `None` where the extension has none.
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

/// The transaction id that is assigned next: every transaction that has one by now has a lower one. A snapshot's xmax does
/// not tell that, it is one past the highest that has ended.
pub fn next_transaction() -> u64 {
    // SAFETY: reads shared memory under PostgreSQL's own lock.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}
