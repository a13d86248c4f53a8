//! Key-value buckets: `nats_put_T`, `nats_create_T`, `nats_update_T`, `nats_get_T`, `nats_delete_value`,
//! `nats_purge_value`, `nats_get_entry`, `nats_get_history`, `nats_list_keys`, `nats_create_bucket` and
//! `nats_delete_bucket`. Runs in backends and executors, on the main thread.

use std::borrow::Cow;

use bytes::Bytes;

use super::answers::{done, number, rows};
use super::arguments::{bytes_of, domain_argument, null};
use super::session::unexpected_reply;
use super::{call, request};
use crate::channel::frame::Frame;
use crate::channel::message::{BucketCall, BucketConfig, Expect, JetStreamCall, Reply};
use crate::error::{Error, Kind, Result};
use crate::nats::names;
use crate::pg::fmgr::{Call, Value, sql_function};

// (bucket, key, value, domain)
sql_function!(nats_put_text, |call: &Call<'_>| put(
    call,
    text(call)?,
    Expect::Anything,
    3
));
sql_function!(nats_put_jsonb, |call: &Call<'_>| put(
    call,
    jsonb(call)?,
    Expect::Anything,
    3
));
sql_function!(nats_put_binary, |call: &Call<'_>| put(
    call,
    binary(call)?,
    Expect::Anything,
    3
));
sql_function!(nats_create_text, |call: &Call<'_>| put(
    call,
    text(call)?,
    Expect::Absent,
    3
));
sql_function!(nats_create_jsonb, |call: &Call<'_>| put(
    call,
    jsonb(call)?,
    Expect::Absent,
    3
));
sql_function!(nats_create_binary, |call: &Call<'_>| put(
    call,
    binary(call)?,
    Expect::Absent,
    3
));
// (bucket, key, value, revision, domain)
sql_function!(nats_update_text, |call: &Call<'_>| put(
    call,
    text(call)?,
    revision(call)?,
    4
));
sql_function!(nats_update_jsonb, |call: &Call<'_>| put(
    call,
    jsonb(call)?,
    revision(call)?,
    4
));
sql_function!(nats_update_binary, |call: &Call<'_>| put(
    call,
    binary(call)?,
    revision(call)?,
    4
));
// (bucket, key, domain)
sql_function!(nats_get_text, |call: &Call<'_>| get(call, |value| request::text(
    value
)
.map(Value::Text)));
sql_function!(nats_get_json, |call: &Call<'_>| get(call, |value| request::json(
    value
)
.map(Value::Text)));
sql_function!(nats_get_jsonb, |call: &Call<'_>| get(call, |value| {
    request::json(value).map(Value::Jsonb)
}));
sql_function!(nats_get_binary, |call: &Call<'_>| get(call, |value| Ok(
    Value::Bytes(value)
)));
sql_function!(nats_delete_value, |call: &Call<'_>| {
    in_key(call, |key| BucketCall::Delete { key, purge: false }).and_then(done)
});
sql_function!(nats_purge_value, |call: &Call<'_>| {
    in_key(call, |key| BucketCall::Delete { key, purge: true }).and_then(done)
});
sql_function!(nats_get_entry, |call: &Call<'_>| {
    in_key(call, |key| BucketCall::Entries { key, history: false }).and_then(rows)
});
sql_function!(nats_get_history, |call: &Call<'_>| {
    in_key(call, |key| BucketCall::Entries { key, history: true }).and_then(rows)
});
// (bucket, domain)
sql_function!(nats_list_keys, |call: &Call<'_>| in_bucket(
    call,
    BucketCall::Keys,
    b"",
    1
)
.and_then(rows));
sql_function!(nats_delete_bucket, |call: &Call<'_>| in_bucket(
    call,
    BucketCall::Drop,
    b"",
    1
)
.and_then(done));
// (bucket, history, ttl, replicas, storage, domain)
sql_function!(nats_create_bucket, create_bucket);

fn in_bucket(call: &Call<'_>, ask: BucketCall, value: &[u8], domain: usize) -> Result<Frame<Reply>> {
    let bucket = call.text(0)?.ok_or_else(|| null("bucket"))?.into_owned();
    names::check_bucket(&bucket)?;
    call::jetstream(
        domain_argument(call, domain)?,
        JetStreamCall::Bucket { bucket, call: ask },
        value,
    )
}

