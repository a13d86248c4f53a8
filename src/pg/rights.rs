//! Roles and what they may do. Runs where SQL runs, on the main thread.

use pgrx::pg_sys;

use super::encoding::string;

/// Object id of the role whose rights count now.
pub fn current_role() -> u32 {
    // SAFETY: reads a variable.
    unsafe { pg_sys::GetUserId() }.to_u32()
}

/// Whether a role is a superuser.
pub fn is_superuser(role: u32) -> bool {
    // SAFETY: looks into the system caches.
    unsafe { pg_sys::superuser_arg(role.into()) }
}

/// The name of a role; empty if the role does not exist.
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

/// Whether the current role may see all statistics.
pub fn may_monitor() -> bool {
    has_privileges_of(pg_sys::ROLE_PG_MONITOR)
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

/// Whether the current role may have the server process read files: superuser or pg_read_server_files.
pub fn may_read_server_files() -> bool {
    let reader = pg_sys::Oid::from(pg_sys::ROLE_PG_READ_SERVER_FILES);
    // SAFETY: looks into the system caches.
    unsafe { pg_sys::superuser() || pg_sys::has_privs_of_role(pg_sys::GetUserId(), reader) }
}
