//! Registers and removes subscriptions and responders, which is writing rows of the table `litmus_pgnats.handler`. Runs
//! in backends, on the main thread.

use super::arguments::null;
use super::own_tables::{OwnTables, RegisteredHandler};
use super::{call, parameters, server};
use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::nats::subject;
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::function::Function;
use crate::pg::query::Argument::{Int8, Oid, OptionalText, Text};
use crate::pg::query::query;
use crate::pg::report::Level;
use crate::pg::{encoding, report, rights, state};

sql_function!(nats_subscribe, |call: &Call<'_>| register(
    call,
    HandlerKind::Subscription
));
sql_function!(nats_unsubscribe, |call: &Call<'_>| unregister(
    call,
    HandlerKind::Subscription
));
sql_function!(litmus_pgnats_register_responder, |call: &Call<'_>| register(
    call,
    HandlerKind::Responder
));
sql_function!(litmus_pgnats_unregister_responder, |call: &Call<'_>| unregister(
    call,
    HandlerKind::Responder
));

/// Most messages for one call of a function that takes many.
const MAX_BATCH: i32 = 10_000;

/// `(subject, fn, queue_group, batch_size)`; a responder has no batch_size.
fn register(call: &Call<'_>, kind: HandlerKind) -> Result<Value> {
    let subject = subject_argument(call)?;
    let queue_group = call.text(2)?;
    if let Some(group) = &queue_group {
        subject::check_queue_group(group)?;
    }
    let function = function_argument(call)?;
    let batch_size = batch_size(call.int4(3))?;
    if batch_size.is_some() && !function.takes_batches() {
        let message = format!("function {} takes one message at a time", function.signature());
        return Err(Error::new(Kind::InvalidFunction, message)
            .hint("batch_size is for a function that takes litmus_pgnats.message[]."));
    }
    write(&NewHandler {
        kind,
        subject: &subject,
        queue_group: queue_group.as_deref(),
        batch_size,
        function: &function,
    })?;
    Ok(Value::Void)
}

/// The names in a handler's row, as they were written.
pub struct Written {
    pub server: String,
    pub signature: String,
    /// For further rows of the handler.
    pub table: OwnTables,
}

/// A handler that is to be registered.
pub struct NewHandler<'a> {
    pub kind: HandlerKind,
    pub subject: &'a str,
    pub queue_group: Option<&'a str>,
    pub batch_size: Option<i64>,
    pub function: &'a Function,
}

/// Checks and writes a handler. Fails if the function does not fit, or if a right, a foreign server or the runtime
/// worker is missing.
pub fn write(new: &NewHandler<'_>) -> Result<Written> {
    let NewHandler {
        kind,
        subject,
        function,
        ..
    } = *new;
    check_function(function, kind)?;
    let key = server::choose()?;
    let server = server::target(key)?.server_name;
    check_writable()?;
    // Connects now, when an error may still be raised; the commit can only have the runtime worker refresh the
    // database.
    call::ensure_runtime()?;
    let role = rights::current_role();
    let only = (kind != HandlerKind::Responder).then_some(function);
    let before = registered(kind, &server, subject, only)?;
    for registered in &before {
        check_privileges(registered, kind, subject)?;
    }
    let table = OwnTables::open()?;
    if kind == HandlerKind::Responder {
        report_replaced(&before, new);
    }
    if before.is_empty() {
        check_number(role)?;
    }
    let signature = function.signature();
    if !insert(new, &server, &signature, role) {
        // Another session has written the row first.
        return Err(not_yours(kind, subject));
    }
    let names = [kind.name(), &server, subject, &signature];
    table.bind(names, function.oid, key.server);
    Ok(Written {
        server,
        signature,
        table,
    })
}

/// The handlers of a kind on a subject that call `function`, under the name that it has now, or, for `None`, any function.
fn registered(
    kind: HandlerKind,
    server: &str,
    subject: &str,
    function: Option<&Function>,
) -> Result<Vec<RegisteredHandler>> {
    let table = OwnTables::open()?;
    if let Some(function) = function {
        table.follow(kind, server, subject, function);
    }
    Ok(table.registered(kind, server, subject, function))
}

/// Tells the user which responders the new one replaces, since a subject has only one.
fn report_replaced(before: &[RegisteredHandler], new: &NewHandler<'_>) {
    let signature = new.function.signature();
    for registered in before
        .iter()
        .filter(|registered| registered.signature != signature)
    {
        let (former, subject) = (&registered.signature, new.subject);
        let text = format!("the responder {former} on subject \"{subject}\" is replaced");
        report::message(Level::Notice, &text, "", "");
    }
}

