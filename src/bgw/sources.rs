//! The connections that roles use for foreign servers, as the runtime worker takes them. Runs in executors and outbox
//! relays, on the main thread.

use crate::channel::target::{Key, Source, Target};
use crate::error::{Error, Kind, Result};
use crate::pg::query::query;
use crate::pg::{databases, foreign_servers, rights};
use crate::sql::server;

/// The foreign servers with `notify_subject` or `patroni_url`, with the connections that their owners use for them.
pub fn servers() -> Vec<Source> {
    let rows = query(
        "SELECT s.oid, s.srvowner, s.srvname FROM pg_foreign_server s \
         JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname = 'litmus_pgnats_fdw'",
        &[],
    );
    let named = rows.into_iter().filter_map(|row| {
        let [Some(oid), Some(owner), Some(name)] = <[Option<String>; 3]>::try_from(row).ok()? else {
            return None;
        };
        // A server whose options cannot be used is left out; the error shows where the server is used.
        let source = source_of(oid.parse().ok()?, &name, owner.parse().ok()?).ok()?;
        let settings = &source.settings;
        (settings.notify_subject.is_some() || settings.patroni_url.is_some()).then_some(source)
    });
    named.collect()
}

/// The connection that a role uses for a server; fails if the server was dropped or its options are not complete.
pub fn source_of(server: u32, name: &str, role: u32) -> Result<Source> {
    let (database, database_name) = databases::database();
    let key = Key {
        database,
        server,
        mapping: foreign_servers::user_mapping(role, server).unwrap_or(0),
        private_to: 0,
    };
    let settings = server::read_settings(key)?.ok_or_else(|| missing(name))?;
    let target = Target {
        key,
        database_name,
        server_name: name.to_string(),
    };
    Ok(Source { target, settings })
}

/// Fails unless the role may use the server.
pub fn check_usage(role: u32, role_name: &str, server: u32, server_name: &str) -> Result<()> {
    if rights::has_usage(role, server) {
        return Ok(());
    }
    let message = format!("role \"{role_name}\" has no USAGE privilege on foreign server \"{server_name}\"");
    Err(Error::new(Kind::PermissionDenied, message))
}

/// The error for a name that no server has.
pub fn missing(server: &str) -> Error {
    Error::new(
        Kind::NoServer,
        format!("foreign server \"{server}\" does not exist"),
    )
}
