//! Object stores: `nats_put_file`, `nats_get_file`, `nats_delete_file`, `nats_get_file_info` and `nats_get_file_list`.
//! Runs in backends and executors, on the main thread.

use super::answers::{done, rows};
use super::arguments::{domain_argument, null};
use super::call;
use super::session::unexpected_reply;
use crate::channel::message::{JetStreamCall, Reply, StoreCall};
use crate::error::Result;
use crate::nats::names;
use crate::pg::fmgr::{BytesBuilder, Call, Value, sql_function};

// (store, name, content, domain)
sql_function!(nats_put_file, put);
// (store, name, domain)
sql_function!(nats_get_file, get);
sql_function!(nats_delete_file, |call: &Call<'_>| {
    let delete = in_store(call, StoreCall::Delete { name: name(call)? })?;
    call::jetstream(domain_argument(call, 2)?, delete, b"").and_then(done)
});
sql_function!(nats_get_file_info, |call: &Call<'_>| {
    let info = in_store(call, StoreCall::Info { name: name(call)? })?;
    match call::jetstream(domain_argument(call, 2)?, info, b"")?.message {
        Reply::Rows(mut rows) => rows.pop().map(Value::Row).ok_or_else(unexpected_reply),
        _ => Err(unexpected_reply()),
    }
});
// (store, domain)
sql_function!(nats_get_file_list, |call: &Call<'_>| {
    call::jetstream(domain_argument(call, 1)?, in_store(call, StoreCall::List)?, b"").and_then(rows)
});

fn in_store(call: &Call<'_>, ask: StoreCall) -> Result<JetStreamCall> {
    let store = call.text(0)?.ok_or_else(|| null("store"))?.into_owned();
    names::check_store(&store)?;
    Ok(JetStreamCall::Store { store, call: ask })
}

fn name(call: &Call<'_>) -> Result<String> {
    let name = call.text(1)?.ok_or_else(|| null("name"))?.into_owned();
    names::check_object(&name)?;
    Ok(name)
}

fn put(call: &Call<'_>) -> Result<Value> {
    let content = call.bytes(2).ok_or_else(|| null("content"))?;
    let put = in_store(
        call,
        StoreCall::Put {
            name: name(call)?,
            size: content.len() as u64,
        },
    )?;
    call::stream(domain_argument(call, 3)?, put, Some(content), |_| {
        Err(unexpected_reply())
    })
    .and_then(done)
}

/// The content, once the runtime worker has verified its digest. An error before that drops all parts.
fn get(call: &Call<'_>) -> Result<Value> {
    let get = in_store(call, StoreCall::Get { name: name(call)? })?;
    let mut content: Option<BytesBuilder> = None;
    let last = call::stream(domain_argument(call, 2)?, get, None, |part| {
        match (part.message, &mut content) {
            (Reply::Size(size), empty @ None) => {
                *empty = Some(BytesBuilder::new(
                    usize::try_from(size).map_err(|_| unexpected_reply())?,
                ));
                Ok(())
            }
            (Reply::Part, Some(content)) => content
                .push(&part.body)
                .then_some(())
                .ok_or_else(unexpected_reply),
            _ => Err(unexpected_reply()),
        }
    })?;
    match (last.message, content) {
        (Reply::Done, Some(content)) if content.is_full() => Ok(Value::Built(content)),
        _ => Err(unexpected_reply()),
    }
}
