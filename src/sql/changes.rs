//! Notices changes of handlers and of what they depend on, and has the runtime worker refresh the database when the
//! changes are committed. Runs in backends and executors, on the main thread.
//!
//! A trigger on the table sees every change of a handler, by any statement and by a restore. Event triggers see changes
//! of functions and foreign servers: the handlers of a dropped function are removed, those of a renamed function or
//! server follow it.
//!
//! A deployment may drop a function and create it again in the same transaction. So where the role of the handler or a
//! superuser drops the function, the handler stays and is unbound; before the commit it is bound to the function that
//! has taken the name, or removed.

use std::cell::{Cell, RefCell};

use super::own_tables::{OwnTables, TRUSTED};
use super::{call, transaction_end};
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
    /// The running transaction has changed handlers.
    static CHANGED: Cell<bool> = const { Cell::new(false) };
    /// The running transaction has left handlers unbound, unless a savepoint has taken that back.
    static UNBOUND: Cell<bool> = const { Cell::new(false) };
    /// The running transaction has called [`mark`].
    static REFRESH: Cell<bool> = const { Cell::new(false) };
    /// Other databases to be refreshed once the transaction has ended, be it by a commit or a rollback.
    static ELSEWHERE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// Has the runtime worker refresh another database when the transaction has ended. The session has to be connected to
/// the runtime worker.
pub fn refresh_at_end(database: u32) {
    ELSEWHERE.with_borrow_mut(|databases| databases.push(database));
}

/// Has the runtime worker refresh this database once the transaction has committed.
pub fn mark() {
    if !REFRESH.replace(true) {
        // Connects now, because the commit must not wait. A runtime worker that does not run yet refreshes all
        // databases when it starts.
        call::join_runtime_if_running();
    }
}

/// The trigger on the tables of handlers.
fn handler_changed(_: &Call<'_>) -> Result<Value> {
    CHANGED.set(true);
    mark();
    Ok(Value::Void)
}

/// The function of the event triggers, for all three events.
fn ddl(call: &Call<'_>) -> Result<Value> {
    // The role that runs the statement, before the owner of the tables takes its place.
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

/// Unbinds the handlers of functions that the statement has dropped, until the commit, where `role` is the handler's
/// own or a superuser; removes the others.
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
             AND NOT {NAMED} RETURNING h.kind, h.subject, h.signature"
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

/// Binds the handlers that the transaction has left unbound to the functions that have taken the names, and removes
/// those without such a function.
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
            "DELETE FROM litmus_pgnats.handler h USING {BINDING} WHERE {OF} AND b.function_oid = 0 AND NOT {NAMED} \
             RETURNING h.kind, h.subject, h.signature"
        ),
        &here(),
    );
}

