//! Reads the handlers of a database as definitions for the runtime worker, and mends what a restore, an upgrade or a
//! dropped role has left. Runs in executors and, to find connections, in outbox relays; on the main thread.

use std::time::Duration;

use super::durable_definition::Durable;
use super::sources::{check_usage, missing, servers, source_of};
use super::{durable_definition, former_consumers, logging};
use crate::channel::target::Source;
use crate::channel::work::{Definition, HandlerKind, Report};
use crate::error::{Error, Kind, Result};
use crate::pg::function::Function;
use crate::pg::query::Argument::Oid;
use crate::pg::query::query;
use crate::pg::transaction::{Parameters, subtransaction, transaction, with_snapshot};
use crate::pg::{databases, rights, state, wait};
use crate::row::Row;
use crate::sql::changes;
use crate::sql::own_tables::{CONSUMER, OwnTables, TRUSTED, consumer_arguments};

/// Reads what this database defines; the report has no definitions if the extension is not there. Because other
/// sessions may change the tables meanwhile, a read that has failed is repeated a few times. `Err` is the message of
/// the last error.
pub fn read_definitions(removed: &[i64]) -> std::result::Result<Report, String> {
    let mut attempt = 1;
    loop {
        match transaction(|| read(removed)) {
            Ok(report) => return Ok(report),
            Err(error) if attempt == ATTEMPTS => return Err(error.message),
            Err(_) => {
                attempt += 1;
                // An interrupt is served when the executor waits for its next order.
                let _ = wait::sleep(PAUSE);
            }
        }
    }
}

/// Most messages for one call of a function that takes many, if the handler has no batch_size.
const BATCH: u32 = 1000;
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a refresh waits for a lock, in milliseconds: any role may hold a lock on a handler that it has registered.
const LOCK_TIMEOUT: &str = "500";

fn read(removed: &[i64]) -> Report {
    let (_, database_name) = databases::database();
    let _parameters = Parameters::of(&[("lock_timeout".into(), LOCK_TIMEOUT.into())]);
    let (has_extension, handlers, servers, has_outbox, former_consumers) =
        with_snapshot(|| match OwnTables::open() {
            Ok(table) => {
                let mut mender = Mender {
                    table,
                    goes_on: !state::is_in_recovery(),
                };
                let handlers = rows()
                    .iter()
                    .filter_map(|row| definition(&mut mender, row))
                    .collect();
                let mut former = Vec::new();
                mender.mend(|_| former = former_consumers::keep(removed));
                let waiting = query("SELECT FROM litmus_pgnats.outbox_batch LIMIT 1", &[]);
                (true, handlers, servers(), !waiting.is_empty(), former)
            }
            Err(_) => (false, Vec::new(), Vec::new(), false, Vec::new()),
        });
    // The report has what was mended already, so no refresh has to follow.
    changes::forget();
    Report {
        database_name,
        has_extension,
        handlers,
        servers,
        has_outbox,
        former_consumers,
    }
}

/// A row of the table of handlers, and the objects that its names mean now.
struct RegisteredRow {
    kind: HandlerKind,
    server: String,
    subject: String,
    queue_group: Option<String>,
    signature: String,
    role: u32,
    role_name: Option<String>,
    /// Object id of the function; `None` if it does not exist.
    function: Option<u32>,
    /// Whether the function may be called: a function that was found by its name may be another role's.
    is_trusted: bool,
    server_oid: Option<u32>,
    /// Whether the binding has the object ids of this row.
    is_bound: bool,
    batch_size: Option<u32>,
    /// What only a durable subscription has; `None` for other handlers.
    stream: Option<Durable>,
}