fn key(call: &Call<'_>) -> Result<String> {
    let key = call.text(1)?.ok_or_else(|| null("key"))?.into_owned();
    names::check_key(&key)?;
    Ok(key)
}

fn in_key(call: &Call<'_>, ask: impl FnOnce(String) -> BucketCall) -> Result<Frame<Reply>> {
    in_bucket(call, ask(key(call)?), b"", 2)
}

fn text<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.text(2)?.map(bytes_of).ok_or_else(|| null("value"))
}

fn jsonb<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.jsonb(2)?.map(bytes_of).ok_or_else(|| null("value"))
}

fn binary<'a>(call: &Call<'a>) -> Result<Cow<'a, [u8]>> {
    call.bytes(2).map(Cow::Borrowed).ok_or_else(|| null("value"))
}

fn revision(call: &Call<'_>) -> Result<Expect> {
    let revision = call.int8(3).ok_or_else(|| null("revision"))?;
    let invalid = || {
        Error::new(Kind::InvalidArgument, "revision must be at least 1").detail(format!("It is {revision}."))
    };
    u64::try_from(revision)
        .ok()
        .filter(|revision| *revision > 0)
        .map(Expect::Revision)
        .ok_or_else(invalid)
}

fn put(call: &Call<'_>, value: Cow<'_, [u8]>, expect: Expect, domain: usize) -> Result<Value> {
    in_bucket(
        call,
        BucketCall::Put {
            key: key(call)?,
            expect,
        },
        &value,
        domain,
    )
    .and_then(number)
}

/// The value of a key as `read` converts it, NULL if the key has none. An error about the value names the key.
fn get(call: &Call<'_>, read: fn(Bytes) -> Result<Value>) -> Result<Value> {
    let reply = in_key(call, |key| BucketCall::Get { key })?;
    match reply.message {
        Reply::Absent => Ok(Value::Null),
        Reply::Found => read(reply.body).map_err(|error| {
            let name = call.text(1).ok().flatten().unwrap_or_default();
            let message = error
                .message
                .replacen("reply", &format!("value of key \"{name}\""), 1);
            Error {
                message,
                hint: Some("nats_get_binary returns any value as it is.".into()),
                ..error
            }
        }),
        _ => Err(unexpected_reply()),
    }
}

/// A ttl in milliseconds. JetStream counts it in nanoseconds of 64 bits, and takes no shorter one than 100 ms but 0, which
/// is none.
fn ttl_ms(us: i64) -> Result<u64> {
    const LEAST_US: i64 = 100_000;
    const MOST_US: i64 = i64::MAX / 1000;
    match us {
        0 | LEAST_US..=MOST_US => Ok(us.unsigned_abs() / 1000),
        _ => Err(Error::new(Kind::InvalidArgument, "ttl is out of range")
            .detail("It is 0, for none, or between 100 milliseconds and 292 years.")),
    }
}

fn create_bucket(call: &Call<'_>) -> Result<Value> {
    let invalid = |what: &str| Error::new(Kind::InvalidArgument, format!("{what} is out of range"));
    let small = |index, what: &str, most: i32| {
        let number = call.int4(index).ok_or_else(|| null(what))?;
        let valid = Some(number)
            .filter(|number| (1..=most).contains(number))
            .and_then(|number| u8::try_from(number).ok());
        valid.ok_or_else(|| invalid(what).detail(format!("It is {number}; from 1 to {most} are allowed.")))
    };
    let ttl_ms = ttl_ms(call.interval_us(2).unwrap_or(0))?;
    let memory = match call.text(4)?.as_deref() {
        Some("file") => false,
        Some("memory") => true,
        Some(other) => {
            let detail = format!("It is \"{other}\"; \"file\" and \"memory\" are allowed.");
            return Err(Error::new(Kind::InvalidArgument, "storage is unknown").detail(detail));
        }
        None => return Err(null("storage")),
    };
    let config = BucketConfig {
        history: small(1, "history", 64)?,
        ttl_ms,
        replicas: small(3, "replicas", 5)?,
        memory,
    };
    in_bucket(call, BucketCall::Create(config), b"", 5).and_then(done)
}
