//! Which foreign server a call means, whether the calling role may use it, and with which settings. Runs where SQL
//! runs, on the main thread.

use std::cell::RefCell;
use std::ffi::CString;

use super::parameters;
use crate::channel::target::{Key, Target};
use crate::error::{Error, Kind, Result};
use crate::pg::foreign_servers::Server;
use crate::pg::{databases, encoding, foreign_servers, rights};
use crate::settings::Settings;

/// The last choice of a server, and what it depended on.
struct Choice {
    role: u32,
    named: Option<CString>,
    generation: u64,
    key: Key,
}

thread_local! {
    static LAST: RefCell<Option<Choice>> = const { RefCell::new(None) };
}

/// The key of the foreign server that a call of the current role means; fails if there is none, if there are several to
/// choose from, or if the role may not use it. Reads the catalogue only if a server, a user mapping, a right, the role
/// or `litmus_pgnats.server` has changed since the last call.
pub fn choose() -> Result<Key> {
    let (role, named, generation) = (
        rights::current_role(),
        parameters::server(),
        foreign_servers::generation(),
    );
    let known = LAST.with_borrow(|last| {
        let same = |c: &&Choice| c.role == role && c.generation == generation && c.named == named;
        last.as_ref().filter(same).map(|choice| choice.key)
    });
    if let Some(key) = known {
        return Ok(key);
    }
    let server = find(named.as_ref())?;
    check_usage(role, &server)?;
    let (database, _) = databases::database();
    let mapping = foreign_servers::user_mapping(role, server.oid).unwrap_or(0);
    let private_to = if foreign_servers::is_uncommitted(server.oid, mapping) {
        std::process::id()
    } else {
        0
    };
    let key = Key {
        database,
        server: server.oid,
        mapping,
        private_to,
    };
    if private_to != 0 {
        // Not remembered, because no change of `generation` tells that the transaction has ended and the connection is
        // shared.
        return Ok(key);
    }
    LAST.set(Some(Choice {
        role,
        named,
        generation,
        key,
    }));
    Ok(key)
}

fn find(named: Option<&CString>) -> Result<Server> {
    let mut servers = foreign_servers::servers()?;
    if let Some(named) = named {
        let named = encoding::utf8(named);
        let detail = format!(
            "The parameter litmus_pgnats.server names it; it has to be a server of {}.",
            foreign_servers::WRAPPER
        );
        let missing = || {
            Error::new(
                Kind::NoServer,
                format!("foreign server \"{named}\" does not exist"),
            )
            .detail(detail)
        };
        return servers
            .into_iter()
            .find(|server| server.name == named)
            .ok_or_else(missing);
    }
    match servers.len() {
        0 => Err(Error::new(
            Kind::NoServer,
            "no foreign server for NATS is defined in this database",
        )),
        1 => servers.pop().ok_or_else(|| {
            Error::new(
                Kind::NoServer,
                "no foreign server for NATS is defined in this database",
            )
        }),
        _ => {
            let names: Vec<String> = servers
                .into_iter()
                .map(|server| format!("\"{}\"", server.name))
                .collect();
            Err(Error::new(
                Kind::SeveralServers,
                "several foreign servers for NATS are defined in this database",
            )
            .detail(format!("They are {}.", names.join(", "))))
        }
    }
}

fn check_usage(role: u32, server: &Server) -> Result<()> {
    if rights::has_usage(role, server.oid) {
        return Ok(());
    }
    let (name, role) = (&server.name, rights::role_name(role));
    Err(Error::new(
        Kind::PermissionDenied,
        format!("permission denied for foreign server {name}"),
    )
    .detail(format!(
        "Role \"{role}\" has no USAGE privilege on foreign server \"{name}\"."
    )))
}

/// The servers that a reload by the current role concerns: the one that `litmus_pgnats.server` names, or else all that
/// the role may use. Fails if there is none.
pub fn to_reload() -> Result<Vec<Server>> {
    let role = rights::current_role();
    if let Some(named) = parameters::server() {
        let server = find(Some(&named))?;
        check_usage(role, &server)?;
        return Ok(vec![server]);
    }
    let (usable, other): (Vec<_>, Vec<_>) = foreign_servers::servers()?
        .into_iter()
        .partition(|server| rights::has_usage(role, server.oid));
    match (usable.is_empty(), other.first()) {
        (false, _) => Ok(usable),
        (true, Some(server)) => check_usage(role, server).map(|()| vec![]),
        (true, None) => find(None).map(|server| vec![server]),
    }
}

/// The target of a key, with the names that NATS's monitoring shows; fails if the server was dropped.
pub fn target(key: Key) -> Result<Target> {
    let (_, database_name) = databases::database();
    let server_name = foreign_servers::server_name(key.server)
        .ok_or_else(|| Error::new(Kind::NoServer, "the foreign server was dropped"))?;
    Ok(Target {
        key,
        database_name,
        server_name,
    })
}

/// The settings that a key's server and user mapping have now; `None` if one of the two was dropped. Fails if the
/// settings are not complete.
pub fn read_settings(key: Key) -> Result<Option<Settings>> {
    let Some(server) = foreign_servers::server_options(key.server) else {
        return Ok(None);
    };
    let mapping = match key.mapping {
        0 => None,
        mapping => match foreign_servers::mapping_options(mapping) {
            Some(options) => Some(options),
            None => return Ok(None),
        },
    };
    Settings::resolve(&server, mapping.as_ref()).map(Some)
}