/// Reads all handlers. A handler calls the function that it was bound to in this database. A handler without such a
/// binding (after a restore, an upgrade or a copy of the database, or one with a name whose function was dropped) gets the function of that name, if the function
/// belongs to the handler's role or to a superuser.
fn rows() -> Vec<RegisteredRow> {
    let sql = format!(
        "SELECT h.kind, h.server, h.subject, h.queue_group, h.signature, h.role::oid, r.rolname, p.oid, \
         coalesce(b.function_oid <> 0, false) OR {TRUSTED}, s.oid, \
         coalesce(b.function_oid <> 0, false) AND b.server_oid IS NOT DISTINCT FROM s.oid, \
         h.batch_size, ( \
           SELECT json_build_object('id', d.id, 'cluster', $1, 'domain', d.domain, 'filter_subjects', d.filter_subjects, \
             'durable', {CONSUMER}, \
             'deliver', d.deliver, 'start_sequence', d.start_sequence, 'start_time', \
             trunc(extract(epoch FROM d.start_time) * 1000000)::int8, 'batch_size', d.batch_size, \
             'ack_wait_ms', trunc(extract(epoch FROM d.ack_wait) * 1000), 'max_deliveries', d.max_deliveries, \
             'backoff_ms', ARRAY(SELECT trunc(extract(epoch FROM b) * 1000) FROM unnest(d.backoff) b), \
             'stop_on_failure', d.stop_on_failure, 'resumed', d.resumed, 'sought', d.sought, 'is_named', d.name IS NOT NULL, 'stopped', CASE WHEN d.paused THEN concat_ws('; ', 'paused by litmus_pgnats.pause()', d.stopped) ELSE d.stopped END, 'positions', ( \
             SELECT json_agg(json_build_object('token', o.incarnation, 'created', o.stream_created, 'marks', o.marks::text, \
             'ack_floor', (SELECT CASE WHEN lower(a) = 0 THEN upper(a) - 1 END FROM unnest(o.applied) a LIMIT 1)) \
             ORDER BY o.left_at DESC) FROM ( \
             SELECT d.incarnation, d.stream_created, d.applied, d.marks, timestamptz 'infinity' AS left_at \
             UNION ALL SELECT incarnation, stream_created, applied, marks, left_at \
             FROM litmus_pgnats.stream_position p WHERE p.id = d.id AND p.incarnation IS DISTINCT FROM d.incarnation) o)) \
           FROM litmus_pgnats.handler_stream d \
           WHERE (d.kind, d.server, d.subject, d.signature) = (h.kind, h.server, h.subject, h.signature)) \
         FROM litmus_pgnats.handler h \
         LEFT JOIN litmus_pgnats.handler_binding b ON b.system_identifier = $1 AND b.database_oid = $2 \
         AND (b.kind, b.server, b.subject, b.signature) = (h.kind, h.server, h.subject, h.signature) \
         LEFT JOIN pg_proc p ON p.oid = coalesce(nullif(b.function_oid, 0), to_regprocedure(h.signature)) \
         LEFT JOIN pg_roles r ON r.oid = h.role \
         LEFT JOIN (pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname = 'litmus_pgnats_fdw') \
         ON s.srvname = h.server \
         ORDER BY h.created, h.kind, h.server, h.subject, h.signature"
    );
    let rows = query(&sql, &consumer_arguments());
    rows.into_iter().filter_map(registered).collect()
}

fn registered(row: Row) -> Option<RegisteredRow> {
    let [
        kind,
        server,
        subject,
        queue_group,
        signature,
        role,
        role_name,
        function,
        is_trusted,
        server_oid,
        is_bound,
        batch_size,
        stream,
    ] = <[Option<String>; 13]>::try_from(row).ok()?;
    Some(RegisteredRow {
        kind: HandlerKind::named(&kind?),
        server: server?,
        subject: subject?,
        queue_group,
        signature: signature?,
        role: role?.parse().ok()?,
        role_name,
        function: function.and_then(|oid| oid.parse().ok()),
        is_trusted: is_trusted.as_deref() == Some("t"),
        server_oid: server_oid.and_then(|oid| oid.parse().ok()),
        is_bound: is_bound? == "t",
        batch_size: batch_size.and_then(|size| size.parse().ok()),
        stream: stream.and_then(|stream| durable_definition::read(&stream)),
    })
}

/// Mends the tables. After a failure, because another session holds a lock for example, the rest is left to the next
/// refresh.
struct Mender {
    table: OwnTables,
    goes_on: bool,
}

impl Mender {
    fn mend(&mut self, work: impl FnOnce(&OwnTables)) {
        if self.goes_on {
            self.goes_on = subtransaction(|| work(&self.table)).is_ok();
        }
    }
}

/// The definition for the runtime worker; `None` for a handler whose function or role does not exist any more, which is
/// removed, unless it has a name and waits for another function.
fn definition(mender: &mut Mender, row: &RegisteredRow) -> Option<Definition> {
    if let (None, Some(role_name)) = (row.function, &row.role_name)
        && row.stream.as_ref().is_some_and(|stream| stream.is_named)
    {
        let message = format!("function {} does not exist", row.signature);
        let gone = Error::new(Kind::InvalidFunction, message)
            .detail("Subscribe with the same name, or alter the subscription, to have it call another one.");
        return Some(defined(row, 0, role_name, Err(gone)));
    }
    let (Some(function), Some(role_name)) = (row.function, &row.role_name) else {
        let gone = if row.role_name.is_some() {
            "function"
        } else {
            "role"
        };
        let text = format!(
            "the {} that called {} is removed: its {gone} does not exist any more",
            row.kind.describe(&row.subject),
            row.signature
        );
        mender.mend(|table| {
            table.delete(row.kind, &row.server, &row.subject, &row.signature);
            logging::write(log::Level::Info, &text, "", "");
        });
        return None;
    };
    if !row.is_bound && row.is_trusted {
        let key = [row.kind.name(), &row.server, &row.subject, &row.signature];
        mender.mend(|table| table.complete_binding(key, function, row.server_oid.unwrap_or(0)));
    }
    Some(defined(
        row,
        function,
        role_name,
        source(row, function, role_name),
    ))
}

