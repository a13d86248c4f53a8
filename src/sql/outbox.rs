//! `nats_publish_*_outbox`: messages that are rows of the transaction, and are delivered to JetStream after its commit.
//! Runs in backends and executors, on the main thread.
//!
//! The rows of one transaction and one partition share a batch. Each batch gets its number just before the commit, so
//! that the numbers follow the order of the commits and not that of the rows; an outbox relay reads the messages by
//! these numbers.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

use super::arguments::{binary_payload, jsonb_payload, subject_argument, text_payload};
use super::{call, server, transaction_end};
use crate::channel::message::Request;
use crate::channel::outbox::Partition;
use crate::error::{Error, Kind, Result};
use crate::nats::{headers, names};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::heap::Column;
use crate::pg::report::Level;
use crate::pg::{databases, heap, report, rights, state};

sql_function!(nats_publish_text_outbox, |call: &Call<'_>| publish(
    call,
    text_payload(call)?
));
sql_function!(nats_publish_jsonb_outbox, |call: &Call<'_>| publish(
    call,
    jsonb_payload(call)?
));
sql_function!(nats_publish_binary_outbox, |call: &Call<'_>| publish(
    call,
    binary_payload(call)?
));

/// Largest headers and payload together, in bytes: NATS's own limit for a message. A server or a stream may allow less,
/// which shows at the delivery.
const MAX_SIZE: usize = 64 * 1024 * 1024;

/// The name of the command in the error of a read-only transaction.
const COMMAND: &CStr = c"nats_publish_*_outbox";

thread_local! {
    /// The batches of the running transaction, by partition.
    static BATCHES: RefCell<HashMap<Partition, i64>> = RefCell::default();
}

/// `(subject, payload, headers, domain)`.
fn publish(call: &Call<'_>, payload: Cow<'_, [u8]>) -> Result<Value> {
    let subject = subject_argument(call)?;
    let headers = call.jsonb(2)?;
    let parsed = headers.as_deref().map_or(Ok(Vec::new()), headers::parse)?;
    let domain = call.text(3)?;
    domain.as_deref().map_or(Ok(()), names::check_domain)?;
    let size = headers::wire_len(&parsed) + payload.len();
    if size > MAX_SIZE {
        return Err(
            Error::new(Kind::PayloadTooLarge, "message is larger than NATS allows").detail(format!(
                "Headers and payload have {size} bytes; the limit is {MAX_SIZE}."
            )),
        );
    }
    let server = server::target(server::choose()?)?.server_name;
    let role = rights::current_role();
    if state::is_in_recovery() {
        return Err(Error::new(
            Kind::Standby,
            "cannot write to the outbox on a standby",
        ));
    }
    let message = NewMessage {
        subject: &subject,
        payload: &payload,
        headers: headers.as_deref(),
        domain: domain.as_deref(),
        id: None,
    };
    put(Partition { server, role }, &message).map(Value::Int8)
}

/// A message for the outbox.
pub struct NewMessage<'a> {
    pub subject: &'a str,
    pub payload: &'a [u8],
    pub headers: Option<&'a str>,
    pub domain: Option<&'a str>,
    /// The `Nats-Msg-Id` of a message that was in the outbox before; `None` for a new message.
    pub id: Option<&'a str>,
}

/// Writes a message into the outbox; returns its number there. Fails in a read-only transaction, and without the
/// extension.
pub fn put(partition: Partition, message: &NewMessage<'_>) -> Result<i64> {
    let batch = BATCHES.with_borrow(|batches| batches.get(&partition).copied());
    if batch.is_none() {
        // Connects now, so that the commit need not; without preloading, this starts the runtime worker. A runtime
        // worker that starts later finds the message by itself.
        match call::ensure_runtime() {
            Err(error) if error.kind == Kind::Interrupted => return Err(error),
            Err(error) => {
                let text = format!("the message stays in the outbox for now: {}", error.message);
                report::message(Level::Warning, &text, "", "");
            }
            Ok(()) => {}
        }
    }
    let batch_or_new = match batch {
        Some(batch) => batch,
        None => heap::next(c"outbox_id")?,
    };
    let id = heap::next(c"outbox_id")?;
    let text = |text: Option<_>| text.map_or(Column::Null, Column::Text);
    heap::insert(
        c"outbox",
        &[
            Column::Int8(batch_or_new),
            Column::Int8(id),
            Column::Text(message.subject),
            Column::Bytes(message.payload),
            message.headers.map_or(Column::Null, Column::Json),
            text(message.domain),
            message.id.map_or(Column::NewUuid, Column::Uuid),
            Column::Now,
        ],
        COMMAND,
    )?;
    if batch.is_none() {
        BATCHES.with_borrow_mut(|batches| batches.insert(partition, batch_or_new));
    }
    Ok(id)
}

/// Gives the transaction's batches their numbers.
pub fn before_commit() -> Result<()> {
    let batches = BATCHES.with_borrow(HashMap::clone);
    if batches.is_empty() {
        return Ok(());
    }
    for (partition, batch) in &batches {
        let number = match heap::next(c"outbox_number") {
            Ok(number) => number,
            // The transaction has dropped the extension, and the messages with it.
            Err(error) if error.kind == Kind::Unsupported => return Ok(()),
            Err(error) => return Err(error),
        };
        let row = [
            Column::Int8(number),
            Column::Int8(*batch),
            Column::Text(&partition.server),
            Column::Oid(partition.role),
        ];
        heap::insert(c"outbox_batch", &row, COMMAND)?;
    }
    Ok(())
}

/// Refuses to prepare a transaction that has written to the outbox: another session may commit it at any time.
pub fn before_prepare() -> Result<()> {
    if BATCHES.with_borrow(HashMap::is_empty) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsupported,
        "cannot PREPARE a transaction that has written to the outbox",
    ))
}

/// Has the runtime worker deliver the outbox of this database.
pub fn committed() {
    if !BATCHES.take().is_empty() {
        transaction_end::announce(&Request::Outbox {
            database: databases::database_oid(),
        });
    }
}

pub fn aborted() {
    BATCHES.take();
}