/// Writes the row of a handler; `false` if there is a row that the role may not replace.
fn insert(new: &NewHandler<'_>, server: &str, signature: &str, role: u32) -> bool {
    // A subject has one responder, but any number of subscriptions.
    let (conflict, replaced) = match new.kind {
        HandlerKind::Subscription | HandlerKind::Stream => ("(kind, server, subject, signature)", ""),
        HandlerKind::Responder => (
            "(server, subject) WHERE kind = 'responder'",
            ", signature = excluded.signature, role = excluded.role, created = excluded.created",
        ),
    };
    let written = query(
        &format!(
            "INSERT INTO litmus_pgnats.handler (kind, server, subject, queue_group, signature, role, batch_size) \
             VALUES ($1, $2, $3, $4, $5, $6, nullif($7, 0)) ON CONFLICT {conflict} DO UPDATE \
             SET queue_group = excluded.queue_group, batch_size = excluded.batch_size{replaced} \
             WHERE handler.role = excluded.role OR pg_has_role(excluded.role, handler.role, 'USAGE') RETURNING kind"
        ),
        &[
            Text(new.kind.name()),
            Text(server),
            Text(new.subject),
            OptionalText(new.queue_group),
            Text(signature),
            Oid(role),
            Int8(new.batch_size.unwrap_or(0)),
        ],
    );
    !written.is_empty()
}

/// `(subject, fn)` of a subscription, `(subject)` of a responder.
fn unregister(call: &Call<'_>, kind: HandlerKind) -> Result<Value> {
    let subject = subject_argument(call)?;
    let function = match kind {
        HandlerKind::Responder => None,
        _ => Some(function_argument(call)?),
    };
    remove(kind, &subject, function.as_ref())
}

/// Removes the handlers of a kind on a subject that call `function` or, for `None`, any function. Fails if the role may
/// not remove one of them.
pub fn remove(kind: HandlerKind, subject: &str, function: Option<&Function>) -> Result<Value> {
    let (server, found) = changeable(kind, subject, function)?;
    let table = OwnTables::open()?;
    for registered in &found {
        table.delete(kind, &server, subject, &registered.signature);
    }
    drop(table);
    if found.is_empty() {
        report::message(Level::Notice, &none(kind, subject, function), "", "");
    }
    Ok(Value::Void)
}

/// The foreign server's name, and its handlers of a kind on a subject that call `function` or, for `None`, any function.
/// Fails if the role may not change one of them.
pub fn changeable(
    kind: HandlerKind,
    subject: &str,
    function: Option<&Function>,
) -> Result<(String, Vec<RegisteredHandler>)> {
    check_writable()?;
    let server = match server::choose().and_then(server::target) {
        Ok(target) => target.server_name,
        // The server may have been dropped; its handlers stay.
        Err(error) if error.kind == Kind::NoServer => parameters::server()
            .map(|name| encoding::utf8(&name))
            .or_else(|| OwnTables::open().ok()?.only_server())
            .ok_or(error)?,
        Err(error) => return Err(error),
    };
    call::ensure_runtime()?;
    let found = registered(kind, &server, subject, function)?;
    for registered in &found {
        check_privileges(registered, kind, subject)?;
    }
    Ok((server, found))
}

/// That there is no such handler.
pub fn none(kind: HandlerKind, subject: &str, function: Option<&Function>) -> String {
    let of = function.map_or_else(String::new, |function| {
        format!(" that calls {}", function.signature())
    });
    format!("there is no {}{of}", kind.describe(subject))
}

fn subject_argument<'a>(call: &Call<'a>) -> Result<std::borrow::Cow<'a, str>> {
    let subject = call.text(0)?.ok_or_else(|| null("subject"))?;
    subject::check_subscribe(&subject)?;
    Ok(subject)
}

/// Checks how many messages a call may have; `None` if nothing was said.
pub fn batch_size(size: Option<i32>) -> Result<Option<i64>> {
    if size.is_some_and(|size| !(1..=MAX_BATCH).contains(&size)) {
        return Err(Error::new(Kind::InvalidArgument, "batch_size is out of range")
            .detail(format!("It is between 1 and {MAX_BATCH}.")));
    }
    Ok(size.map(i64::from))
}

/// The second argument, the object id of a function; fails if it is NULL or the function does not exist.
pub fn function_argument(call: &Call<'_>) -> Result<Function> {
    function_of(call.oid(1).ok_or_else(|| null("function"))?)
}

