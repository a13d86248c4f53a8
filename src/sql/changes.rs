//! Notices what changes the handlers, or what they depend on, and tells the runtime when it is committed. Runs in
//! backends.
//!
//! A trigger on the table sees every change of a handler, by whatever statement or a restore. Event triggers see the
//! functions and servers behind: dropped functions take their handlers with them, renamed ones keep them.
//!
//! A dropped function may be made again in the same transaction, as deployments do. So who may decide about the handler, its
//! role or a superuser, leaves it unbound when dropping; before the commit it is bound to the function that has taken the
//! name, or removed.

use std::cell::{Cell, RefCell};

use super::call;
use super::own_tables::{OwnTables, TRUSTED};
use crate::channel::message::Request;
use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::query::Argument::{Int8, Oid};
use crate::pg::query::{Argument, query};
use crate::pg::report::Level;
use crate::pg::transaction::with_snapshot;
use crate::pg::{databases, report, rights, state};

sql_function!(litmus_pgnats_handler_changed, handler_changed);
sql_function!(litmus_pgnats_ddl, ddl);

thread_local! {
    /// The running transaction has changed the table.
    static CHANGED: Cell<bool> = const { Cell::new(false) };
    /// The running transaction has left handlers unbound, unless that was rolled back.
    static UNBOUND: Cell<bool> = const { Cell::new(false) };
    /// [`mark`] was called.
    static REFRESH: Cell<bool> = const { Cell::new(false) };
    /// The same of other databases, once the transaction has ended in whatever way.
    static ELSEWHERE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Has the runtime look at another database's handlers when the transaction has ended. The session is connected to it.
pub fn refresh_at_end(database: u32) {
    ELSEWHERE.with_borrow_mut(|databases| databases.push(database));
}

/// Has the runtime look at the handlers once the transaction has committed.
pub fn mark() {
    if !REFRESH.replace(true) {
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
    // The table is its owner's to look into.
    let role = rights::current_role();
    let Ok(_table) = OwnTables::open() else {
        return Ok(Value::Void);
    };
    let event = call.event();
    let is_unconcerned = match event.as_deref() {
        Some("sql_drop") => query(DROPPED, &[]).is_empty(),
        Some("ddl_command_end") => !query(OTHER_RIGHTS, &[]).is_empty(),
        _ => false,
    };
    if is_unconcerned || query(CONCERNED, &[]).is_empty() {
        return Ok(Value::Void);
    }
    mark();
    match event.as_deref() {
        Some("sql_drop") => functions_dropped(role),
        Some("ddl_command_end") => follow(),
        _ => {}
    }
    Ok(Value::Void)
}

/// Handlers of functions that the statement has dropped: unbound until the commit where `role` may decide about them, and
/// removed otherwise.
fn functions_dropped(role: u32) {
    let is_bound = format!(
        "{OF} AND (b.kind, b.server, b.subject, b.signature) IN ( \
           SELECT b.kind, b.server, b.subject, b.signature FROM litmus_pgnats.handler_binding b, \
           pg_event_trigger_dropped_objects() d WHERE d.classid = 'pg_proc'::regclass AND d.objid = b.function_oid)"
    );
    let others = if rights::is_superuser(role) { 0 } else { role };
    let [system, database] = here();
    remove(
        &format!(
            "DELETE FROM litmus_pgnats.handler h USING {BINDING} WHERE {is_bound} AND h.role <> coalesce(nullif($3, 0::oid), h.role) \
             RETURNING h.kind, h.subject, h.signature"
        ),
        &[system, database, Oid(others)],
    );
    let unbound = query(
        &format!(
            "UPDATE {BINDING} SET function_oid = 0 FROM litmus_pgnats.handler h WHERE {is_bound} RETURNING b.kind"
        ),
        &here(),
    );
    if !unbound.is_empty() {
        CHANGED.set(true);
        UNBOUND.set(true);
    }
}

/// Binds what the transaction has left unbound to the functions that have been made in their place, and removes the rest.
fn rebind() {
    let Ok(_table) = OwnTables::open() else { return };
    query(
        &format!(
            "UPDATE {BINDING} SET function_oid = p.oid FROM litmus_pgnats.handler h, pg_proc p \
             WHERE {OF} AND b.function_oid = 0 AND p.oid = to_regprocedure(h.signature) AND {TRUSTED}"
        ),
        &here(),
    );
    remove(
        &format!(
            "DELETE FROM litmus_pgnats.handler h USING {BINDING} WHERE {OF} AND b.function_oid = 0 \
             RETURNING h.kind, h.subject, h.signature"
        ),
        &here(),
    );
}

/// Deletes handlers, and says so.
fn remove(sql: &str, arguments: &[Argument<'_>]) {
    for row in query(sql, arguments) {
        if let [Some(kind), Some(subject), Some(signature)] = row.as_slice() {
            let what = HandlerKind::named(kind).describe(subject);
            let text = format!("the {what} ends with its function {signature}");
            report::message(Level::Notice, &text, "", "");
        }
    }
}

/// What object ids hold for: this cluster and this database.
fn here() -> [Argument<'static>; 2] {
    [Int8(state::system_identifier()), Oid(databases::database_oid())]
}

/// A row if the statement has dropped something that handlers, or the servers behind them, may need.
const DROPPED: &str = "SELECT FROM pg_event_trigger_dropped_objects() WHERE classid = ANY ('{pg_proc,pg_namespace,pg_extension, \
    pg_foreign_server,pg_foreign_data_wrapper,pg_user_mapping}'::regclass[]) LIMIT 1";

/// A row if the runtime has anything to do with this database: handlers, or servers that want to be told of the role.
const CONCERNED: &str = "SELECT FROM litmus_pgnats.handler UNION ALL \
    SELECT FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw, unnest(s.srvoptions) o \
    WHERE w.fdwname = 'litmus_pgnats_fdw' AND o ~ '^(notify_subject|patroni_url)=' LIMIT 1";

/// A row if the statement grants or revokes a right that means nothing here, as any role may do all day.
const OTHER_RIGHTS: &str = "SELECT FROM pg_event_trigger_ddl_commands() WHERE command_tag IN ('GRANT', 'REVOKE') \
    AND upper(object_type) NOT IN ('FUNCTION', 'PROCEDURE', 'ROUTINE', 'SCHEMA', 'FOREIGN SERVER')";

/// What a handler was bound to in this very database: object ids of another one mean something else here.
const BINDING: &str = "litmus_pgnats.handler_binding b";
const OF: &str = "b.system_identifier = $1 AND b.database_oid = $2 \
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
        query(&sql, &here());
    }
}

/// The runtime need not be told of what this transaction has done.
pub fn forget() {
    CHANGED.set(false);
    REFRESH.set(false);
    UNBOUND.set(false);
}

/// Decides about handlers whose functions the transaction has dropped.
pub fn before_commit() -> Result<()> {
    if UNBOUND.replace(false) {
        with_snapshot(rebind);
    }
    Ok(())
}

/// The changes stand: has the runtime look.
pub fn committed() {
    CHANGED.set(false);
    if REFRESH.replace(false) {
        let database = databases::database_oid();
        call::announce(&Request::Refresh { database });
    }
    refresh_elsewhere();
}

/// The changes are taken back.
pub fn aborted() {
    forget();
    refresh_elsewhere();
}

fn refresh_elsewhere() {
    for database in ELSEWHERE.take() {
        call::post(&Request::Refresh { database });
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
