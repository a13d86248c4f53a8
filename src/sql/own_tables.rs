//! The extension's own tables as their owner sees them, and the rows of handlers in them. Runs where SQL runs.

use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::pg::function::Function;
use crate::pg::query::Argument::{Int8, Oid, OptionalText, Text};
use crate::pg::query::query;
use crate::pg::transaction::{Parameters, UserContext};
use crate::pg::{databases, own_objects, state};

/// Of functions `p` that have taken the name of one that a handler `h` called, those that may be called in its place: with
/// the handler's rights, so nobody else's but a superuser's.
pub const TRUSTED: &str =
    "(p.proowner = h.role OR EXISTS (SELECT FROM pg_roles o WHERE o.oid = p.proowner AND o.rolsuper))";

/// A row of the table, as far as registering needs it.
pub struct RegisteredHandler {
    pub signature: String,
    pub role: u32,
}

/// The table as its owner sees it, and no name of a statement means anything but PostgreSQL's or ours.
pub struct OwnTables {
    _parameters: Parameters,
    _owner: UserContext,
}

impl OwnTables {
    pub fn open() -> Result<OwnTables> {
        let parameters = Parameters::of(&[("search_path".into(), "pg_catalog, pg_temp".into())]);
        let owner = own_objects::extension_owner().ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                "extension \"litmus_pgnats\" is not in this database",
            )
        })?;
        Ok(OwnTables {
            _parameters: parameters,
            _owner: UserContext::borrowed(owner),
        })
    }

    /// The handlers of a kind on a subject: of one function, or of any.
    pub fn registered(
        &self,
        kind: HandlerKind,
        server: &str,
        subject: &str,
        function: Option<&Function>,
    ) -> Vec<RegisteredHandler> {
        let signature = function.map(Function::signature);
        let rows = query(
            "SELECT signature, role::oid FROM litmus_pgnats.handler \
             WHERE kind = $1 AND server = $2 AND subject = $3 AND signature = coalesce($4, signature)",
            &[
                Text(kind.name()),
                Text(server),
                Text(subject),
                OptionalText(signature.as_deref()),
            ],
        );
        let registered = rows.into_iter().filter_map(|row| match row.as_slice() {
            [Some(signature), Some(role)] => Some(RegisteredHandler {
                signature: signature.clone(),
                role: role.parse().ok()?,
            }),
            _ => None,
        });
        registered.collect()
    }

    /// The server that all handlers name.
    pub fn only_server(&self) -> Option<String> {
        let rows = query("SELECT DISTINCT server FROM litmus_pgnats.handler", &[]);
        let mut names = rows.into_iter().flatten().flatten();
        names.next().filter(|_| names.next().is_none())
    }

    /// Remembers which objects the names of a handler mean; 0 for a server that is not there.
    pub fn bind(&self, [kind, server, subject, signature]: [&str; 4], function: u32, server_oid: u32) {
        query(
            "INSERT INTO litmus_pgnats.handler_binding \
             (kind, server, subject, signature, function_oid, server_oid, system_identifier, database_oid) \
             VALUES ($1, $2, $3, $4, $5, nullif($6, 0::oid), $7, $8) \
             ON CONFLICT (kind, server, subject, signature) DO UPDATE SET function_oid = excluded.function_oid, \
             server_oid = excluded.server_oid, system_identifier = excluded.system_identifier, \
             database_oid = excluded.database_oid",
            &[
                Text(kind),
                Text(server),
                Text(subject),
                Text(signature),
                Oid(function),
                Oid(server_oid),
                Int8(state::system_identifier()),
                Oid(databases::database_oid()),
            ],
        );
    }

    pub fn delete(&self, kind: HandlerKind, server: &str, subject: &str, signature: &str) {
        query(
            "DELETE FROM litmus_pgnats.handler WHERE kind = $1 AND server = $2 AND subject = $3 AND signature = $4",
            &[Text(kind.name()), Text(server), Text(subject), Text(signature)],
        );
    }
}
