//! `litmus_pgnats_reload_conf()` and `litmus_pgnats_reload_conf_force()`. Runs in backends, on the main thread.
//!
//! If the transaction has changed anything, the server's options for example, the reload takes effect when the
//! transaction commits, and never if it rolls back; a failure is written to the server log then. Otherwise the reload
//! is done at once, and a failure is an error.

use std::cell::RefCell;
use std::time::Duration;

use super::session::{milliseconds, unexpected_reply};
use super::{call, changes, parameters, server, transaction_end};
use crate::channel::message::{Reply, Request};
use crate::channel::target::Key;
use crate::error::{Error, Kind, Result};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::report::Level;
use crate::pg::{databases, foreign_servers, report, rights, state};

sql_function!(litmus_pgnats_reload_conf, |_: &Call<'_>| reload(false));
sql_function!(litmus_pgnats_reload_conf_force, |_: &Call<'_>| reload(true));

/// A server whose connections are to be reloaded.
#[derive(Clone)]
struct PendingReload {
    database: u32,
    server: u32,
    mappings: Vec<u32>,
    force: bool,
}

thread_local! {
    static AT_COMMIT: RefCell<Vec<PendingReload>> = const { RefCell::new(Vec::new()) };
    static COMMITTING: RefCell<Vec<Request>> = const { RefCell::new(Vec::new()) };
}

fn reload(force: bool) -> Result<Value> {
    let (database, _) = databases::database();
    let mut found = Vec::new();
    for server in server::to_reload()? {
        let request = Request::MappingsInUse {
            database,
            server: server.oid,
        };
        let Reply::MappingsInUse { mappings } = call::tell(&request, parameters::connect_timeout())?.message
        else {
            return Err(unexpected_reply());
        };
        found.push(PendingReload {
            database,
            server: server.oid,
            mappings,
            force,
        });
    }
    // Handlers may wait for the changed options, or have a new responder_timeout_ms.
    changes::mark();
    if state::transaction_has_written() {
        AT_COMMIT.with_borrow_mut(|pending| pending.extend(found));
        return Ok(Value::Void);
    }
    for pending in found {
        // Two attempts to connect where the former connection has to make room, and the pause between forced reloads.
        let time = parameters::connect_timeout() * 2 + Duration::from_secs(4);
        call::tell(&pending.request()?, time)?;
    }
    Ok(Value::Void)
}

impl PendingReload {
    fn request(&self) -> Result<Request> {
        let PendingReload {
            database,
            server,
            force,
            ..
        } = *self;
        let mut settings = Vec::with_capacity(self.mappings.len());
        let own = foreign_servers::user_mapping(rights::current_role(), server).unwrap_or(0);
        for mapping in self.mappings.iter().copied() {
            let key = Key {
                database,
                server,
                mapping,
                private_to: 0,
            };
            match server::read_settings(key) {
                Ok(read) => settings.push((mapping, read)),
                Err(error) if mapping == 0 || mapping == own => return Err(error),
                // What a role has done to its own user mapping must not keep other roles from a reload.
                Err(error) => report::message(
                    Level::Warning,
                    "a user mapping of another role is not reloaded",
                    &format!("Its options are not complete: {error}."),
                    "",
                ),
            }
        }
        Ok(Request::Reload {
            database,
            server,
            settings,
            force,
            wait_ms: milliseconds(parameters::connect_timeout()),
        })
    }
}

/// Reads the settings before the commit, while the catalogue can still be read; an error prevents the commit.
pub fn before_commit() -> Result<()> {
    let requests = AT_COMMIT
        .take()
        .iter()
        .map(PendingReload::request)
        .collect::<Result<Vec<_>>>()?;
    COMMITTING.set(requests);
    Ok(())
}

/// Sends the settings, which are committed now.
pub fn committed() {
    for request in COMMITTING.take() {
        transaction_end::post(&request);
    }
}

/// Forgets the reloads.
pub fn aborted() {
    AT_COMMIT.take();
    COMMITTING.take();
}

/// Refuses to prepare a transaction that has asked for a reload: another session may commit it, which knows nothing of
/// the reload.
pub fn before_prepare() -> Result<()> {
    if AT_COMMIT.with_borrow(Vec::is_empty) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsupported,
        "cannot PREPARE a transaction that has called litmus_pgnats_reload_conf",
    ))
}
