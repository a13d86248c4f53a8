//! `nats_subscribe_stream` and `nats_unsubscribe_stream`: durable subscriptions, which are handlers with a row of their
//! own in `litmus_pgnats.handler_stream`. Runs in backends, on the main thread.

use super::handlers::{NewHandler, function_argument};
use super::own_tables::{CONSUMER, OwnTables, consumer_arguments};
use super::stream_options::{Start, StreamOptions, stream_argument};
use super::{handlers, stream_alter};
use crate::channel::work::HandlerKind;
use crate::error::Result;
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::function::Function;
use crate::pg::query::Argument::Text;
use crate::pg::query::query;
use crate::pg::report::{self, Level};

sql_function!(nats_subscribe_stream, subscribe);
sql_function!(nats_unsubscribe_stream, unsubscribe);

/// `(stream, fn, filter_subjects, deliver, start_sequence, start_time, batch_size, ack_wait, max_deliveries, backoff,
/// stop_on_failure, durable, domain, name)`.
fn subscribe(call: &Call<'_>) -> Result<Value> {
    let stream = stream_argument(call)?;
    let function = function_argument(call)?;
    let mut options = StreamOptions::read(call, 2, 6)?;
    options.start = Start::read(call)?;
    if let Some(name) = &options.name {
        stream_alter::hand_over(&stream, name, &function)?;
    }
    let written = handlers::write(&NewHandler {
        kind: HandlerKind::Stream,
        subject: &stream,
        queue_group: None,
        // That of a durable subscription is in its own row.
        batch_size: None,
        function: &function,
    })?;
    options.check_consumer(&stream, &written)?;
    let is_new = options.write(&stream, &written);
    written.table.go_on(&written.server, &stream, &written.signature);
    if !is_new && options.start.deliver.is_some() {
        let text = format!("the durable subscription of stream \"{stream}\" goes on where it is");
        let detail = "deliver, start_sequence and start_time are for a new subscription.";
        report::message(Level::Notice, &text, detail, "");
    }
    Ok(Value::Void)
}

/// `(stream, fn, keep_consumer)`.
fn unsubscribe(call: &Call<'_>) -> Result<Value> {
    let stream = stream_argument(call)?;
    let function = function_argument(call)?;
    if call.boolean(2).unwrap_or(false) {
        keep_consumer(&stream, &function)?;
    }
    handlers::remove(HandlerKind::Stream, &stream, Some(&function))
}

/// Has the consumer of a subscription stay when the subscription is removed. Fails if the role may not remove that.
fn keep_consumer(stream: &str, function: &Function) -> Result<()> {
    let (server, found) = handlers::changeable(HandlerKind::Stream, stream, Some(function))?;
    let _table = OwnTables::open()?;
    for registered in found {
        let key = [Text(&server), Text(stream), Text(&registered.signature)];
        query(
            &format!(
                "DELETE FROM litmus_pgnats.stream_consumer c USING litmus_pgnats.handler_stream d \
                 WHERE (d.server, d.subject, d.signature) = ($4, $5, $6) \
                 AND (c.server, c.stream, c.domain) = (d.server, d.subject, coalesce(d.domain, '')) \
                 AND c.consumer = {CONSUMER}"
            ),
            &[&consumer_arguments()[..], &key[..]].concat(),
        );
    }
    Ok(())
}
