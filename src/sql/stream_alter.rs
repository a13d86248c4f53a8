//! `nats_alter_subscription_stream`: changes a durable subscription that is there, its function too, and leaves its place
//! in the stream. Runs in backends, on the main thread.

use super::handlers::{self, Written};
use super::own_tables::OwnTables;
use super::stream_control::Subscription;
use super::stream_options::StreamOptions;
use crate::channel::work::HandlerKind;
use crate::error::{Error, Kind, Result};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::function::Function;
use crate::pg::query::Argument::Text;
use crate::pg::query::query;
use crate::pg::report::{self, Level};

sql_function!(nats_alter_subscription_stream, alter);

/// `(stream, fn, new_fn, filter_subjects, batch_size, ack_wait, max_deliveries, backoff, stop_on_failure, durable,
/// domain, name)`.
fn alter(call: &Call<'_>) -> Result<Value> {
    let options = StreamOptions::read(call, 3, 4)?;
    let mut subscription = Subscription::of(call)?;
    if let Some(new) = call.oid(2) {
        let function = handlers::function_of(new)?;
        drop(subscription.table);
        set_function(
            &subscription.server,
            &subscription.stream,
            &subscription.signature,
            &function,
        )?;
        subscription.signature = function.signature();
        subscription.table = OwnTables::open()?;
    }
    let Subscription {
        server,
        stream,
        signature,
        table,
    } = subscription;
    let written = Written {
        server,
        signature,
        table,
    };
    options.check_consumer(&stream, &written)?;
    options.check_name(&stream, &written)?;
    options.write(&stream, &written);
    written
        .table
        .begin_anew(&written.server, &stream, &written.signature);
    Ok(Value::Void)
}

/// Gives the subscription of this name, if there is one, to a function, whatever function it has called before.
pub fn hand_over(stream: &str, name: &str, function: &Function) -> Result<()> {
    let (server, _) = handlers::changeable(HandlerKind::Stream, stream, Some(function))?;
    let table = OwnTables::open()?;
    let rows = query(
        "SELECT d.signature, h.role::oid FROM litmus_pgnats.handler_stream d \
         JOIN litmus_pgnats.handler h USING (kind, server, subject, signature) \
         WHERE (d.server, d.subject, d.name) = ($1, $2, $3)",
        &[Text(&server), Text(stream), Text(name)],
    );
    drop(table);
    let row = rows.into_iter().next().map(<[Option<String>; 2]>::try_from);
    let Some(Ok([Some(signature), Some(role)])) = row else {
        return Ok(());
    };
    handlers::check_owner(role.parse().unwrap_or(0), &signature, HandlerKind::Stream, stream)?;
    if signature == function.signature() {
        return Ok(());
    }
    set_function(&server, stream, &signature, function)?;
    let text = format!(
        "the durable subscription \"{name}\" calls {} now",
        function.signature()
    );
    report::message(Level::Notice, &text, "It goes on where it is.", "");
    Ok(())
}

/// Has a subscription call another function. Fails if that does not fit, or has a subscription of the stream already.
fn set_function(server: &str, stream: &str, signature: &str, function: &Function) -> Result<()> {
    handlers::check_function(function, HandlerKind::Stream)?;
    let new = function.signature();
    if new == signature {
        return Ok(());
    }
    let table = OwnTables::open()?;
    if !table
        .registered(HandlerKind::Stream, server, stream, Some(function))
        .is_empty()
    {
        let text = format!("stream \"{stream}\" has a durable subscription that calls {new} already");
        return Err(
            Error::new(Kind::InvalidName, text).hint("Unsubscribe that one, or give another function.")
        );
    }
    let key = [Text(server), Text(stream), Text(signature)];
    query(
        "UPDATE litmus_pgnats.handler SET signature = $4 \
         WHERE (kind, server, subject, signature) = ('stream', $1, $2, $3)",
        &[&key[..], &[Text(&new)]].concat(),
    );
    let server_oid = query(
        "SELECT oid FROM pg_foreign_server WHERE srvname = $1",
        &[Text(server)],
    );
    let server_oid = server_oid.into_iter().flatten().flatten().next();
    let server_oid = server_oid.and_then(|oid| oid.parse().ok()).unwrap_or(0);
    table.bind(
        [HandlerKind::Stream.name(), server, stream, &new],
        function.oid,
        server_oid,
    );
    table.begin_anew(server, stream, &new);
    Ok(())
}
