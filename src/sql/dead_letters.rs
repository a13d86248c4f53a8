//! `litmus_pgnats.redrive`, `redrive_all` and `purge_dead_letters`: what becomes of messages that could not be
//! delivered or executed. Runs in backends, on the main thread.

use super::arguments::null;
use super::outbox;
use super::outbox::NewMessage;
use super::own_tables::{OwnTables, TRUSTED};
use crate::channel::outbox::Partition;
use crate::error::{Error, Kind, Result};
use crate::pg::batch::Element;
use crate::pg::callback::Arguments;
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::function::Function;
use crate::pg::query::Argument::{Int8, Oid, OptionalText};
use crate::pg::query::{Fields, prepared_each, query};
use crate::pg::transaction::{Parameters, UserContext, sqlstate, subtransaction};
use crate::pg::{batch, callback, databases, rights, sqlstates, state};

sql_function!(litmus_pgnats_redrive, redrive);
sql_function!(litmus_pgnats_redrive_all, redrive_all);
sql_function!(litmus_pgnats_purge_dead_letters, purge);

/// SQLSTATE of a statement that is cancelled or has timed out.
const CANCELED: &str = "57014";

/// A dead letter, as a row of its table.
struct Dead {
    source: String,
    server: String,
    role: u32,
    stream: Option<String>,
    function: Option<String>,
    sequence: Option<u64>,
    deliveries: Option<u32>,
    subject: String,
    headers: Option<String>,
    domain: Option<String>,
    message_id: Option<String>,
    time_us: i64,
    payload: Vec<u8>,
}

/// `(id)`: puts the message into the outbox again, or executes it, in the caller's own transaction.
fn redrive(call: &Call<'_>) -> Result<Value> {
    let id = call.int8(0).ok_or_else(|| null("id"))?;
    let unknown = || {
        Error::new(Kind::InvalidName, format!("there is no dead letter {id}"))
            .hint("litmus_pgnats.dead_letters lists them.")
    };
    // Rights are checked first: nobody locks what they may not redrive.
    if !rights::has_privileges_of(role_of(id)?.ok_or_else(unknown)?) {
        return Err(Error::new(
            Kind::PermissionDenied,
            format!("permission denied for dead letter {id}"),
        )
        .hint("Only a role that has the privileges of the message's role may redrive it."));
    }
    again(id, &find(id, FIND)?.ok_or_else(unknown)?)?;
    Ok(Value::Void)
}

/// `(source, stream, function, server)`: redrives the dead letters that the caller may redrive and that these arguments,
/// as far as they are not NULL, describe; but not those that another session has locked, to redrive or to remove them.
/// Returns each one's id and, if it stays a dead letter, why.
fn redrive_all(call: &Call<'_>) -> Result<Value> {
    let (source, stream, function, server) = (call.text(0)?, call.text(1)?, call.text(2)?, call.text(3)?);
    let rows = {
        let _table = OwnTables::open()?;
        query(
            "SELECT id, role::oid FROM litmus_pgnats.dead_letter WHERE source = coalesce($1, source) \
             AND ($2 IS NULL OR stream = $2) AND ($3 IS NULL OR function = $3) AND server = coalesce($4, server) ORDER BY id",
            &[
                OptionalText(source.as_deref()),
                OptionalText(stream.as_deref()),
                OptionalText(function.as_deref()),
                OptionalText(server.as_deref()),
            ],
        )
    };
    let letters = rows.into_iter().filter_map(|row| match row.as_slice() {
        [Some(id), Some(role)] => Some((id.parse::<i64>().ok()?, role.parse().ok()?)),
        _ => None,
    });
    let mut redriven = Vec::new();
    for (id, _) in letters.filter(|(_, role)| rights::has_privileges_of(*role)) {
        // One that fails holds up no other.
        let outcome = subtransaction(|| match find(id, FIND_UNLOCKED)? {
            Some(letter) => again(id, &letter).map(|()| true),
            None => Ok(false),
        });
        let error = match outcome {
            Ok(Ok(false)) => continue,
            Ok(Ok(true)) => None,
            Ok(Err(error)) => {
                let code = sqlstate(sqlstates::describe(error.kind).0 as i32);
                Some(format!("{code}: {error}"))
            }
            // A cancel is for the whole statement.
            Err(caught) if caught.sqlstate == CANCELED => {
                return Err(Error::new(Kind::Interrupted, caught.message));
            }
            Err(caught) => Some(format!("{}: {}", caught.sqlstate, caught.message)),
        };
        redriven.push(vec![Some(id.to_string()), error]);
    }
    Ok(Value::Rows(redriven))
}

