//! `nats_publish_{text,json,jsonb,binary}(subject, payload, reply, headers)`. Runs in backends and executors, on the
//! main thread.

use std::borrow::Cow;

use super::arguments::{binary_payload, jsonb_payload, subject_argument, text_payload};
use super::session::Outgoing;
use super::{call, on_commit, parameters, server};
use crate::error::Result;
use crate::nats::headers::Headers;
use crate::nats::{headers, subject};
use crate::pg::fmgr::{Call, Value, sql_function};

sql_function!(nats_publish_text, |call: &Call<'_>| publish(
    call,
    text_payload(call)?
));
sql_function!(nats_publish_jsonb, |call: &Call<'_>| publish(
    call,
    jsonb_payload(call)?
));
sql_function!(nats_publish_binary, |call: &Call<'_>| publish(
    call,
    binary_payload(call)?
));

fn publish(call: &Call<'_>, payload: Cow<'_, [u8]>) -> Result<Value> {
    let subject = subject_argument(call)?;
    let reply = call.text(2)?;
    if let Some(reply) = &reply {
        subject::check_reply(reply)?;
    }
    let headers = call
        .jsonb(3)?
        .map_or(Ok(Headers::new()), |json| headers::parse(&json))?;
    send(Outgoing {
        subject: subject.into_owned(),
        reply: reply.map(Cow::into_owned),
        headers,
        payload,
    })?;
    Ok(Value::Void)
}

/// Publishes through the foreign server that the call means: now or at the commit, as `litmus_pgnats.publish` says.
fn send(message: Outgoing<'_>) -> Result<()> {
    let key = server::choose()?;
    if parameters::publishes_on_commit() {
        call::check_message(key, &message)?;
        return on_commit::hold(key, message);
    }
    call::publish(key, message)
}