fn defined(row: &RegisteredRow, function: u32, role_name: &str, source: Result<Source>) -> Definition {
    let takes_many = Function::find(function).is_some_and(|function| function.takes_batches());
    Definition {
        kind: row.kind,
        server: row.server.clone(),
        subject: row.subject.clone(),
        queue_group: row.queue_group.clone(),
        batch_size: takes_many.then(|| batch_size(row)),
        consumer: row.stream.as_ref().map(|stream| stream.consumer.clone()),
        progress: row
            .stream
            .as_ref()
            .map(|stream| stream.progress.clone())
            .unwrap_or_default(),
        function: row.signature.clone(),
        function_oid: function,
        role: row.role,
        role_name: role_name.to_string(),
        source,
        halted: row.stream.as_ref().and_then(|stream| stream.stopped.clone()),
    }
}

/// Most messages for one call of a function that takes many.
fn batch_size(row: &RegisteredRow) -> u32 {
    let of_stream = row.stream.as_ref().map(|stream| stream.consumer.batch_size);
    of_stream.or(row.batch_size).unwrap_or(BATCH)
}

/// The connection that a handler's role uses for the server, or why the handler cannot run.
fn source(row: &RegisteredRow, function: u32, role_name: &str) -> Result<Source> {
    let server_name = &row.server;
    if !row.is_trusted {
        let message = format!(
            "function {} belongs neither to role \"{role_name}\" nor to a superuser, and was found by its name",
            row.signature
        );
        return Err(Error::new(Kind::PermissionDenied, message)
            .detail("Register the handler again to have it called."));
    }
    let server = row.server_oid.ok_or_else(|| missing(server_name))?;
    check_usage(row.role, role_name, server, server_name)?;
    if !rights::has_execute(row.role, function) {
        return Err(Error::new(
            Kind::PermissionDenied,
            format!(
                "role \"{role_name}\" has no EXECUTE privilege on function {}",
                row.signature
            ),
        ));
    }
    let fits = Function::find(function).is_some_and(|f| match row.kind {
        HandlerKind::Responder => f.takes_messages() && f.returns_replies(),
        HandlerKind::Subscription => f.takes_messages() || f.takes_batches(),
        HandlerKind::Stream => (f.takes_messages() || f.takes_batches()) && row.stream.is_some(),
    });
    if !fits {
        let message = format!("function {} cannot be a {}", row.signature, row.kind.noun());
        return Err(Error::new(Kind::InvalidFunction, message));
    }
    Function::find(function).map_or(Ok(()), |function| function.check_calls())?;
    source_of(server, server_name, row.role)
}

/// The settings of `ALTER ROLE` and `ALTER DATABASE` with which a session of the role would begin. This process has
/// begun with those of the bootstrap superuser; for a parameter that only these set, the value that holds without them
/// is given. Custom parameters, which `pg_settings` does not know, are included; one that only the bootstrap superuser
/// has becomes empty, since PostgreSQL cannot remove a parameter.
pub fn role_settings(role: u32) -> Vec<(String, String)> {
    let _parameters = Parameters::own_names(&[]);
    let rows = query(
        "WITH given AS ( \
           SELECT split_part(c, '=', 1) AS name, substr(c, strpos(c, '=') + 1) AS value, setrole, setdatabase \
           FROM pg_db_role_setting, unnest(setconfig) c \
           WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) \
         ), mine AS ( \
           SELECT DISTINCT ON (lower(name)) lower(name) AS name, value FROM given WHERE setrole IN (0, $1) \
           ORDER BY lower(name), setrole = $1 DESC, setdatabase DESC \
         ), file AS ( \
           SELECT DISTINCT ON (lower(name)) lower(name) AS name, setting FROM pg_file_settings \
           WHERE error IS NULL ORDER BY lower(name), seqno DESC \
         ) \
         SELECT coalesce(s.name, g.name), coalesce(m.value, f.setting, s.boot_val, '') \
         FROM (SELECT DISTINCT lower(name) AS name FROM given WHERE setrole IN ($1, 10, 0)) g \
         LEFT JOIN pg_settings s ON lower(s.name) = g.name \
         LEFT JOIN mine m ON m.name = g.name LEFT JOIN file f ON f.name = g.name \
         WHERE CASE WHEN s.name IS NULL THEN strpos(g.name, '.') > 0 ELSE s.context IN ('user', 'superuser') END \
         AND g.name NOT IN ('role', 'session_authorization')",
        &[Oid(role)],
    );
    let pairs = rows
        .into_iter()
        .filter_map(|row| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(name), Some(value)]) => Some((name, value)),
            _ => None,
        });
    pairs.flat_map(for_this_transaction).collect()
}

/// A default for the next transactions must hold for the transaction that is already running too.
fn for_this_transaction((name, value): (String, String)) -> Vec<(String, String)> {
    let own = name
        .strip_prefix("default_transaction_")
        .map(|which| format!("transaction_{which}"));
    let own = own.map(|name| (name, value.clone()));
    own.into_iter().chain([(name, value)]).collect()
}