/// `(older_than)`: removes the dead letters that the caller may redrive, all of them for NULL, or those of at least
/// this age. Returns their number.
fn purge(call: &Call<'_>) -> Result<Value> {
    let older_than = call.interval_ms(0).unwrap_or(0);
    if older_than < 0 {
        return Err(Error::new(Kind::InvalidArgument, "older_than is negative"));
    }
    let rows = {
        let _table = OwnTables::open()?;
        query(
            "SELECT DISTINCT role::oid FROM litmus_pgnats.dead_letter \
             WHERE died <= clock_timestamp() - make_interval(secs => $1 / 1000.0)",
            &[Int8(older_than)],
        )
    };
    let roles = rows
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|role| role.parse().ok());
    // A superuser has the privileges of every role, even of a dropped one.
    let roles: Vec<String> = roles
        .filter(|role| rights::has_privileges_of(*role))
        .map(|role: u32| role.to_string())
        .collect();
    let _table = OwnTables::open()?;
    let removed = query(
        "WITH removed AS (DELETE FROM litmus_pgnats.dead_letter \
         WHERE died <= clock_timestamp() - make_interval(secs => $1 / 1000.0) AND role::oid = ANY($2::oid[]) RETURNING 1) \
         SELECT count(*) FROM removed",
        &[
            Int8(older_than),
            OptionalText(Some(&format!("{{{}}}", roles.join(",")))),
        ],
    );
    let count = removed.into_iter().flatten().flatten().next();
    Ok(Value::Int8(
        count.and_then(|count| count.parse().ok()).unwrap_or(0),
    ))
}

/// The role of a dead letter, which never changes; `None` if there is none with this id.
fn role_of(id: i64) -> Result<Option<u32>> {
    let _table = OwnTables::open()?;
    let rows = query(
        "SELECT role::oid FROM litmus_pgnats.dead_letter WHERE id = $1",
        &[Int8(id)],
    );
    Ok(rows
        .into_iter()
        .flatten()
        .flatten()
        .next()
        .and_then(|role| role.parse().ok()))
}

macro_rules! find_and {
    ($lock:literal) => {
        concat!(
            "SELECT source, server, role::bigint, function, stream_sequence, delivery_count::bigint, subject, headers, \
             domain, message_id, trunc(extract(epoch FROM sent) * 1000000)::bigint, payload, stream \
             FROM litmus_pgnats.dead_letter WHERE id = $1 ",
            $lock
        )
    };
}

/// Reads a dead letter and locks it, after another session that has locked it.
const FIND: &str = find_and!("FOR UPDATE");
/// Reads a dead letter and locks it, unless another session has locked it.
const FIND_UNLOCKED: &str = find_and!("FOR UPDATE SKIP LOCKED");

/// Reads a dead letter by one of these two; `None` if there is none with this id.
fn find(id: i64, sql: &'static str) -> Result<Option<Dead>> {
    let _table = OwnTables::open()?;
    let mut found = None;
    prepared_each(sql, &[Int8(id)], |row| found = dead(row));
    Ok(found)
}