/// The function with this object id; fails if it does not exist.
pub fn function_of(oid: u32) -> Result<Function> {
    Function::find(oid).ok_or_else(|| {
        Error::new(
            Kind::InvalidFunction,
            format!("function with OID {oid} does not exist"),
        )
        .hint("")
    })
}

/// Fails if a handler of this kind cannot call the function, or the current role may not.
pub fn check_function(function: &Function, kind: HandlerKind) -> Result<()> {
    check_signature(function, kind)?;
    check_execute(function)
}

fn check_signature(function: &Function, kind: HandlerKind) -> Result<()> {
    let returns = kind != HandlerKind::Responder || function.returns_replies();
    if function.is_temporary() {
        let message = format!(
            "temporary function {} cannot be a {}",
            function.signature(),
            kind.noun()
        );
        return Err(Error::new(Kind::InvalidFunction, message)
            .hint("It is there for this session alone; executors call functions in sessions of their own."));
    }
    let takes_many = kind != HandlerKind::Responder && function.takes_batches();
    if takes_many || (function.takes_messages() && returns) {
        return function.check_calls();
    }
    let what = kind.noun();
    let message = format!("function {} cannot be a {what}", function.signature());
    let detail = match kind {
        HandlerKind::Subscription | HandlerKind::Stream => {
            "Allowed is f(payload [, subject text [, reply_to text [, headers jsonb]]]), \
             where payload is bytea, text, json or jsonb, or f(litmus_pgnats.message[])."
        }
        HandlerKind::Responder => {
            "Allowed is f(payload [, subject text [, reply_to text [, headers jsonb]]]), \
             where payload is bytea, text, json or jsonb, and the result one of these too."
        }
    };
    Err(Error::new(Kind::InvalidFunction, message).detail(detail))
}

fn check_execute(function: &Function) -> Result<()> {
    let role = rights::current_role();
    if rights::has_execute(role, function.oid) {
        return Ok(());
    }
    let message = format!("permission denied for function {}", function.signature());
    let role = rights::role_name(role);
    Err(Error::new(Kind::PermissionDenied, message)
        .detail(format!("Role \"{role}\" has no EXECUTE privilege on it."))
        .hint("GRANT EXECUTE ON FUNCTION name TO role gives the right."))
}

/// Fails unless the role may replace or remove the handler: a handler runs with the rights of the role that has
/// registered it, so only a role with these rights may.
fn check_privileges(registered: &RegisteredHandler, kind: HandlerKind, subject: &str) -> Result<()> {
    check_owner(registered.role, &registered.signature, kind, subject)
}

/// Like [`check_privileges`], for a handler that `role` has registered.
pub fn check_owner(role: u32, signature: &str, kind: HandlerKind, subject: &str) -> Result<()> {
    if role == rights::current_role() || rights::has_privileges_of(role) {
        return Ok(());
    }
    let owner = rights::role_name(role);
    Err(not_yours(kind, subject).detail(format!(
        "Role \"{owner}\" has registered it, calling {signature}."
    )))
}

fn not_yours(kind: HandlerKind, subject: &str) -> Error {
    let message = format!("permission denied for the {}", kind.describe(subject));
    Error::new(Kind::PermissionDenied, message)
        .hint("Only a role that has the privileges of the one that has registered it may change it.")
}

fn check_writable() -> Result<()> {
    if state::is_in_recovery() {
        return Err(Error::new(
            Kind::Standby,
            "cannot change subscriptions and responders on a standby",
        ));
    }
    Ok(())
}

/// Fails if the role has its most handlers already: those of other roles need memory and the runtime worker's time too.
fn check_number(role: u32) -> Result<()> {
    let rows = query(
        "SELECT count(*) FROM litmus_pgnats.handler WHERE role = $1",
        &[Oid(role)],
    );
    let number = rows.into_iter().flatten().flatten().next();
    let number = number.and_then(|number| number.parse::<usize>().ok());
    let most = parameters::max_handlers();
    // count() always gives a number.
    if number.is_some_and(|number| number < most) {
        return Ok(());
    }
    let role = rights::role_name(role);
    Err(
        Error::new(Kind::TooManyHandlers, "too many subscriptions and responders")
            .detail(format!(
                "Role \"{role}\" has {most} in this database, which is the limit."
            ))
            .hint("litmus_pgnats.max_handlers sets how many a role may have in a database."),
    )
}
