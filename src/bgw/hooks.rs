//! Executors give way to statements that want a database to themselves: DROP DATABASE, ALTER DATABASE ... RENAME and SET
//! TABLESPACE, CREATE DATABASE ... TEMPLATE. Works in sessions that have loaded the library, which are all if it is
//! preloaded. Runs in backends.

use std::time::Duration;

use crate::channel::message::Request;
use crate::error::{Kind, Result};
use crate::pg::catalog;
use crate::pg::utility::Exclusive;
use crate::sql::call;

/// Longest wait for executors to leave; PostgreSQL itself waits five seconds more, and then says who is there.
const LIMIT: Duration = Duration::from_secs(5);

/// Has the executors leave the database, if the role may do what it is about to: the database's object id. Their work
/// for the runtime is taken up again after the statement, or with the session's end.
pub fn about_to(exclusive: Exclusive<'_>) -> Result<Option<u32>> {
    let database = match exclusive {
        Exclusive::Owner(name) => catalog::database_by_name(name).filter(|oid| catalog::owns_database(*oid)),
        Exclusive::Template(name) => {
            catalog::database_by_name(name).filter(|oid| catalog::may_copy_database(*oid))
        }
    };
    let Some(database) = database else { return Ok(None) };
    if !call::join_runtime_if_running() {
        return Ok(None);
    }
    match call::tell(&Request::Vacate { database }, LIMIT) {
        Err(error) if error.kind == Kind::Interrupted => Err(error),
        _ => Ok(Some(database)),
    }
}

/// The statement is over.
pub fn done(database: u32) {
    call::post(&Request::Look { database });
}