fn dead(row: &Fields) -> Option<Dead> {
    Some(Dead {
        source: row.text(1)?,
        server: row.text(2)?,
        role: u32::try_from(row.int8(3)?).ok()?,
        function: row.text(4),
        sequence: row.int8(5).and_then(|number| number.try_into().ok()),
        deliveries: row.int8(6).and_then(|number| number.try_into().ok()),
        subject: row.text(7)?,
        headers: row.any(8),
        domain: row.text(9),
        message_id: row.any(10),
        time_us: row.int8(11)?,
        payload: row.bytes(12)?.to_vec(),
        stream: row.text(13),
    })
}

fn again(id: i64, letter: &Dead) -> Result<()> {
    if letter.source == "outbox" {
        let partition = Partition {
            server: letter.server.clone(),
            role: letter.role,
        };
        let message = NewMessage {
            subject: &letter.subject,
            payload: &letter.payload,
            headers: letter.headers.as_deref(),
            domain: letter.domain.as_deref(),
            id: letter.message_id.as_deref(),
        };
        outbox::put(partition, &message)?;
    } else {
        execute(letter)?;
    }
    let _table = OwnTables::open()?;
    query("DELETE FROM litmus_pgnats.dead_letter WHERE id = $1", &[Int8(id)]);
    Ok(())
}

/// Object id of the function that the subscription calls, or else of the function with that signature. It will run with
/// the rights of the message's role, so a function that is found by its signature must belong to that role or to a
/// superuser.
fn function_of(letter: &Dead) -> Option<u32> {
    let _table = OwnTables::open().ok()?;
    let rows = query(
        &format!(
            "SELECT p.oid FROM (SELECT $1::text AS signature, $2::oid AS role) h LEFT JOIN ( \
               SELECT b.function_oid, r.role, r.signature FROM litmus_pgnats.handler r \
               JOIN litmus_pgnats.handler_binding b USING (kind, server, subject, signature) \
               WHERE r.kind = 'stream' AND r.server = $3 AND r.subject = $4 \
               AND b.system_identifier = $5 AND b.database_oid = $6 \
             ) b ON b.signature = h.signature AND b.role = h.role \
             JOIN pg_proc p ON p.oid = coalesce(b.function_oid, to_regprocedure(h.signature)) \
             WHERE b.function_oid IS NOT NULL OR {TRUSTED}"
        ),
        &[
            OptionalText(letter.function.as_deref()),
            Oid(letter.role),
            OptionalText(Some(&letter.server)),
            OptionalText(letter.stream.as_deref()),
            Int8(state::system_identifier()),
            Oid(databases::database_oid()),
        ],
    );
    rows.into_iter().flatten().flatten().next()?.parse().ok()
}

/// Calls the function as the subscription would, with the rights of the message's role. The function's error becomes
/// the caller's.
fn execute(letter: &Dead) -> Result<()> {
    let signature = letter.function.as_deref().unwrap_or_default();
    let function = function_of(letter).and_then(Function::find).ok_or_else(|| {
        Error::new(
            Kind::InvalidFunction,
            format!("function {signature} does not exist any more"),
        )
        .hint("A function of that name is called if it belongs to the message's role or to a superuser.")
    })?;
    function.check_calls()?;
    if !rights::has_execute(letter.role, function.oid) {
        return Err(Error::new(
            Kind::PermissionDenied,
            format!("permission denied for function {signature}"),
        )
        .hint(""));
    }
    // Plans are made with the rights of one role: those of other calls are not for this role.
    callback::with_own_plans(|| {
        // Takes back what the function sets: the caller may have more rights than the message's role.
        let _parameters = Parameters::of(&[]);
        let _identity = UserContext::confined(letter.role);
        if function.takes_batches() {
            batch::call(
                &function,
                &[Element {
                    subject: &letter.subject,
                    payload: &letter.payload,
                    reply: None,
                    headers: letter.headers.clone(),
                    position: letter.sequence.zip(letter.deliveries),
                    time_us: letter.time_us,
                }],
            );
        } else {
            let arguments = Arguments {
                payload: &letter.payload,
                subject: &letter.subject,
                reply: None,
                headers: letter.headers.clone(),
            };
            callback::call(&function, &arguments);
        }
    });
    Ok(())
}