/// Deletes handlers, and tells the user of each.
fn remove(sql: &str, arguments: &[Argument<'_>]) {
    for row in query(sql, arguments) {
        if let [Some(kind), Some(subject), Some(signature)] = row.as_slice() {
            let what = HandlerKind::named(kind).describe(subject);
            let text = format!("the {what} ends with its function {signature}");
            report::message(Level::Notice, &text, "", "");
        }
    }
}

/// This cluster and this database, for which the object ids of a binding hold.
fn here() -> [Argument<'static>; 2] {
    [Int8(state::system_identifier()), Oid(databases::database_oid())]
}

/// Yields a row if the statement has dropped something that handlers or their foreign servers may need.
const DROPPED: &str = "SELECT FROM pg_event_trigger_dropped_objects() WHERE classid = ANY ('{pg_proc,pg_namespace,pg_extension, \
    pg_foreign_server,pg_foreign_data_wrapper,pg_user_mapping}'::regclass[]) LIMIT 1";

/// Yields a row if the database concerns the runtime worker: it has handlers, or foreign servers with `notify_subject`
/// or `patroni_url`.
const CONCERNED: &str = "SELECT FROM litmus_pgnats.handler UNION ALL \
    SELECT FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw, unnest(s.srvoptions) o \
    WHERE w.fdwname = 'litmus_pgnats_fdw' AND o ~ '^(notify_subject|patroni_url)=' LIMIT 1";

/// Yields a row if the statement grants or revokes a right that no handler depends on. Any role may do so at any rate,
/// which must not cost a refresh each time.
const OTHER_RIGHTS: &str = "SELECT FROM pg_event_trigger_ddl_commands() WHERE command_tag IN ('GRANT', 'REVOKE') \
    AND upper(object_type) NOT IN ('FUNCTION', 'PROCEDURE', 'ROUTINE', 'SCHEMA', 'FOREIGN SERVER')";

/// The bindings of handlers and, with `OF`, those made in this database: object ids from another database mean other
/// objects here.
const BINDING: &str = "litmus_pgnats.handler_binding b";
const OF: &str = "b.system_identifier = $1 AND b.database_oid = $2 \
    AND (b.kind, b.server, b.subject, b.signature) = (h.kind, h.server, h.subject, h.signature)";

/// Whether a handler is a durable subscription with a name, which waits for another function when its own is dropped.
const NAMED: &str = "EXISTS (SELECT FROM litmus_pgnats.handler_stream n WHERE n.name IS NOT NULL \
    AND (n.kind, n.server, n.subject, n.signature) = (h.kind, h.server, h.subject, h.signature))";

/// The signature that the function of a binding has now.
const CALLED: &str = "LATERAL ( \
    SELECT format('%I.%I(%s)', n.nspname, p.proname, string_agg(format_type(a.oid, NULL), ',' ORDER BY a.place)) AS signature \
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace, \
    unnest(p.proargtypes) WITH ORDINALITY a(oid, place) \
    WHERE p.oid = b.function_oid GROUP BY n.nspname, p.proname) f";

/// Gives handlers the names that their functions and servers have now. The names are read with the statement's own
/// snapshot, which shows another session's renaming and the new names in its handlers either both or not at all. The
/// system caches may be older than the snapshot, and with them a session that merely grants a right would write the old
/// names back.
fn follow() {
    // A dropped server of the new name may have left handlers, which would become those of the renamed server.
    let left = format!(
        "DELETE FROM litmus_pgnats.handler o USING litmus_pgnats.handler h, {BINDING}, pg_foreign_server s \
         WHERE {OF} AND s.oid = b.server_oid AND h.server <> s.srvname AND o.server = s.srvname \
         AND (o.kind, o.subject) = (h.kind, h.subject) AND (o.kind = 'responder' OR o.signature = h.signature)"
    );
    let servers = format!(
        "UPDATE litmus_pgnats.handler h SET server = s.srvname FROM {BINDING}, pg_foreign_server s \
         WHERE {OF} AND s.oid = b.server_oid AND h.server <> s.srvname"
    );
    for sql in [left, servers] {
        query(&sql, &here());
    }
    // A function that the transaction has dropped may have left handlers, whose name a renamed function takes.
    let replaced = format!(
        "DELETE FROM litmus_pgnats.handler o USING litmus_pgnats.handler_binding u, litmus_pgnats.handler h, {BINDING}, \
         {CALLED} WHERE {OF} AND h.signature <> f.signature \
         AND (o.kind, o.server, o.subject, o.signature) = (h.kind, h.server, h.subject, f.signature) \
         AND (u.kind, u.server, u.subject, u.signature) = (o.kind, o.server, o.subject, o.signature) \
         AND u.function_oid = 0 AND u.system_identifier = $1 AND u.database_oid = $2 \
         RETURNING o.kind, o.subject, o.signature"
    );
    remove(&replaced, &here());
    let functions = format!(
        "UPDATE litmus_pgnats.handler h SET signature = f.signature FROM {BINDING}, {CALLED} \
         WHERE {OF} AND h.signature <> f.signature"
    );
    query(&functions, &here());
}

/// Forgets what this transaction has changed, of which the runtime worker need not be told.
pub fn forget() {
    CHANGED.set(false);
    REFRESH.set(false);
    UNBOUND.set(false);
}

/// Binds or removes the handlers that the transaction has left unbound.
pub fn before_commit() -> Result<()> {
    if UNBOUND.replace(false) {
        with_snapshot(rebind);
    }
    Ok(())
}

/// Has the runtime worker refresh this database if its handlers have changed, and the other databases that were noted.
pub fn committed() {
    CHANGED.set(false);
    if REFRESH.replace(false) {
        let database = databases::database_oid();
        transaction_end::announce(&Request::Refresh { database });
    }
    refresh_elsewhere();
}

/// Forgets the changes, which are rolled back; the other databases are refreshed all the same.
pub fn aborted() {
    forget();
    refresh_elsewhere();
}

fn refresh_elsewhere() {
    for database in ELSEWHERE.take() {
        transaction_end::post(&Request::Refresh { database });
    }
}

/// Refuses to prepare a transaction that has changed handlers: another session may commit it, which knows nothing of
/// the change.
pub fn before_prepare() -> Result<()> {
    if CHANGED.get() {
        return Err(Error::new(
            Kind::Unsupported,
            "cannot PREPARE a transaction that has changed subscriptions or responders",
        ));
    }
    Ok(())
}
