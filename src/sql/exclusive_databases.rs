//! Drains a database before statements that need it for themselves: DROP DATABASE, ALTER DATABASE ... RENAME and SET
//! TABLESPACE, CREATE DATABASE ... TEMPLATE. Works in sessions that have loaded the library; if it is preloaded, these
//! are all sessions. Runs in backends, on the main thread.

use std::time::Duration;

use super::{call, changes};
use crate::channel::message::Request;
use crate::error::{Kind, Result};
use crate::pg::databases;
use crate::pg::utility::Exclusive;

/// Longest wait for the workers to leave. PostgreSQL itself then waits for five seconds more, before it fails with the
/// number of sessions that are left.
const LIMIT: Duration = Duration::from_secs(5);

/// Drains the database, if the role may do what the statement does; the database is resumed when the transaction or the
/// session has ended. Fails only if the statement is cancelled.
pub fn about_to(exclusive: Exclusive<'_>) -> Result<()> {
    let database = match exclusive {
        Exclusive::Change(name) => {
            databases::database_by_name(name).filter(|oid| databases::owns_database(*oid))
        }
        Exclusive::Copy { template, .. } => {
            databases::database_by_name(template).filter(|oid| databases::may_copy_database(*oid))
        }
    };
    let Some(database) = database.filter(|_| call::join_runtime_if_running()) else {
        return Ok(());
    };
    changes::refresh_at_end(database);
    match call::tell(&Request::DrainDatabase { database }, LIMIT) {
        Err(error) if error.kind == Kind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Called when the statement has run: has a copied database refreshed, which has the handlers of its template.
pub fn done(exclusive: Exclusive<'_>) {
    if let Exclusive::Copy { copy, .. } = exclusive
        && let Some(database) = databases::database_by_name(copy)
        && call::join_runtime_if_running()
    {
        changes::refresh_at_end(database);
    }
}
