//! Foreign servers and user mappings. Runs where SQL runs, on the main thread.

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::spi::Spi;

use super::encoding::string;
use crate::error::{Error, Kind, Result};
use crate::settings::Options;

/// Name of the extension's foreign-data wrapper.
pub const WRAPPER: &str = "litmus_pgnats_fdw";

thread_local! {
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

/// A number that rises with each change of foreign servers, user mappings, roles and memberships. What was read under
/// an older number may be stale.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Registers callbacks for cache invalidations; called once, when the library is loaded.
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

/// Called by PostgreSQL for an invalidation. Cannot fail, so it needs no guard.
unsafe extern "C-unwind" fn changed(_: pg_sys::Datum, _: i32, _: u32) {
    GENERATION.set(GENERATION.get().wrapping_add(1));
}

/// A foreign server of the extension's wrapper.
#[derive(Clone, Debug)]
pub struct Server {
    pub oid: u32,
    pub name: String,
}

/// All servers of the extension's wrapper in this database, ordered by name.
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

/// The name of a server; `None` if the server does not exist. Not read through pgrx's SPI, which takes text for UTF-8.
pub fn server_name(server: u32) -> Option<String> {
    // SAFETY: with the flag a missing server gives a null pointer; the name lives in the current memory context.
    unsafe {
        let found = pg_sys::GetForeignServerExtended(server.into(), pg_sys::FSV_MISSING_OK as u16);
        (!found.is_null()).then(|| string((*found).servername))
    }
}

/// The options of a server; `None` if the server does not exist.
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

/// Object id of the user mapping for a role on a server, or else of the one for PUBLIC; `None` if there is neither.
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

/// Whether the running transaction itself has created or changed the server or the user mapping, and may still roll
/// that back.
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

/// The options of a user mapping; `None` if the mapping does not exist.
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

/// The catalogues that options are validated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalogue {
    Server,
    UserMapping,
    Other,
}

/// The catalogue that a validator's second argument, an object id, stands for.
pub fn catalogue(oid: u32) -> Catalogue {
    if oid == pg_sys::ForeignServerRelationId.to_u32() {
        Catalogue::Server
    } else if oid == pg_sys::UserMappingRelationId.to_u32() {
        Catalogue::UserMapping
    } else {
        Catalogue::Other
    }
}
