//! Notices what changes the handlers, or what they depend on, and tells the runtime when it is committed. Runs in
//! backends.
//!
//! A trigger on the table sees every change of a handler, by whatever statement or a restore. Event triggers see the
//! functions and servers behind: dropped functions take their handlers with them, renamed ones keep them.

use std::cell::{Cell, RefCell};

use super::call;
use super::handlers::Table;
use crate::channel::message::Request;
use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::pg::catalog;
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::query::Argument::Int8;
use crate::pg::query::query;
use crate::pg::report::{self, Level};

sql_function!(litmus_pgnats_handler_changed, handler_changed);
sql_function!(litmus_pgnats_ddl, ddl);

thread_local! {
    /// The running transaction has changed the table.
    static CHANGED: Cell<bool> = const { Cell::new(false) };
    /// [`mark`] was called.
    static LOOK: Cell<bool> = const { Cell::new(false) };
    /// The same of other databases, once the transaction has ended in whatever way.
    static ELSEWHERE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Has the runtime look at another database's handlers when the transaction has ended. The session is connected to it.
pub fn look_at(database: u32) {
    ELSEWHERE.with_borrow_mut(|databases| databases.push(database));
}

/// Has the runtime look at the handlers once the transaction has committed.
pub fn mark() {
    if !LOOK.replace(true) {
        // At commit there is no time to connect. A runtime that does not run will look by itself when it starts.
        call::join_runtime_if_running();
    }
}

/// Trigger of the table.
fn handler_changed(_: &Call<'_>) -> Result<Value> {
    CHANGED.set(true);
    mark();
    Ok(Value::Void)
}

/// Event trigger, of all three events.
fn ddl(call: &Call<'_>) -> Result<Value> {
    let Ok(_table) = Table::open() else {
        return Ok(Value::Void);
    };
    let event = call.event();
    let is_end = event.as_deref() == Some("ddl_command_end");
    if query(CONCERNED, &[]).is_empty() || (is_end && !query(OTHER_RIGHTS, &[]).is_empty()) {
        return Ok(Value::Void);
    }
    mark();
    match event.as_deref() {
        Some("sql_drop") => {
            let removed = query(
                &format!(
                    "DELETE FROM litmus_pgnats.handler h USING {BINDING}, pg_event_trigger_dropped_objects() d \
                     WHERE {OF} AND d.classid = 'pg_proc'::regclass AND d.objid = b.function_oid \
                     RETURNING h.kind, h.subject, h.signature"
                ),
                &[Int8(catalog::system_identifier())],
            );
            for row in removed {
                if let [Some(kind), Some(subject), Some(signature)] = row.as_slice() {
                    let what = HandlerKind::named(kind).describe(subject);
                    let text = format!("the {what} ends with its function {signature}");
                    report::message(Level::Notice, &text, "", "");
                }
            }
        }
        Some("ddl_command_end") => follow(),
        _ => {}
    }
    Ok(Value::Void)
}

/// A row if the runtime has anything to do with this database: handlers, or servers that want to be told of the role.
const CONCERNED: &str = "SELECT FROM litmus_pgnats.handler UNION ALL \
    SELECT FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw, unnest(s.srvoptions) o \
    WHERE w.fdwname = 'litmus_pgnats_fdw' AND o ~ '^(notify_subject|patroni_url)=' LIMIT 1";

/// A row if the statement grants or revokes a right that means nothing here, as any role may do all day.
const OTHER_RIGHTS: &str = "SELECT FROM pg_event_trigger_ddl_commands() WHERE command_tag IN ('GRANT', 'REVOKE') \
    AND upper(object_type) NOT IN ('FUNCTION', 'PROCEDURE', 'ROUTINE', 'SCHEMA', 'FOREIGN SERVER')";

/// What a handler was bound to in this very cluster: object ids of another one mean something else here.
const BINDING: &str = "litmus_pgnats.handler_binding b";
const OF: &str = "b.system_identifier = $1 \
    AND (b.kind, b.server, b.subject, b.signature) = (h.kind, h.server, h.subject, h.signature)";

/// Gives handlers the names that their functions and servers have now. All of them come from the statement's own snapshot,
/// in which another session's renaming and its handlers' are either both there or both not; the system caches may be behind
/// it, and a session that merely grants a right would write the old names back.
fn follow() {
    // A server of that name that was dropped has left handlers; they would be this server's now.
    let left = format!(
        "DELETE FROM litmus_pgnats.handler o USING litmus_pgnats.handler h, {BINDING}, pg_foreign_server s \
         WHERE {OF} AND s.oid = b.server_oid AND h.server <> s.srvname AND o.server = s.srvname \
         AND (o.kind, o.subject) = (h.kind, h.subject) AND (o.kind = 'responder' OR o.signature = h.signature)"
    );
    let servers = format!(
        "UPDATE litmus_pgnats.handler h SET server = s.srvname FROM {BINDING}, pg_foreign_server s \
         WHERE {OF} AND s.oid = b.server_oid AND h.server <> s.srvname"
    );
    let functions = format!(
        "UPDATE litmus_pgnats.handler h SET signature = f.signature FROM {BINDING}, LATERAL ( \
           SELECT format('%I.%I(%s)', n.nspname, p.proname, string_agg(format_type(a.oid, NULL), ',' ORDER BY a.place)) AS signature \
           FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace, \
           unnest(p.proargtypes) WITH ORDINALITY a(oid, place) \
           WHERE p.oid = b.function_oid GROUP BY n.nspname, p.proname \
         ) f WHERE {OF} AND h.signature <> f.signature"
    );
    for sql in [left, servers, functions] {
        query(&sql, &[Int8(catalog::system_identifier())]);
    }
}

/// The runtime need not be told of what this transaction has done.
pub fn forget() {
    CHANGED.set(false);
    LOOK.set(false);
}

/// The changes stand: has the runtime look.
pub fn committed() {
    CHANGED.set(false);
    if LOOK.replace(false) {
        let database = catalog::database_oid();
        call::announce(&Request::Look { database });
    }
    look_elsewhere();
}

/// The changes are taken back.
pub fn aborted() {
    forget();
    look_elsewhere();
}

fn look_elsewhere() {
    for database in ELSEWHERE.take() {
        call::post(&Request::Look { database });
    }
}

/// A prepared transaction may be committed by another session, which knows nothing of the handlers.
pub fn before_prepare() -> Result<()> {
    if CHANGED.get() {
        return Err(Error::new(
            Kind::Unsupported,
            "cannot PREPARE a transaction that has changed subscriptions or responders",
        ));
    }
    Ok(())
}
