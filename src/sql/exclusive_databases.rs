//! Executors give way to statements that want a database to themselves: DROP DATABASE, ALTER DATABASE ... RENAME and SET
//! TABLESPACE, CREATE DATABASE ... TEMPLATE. Works in sessions that have loaded the library, which are all if it is
//! preloaded. Runs in backends.

use std::time::Duration;

use super::{call, changes};
use crate::channel::message::Request;
use crate::error::{Kind, Result};
use crate::pg::databases;
use crate::pg::utility::Exclusive;

/// Longest wait for executors to leave; PostgreSQL itself waits five seconds more, and then says who is there.
const LIMIT: Duration = Duration::from_secs(5);

/// Has the executors leave the database, if the role may do what it is about to. They come back when the transaction
/// has ended, or the session.
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

/// The statement has run: a copy has the handlers of its template.
pub fn done(exclusive: Exclusive<'_>) {
    if let Exclusive::Copy { copy, .. } = exclusive
        && let Some(database) = databases::database_by_name(copy)
        && call::join_runtime_if_running()
    {
        changes::refresh_at_end(database);
    }
}
