//! The extension's own tables as their owner sees them, and the rows of handlers in them. Runs where SQL runs, on the
//! main thread.

use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::nats::names;
use crate::pg::function::Function;
use crate::pg::query::Argument::{Int8, Oid, OptionalText, Text};
use crate::pg::query::{Argument, query};
use crate::pg::transaction::{Parameters, UserContext};
use crate::pg::{databases, own_objects, state};

/// The condition under which a function `p` that is only found by the name that a handler `h` has may be called. The
/// function would run with the rights of the handler's role, so it must belong to that role or to a superuser.
pub const TRUSTED: &str =
    "(p.proowner = h.role OR EXISTS (SELECT FROM pg_roles o WHERE o.oid = p.proowner AND o.rolsuper))";

/// The name that the consumer of a row `d` of handler_stream has in this database. The first arguments of the statement
/// are [`consumer_arguments`].
pub const CONSUMER: &str = "coalesce(d.durable, $3 || md5(format('%s %s %s', d.id, $1, $2)))";

/// What the names of consumers are made of: this cluster, this database, and how the names begin.
pub fn consumer_arguments() -> [Argument<'static>; 3] {
    [
        Int8(state::system_identifier()),
        Oid(databases::database_oid()),
        Text(names::OWN_CONSUMER),
    ]
}

/// A row of the table of handlers, as far as registering needs it.
pub struct RegisteredHandler {
    pub signature: String,
    pub role: u32,
}

/// Until this is dropped, statements run as the owner of the extension's tables, under settings by which names mean and
/// look the same everywhere: a search path that has only PostgreSQL's own names, and quotes only where they are needed.
pub struct OwnTables {
    _parameters: Parameters,
    _owner: UserContext,
}

impl OwnTables {
    /// Fails if the extension is not in this database.
    pub fn open() -> Result<OwnTables> {
        let parameters = Parameters::own_names(&[]);
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

    /// The handlers of a kind on a subject that call `function` or, for `None`, any function.
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

    /// Gives the handler that is bound to a function the signature that the function has now, in case no event trigger
    /// has seen it renamed: one function must not have two rows.
    pub fn follow(&self, kind: HandlerKind, server: &str, subject: &str, function: &Function) {
        query(
            "UPDATE litmus_pgnats.handler h SET signature = $4 FROM litmus_pgnats.handler_binding b \
             WHERE (h.kind, h.server, h.subject) = ($1, $2, $3) AND h.signature <> $4 \
             AND (b.kind, b.server, b.subject, b.signature) = (h.kind, h.server, h.subject, h.signature) \
             AND b.function_oid = $5 AND b.system_identifier = $6 AND b.database_oid = $7",
            &[
                Text(kind.name()),
                Text(server),
                Text(subject),
                Text(&function.signature()),
                Oid(function.oid),
                Int8(state::system_identifier()),
                Oid(databases::database_oid()),
            ],
        );
    }

    /// The server that all handlers name; `None` if there are no handlers, or if they name several.
    pub fn only_server(&self) -> Option<String> {
        let rows = query("SELECT DISTINCT server FROM litmus_pgnats.handler", &[]);
        let mut names = rows.into_iter().flatten().flatten();
        names.next().filter(|_| names.next().is_none())
    }

    /// Remembers which objects the names of a handler mean in this database; `server_oid` is 0 if there is no such
    /// server.
    pub fn bind(&self, handler: [&str; 4], function: u32, server_oid: u32) {
        query(
            "INSERT INTO litmus_pgnats.handler_binding \
             (kind, server, subject, signature, function_oid, server_oid, system_identifier, database_oid) \
             VALUES ($1, $2, $3, $4, $5, nullif($6, 0::oid), $7, $8) \
             ON CONFLICT (kind, server, subject, signature) DO UPDATE SET function_oid = excluded.function_oid, \
             server_oid = excluded.server_oid, system_identifier = excluded.system_identifier, \
             database_oid = excluded.database_oid",
            &binding(handler, function, server_oid),
        );
    }

    /// Like [`OwnTables::bind`], for a handler that a refresh has read: where the handler is bound to a function of
    /// this database already, that function stays, because it may have changed since the refresh has read it.
    pub fn complete_binding(&self, handler: [&str; 4], function: u32, server_oid: u32) {
        query(
            "INSERT INTO litmus_pgnats.handler_binding AS b \
             (kind, server, subject, signature, function_oid, server_oid, system_identifier, database_oid) \
             SELECT $1, $2, $3, $4, p.oid, nullif($6, 0::oid), $7, $8 FROM pg_proc p WHERE p.oid = $5 \
             ON CONFLICT (kind, server, subject, signature) DO UPDATE SET function_oid = CASE \
             WHEN b.system_identifier = $7 AND b.database_oid = $8 AND b.function_oid <> 0 THEN b.function_oid ELSE excluded.function_oid END, \
             server_oid = excluded.server_oid, system_identifier = $7, database_oid = $8",
            &binding(handler, function, server_oid),
        );
    }

    /// Has a durable subscription that has stopped go on: its handler begins anew, and the message that it has stopped at
    /// is kept no longer.
    pub fn go_on(&self, server: &str, stream: &str, signature: &str) {
        query(
            "WITH d AS (UPDATE litmus_pgnats.handler_stream SET stopped = NULL, resumed = resumed + 1 \
             WHERE (kind, server, subject, signature) = ('stream', $1, $2, $3) AND stopped IS NOT NULL RETURNING id) \
             DELETE FROM litmus_pgnats.stopped_message m USING d WHERE m.id = d.id",
            &[Text(server), Text(stream), Text(signature)],
        );
    }

    /// Has a durable subscription's handler begin anew: what executors have in hand was taken for the subscription as it
    /// was, and has no effects.
    pub fn begin_anew(&self, server: &str, stream: &str, signature: &str) {
        query(
            "UPDATE litmus_pgnats.handler_stream SET resumed = resumed + 1 \
             WHERE (kind, server, subject, signature) = ('stream', $1, $2, $3)",
            &[Text(server), Text(stream), Text(signature)],
        );
    }

    /// Deletes a handler.
    pub fn delete(&self, kind: HandlerKind, server: &str, subject: &str, signature: &str) {
        query(
            "DELETE FROM litmus_pgnats.handler WHERE kind = $1 AND server = $2 AND subject = $3 AND signature = $4",
            &[Text(kind.name()), Text(server), Text(subject), Text(signature)],
        );
    }
}

/// A row of the table of bindings, made here.
fn binding<'a>(
    [kind, server, subject, signature]: [&'a str; 4],
    function: u32,
    server_oid: u32,
) -> [Argument<'a>; 8] {
    [
        Text(kind),
        Text(server),
        Text(subject),
        Text(signature),
        Oid(function),
        Oid(server_oid),
        Int8(state::system_identifier()),
        Oid(databases::database_oid()),
    ]
}
