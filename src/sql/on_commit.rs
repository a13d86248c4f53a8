//! Publishes that wait for the commit of their transaction, and are never sent if the transaction or the savepoint
//! around them is rolled back (`litmus_pgnats.publish = on_commit`). Runs in backends and executors, on the main
//! thread.
//!
//! Before the commit, while an error can still prevent it, the messages are handed to the runtime worker, which holds
//! them; after the commit, a `Release` has them sent.

use std::cell::RefCell;

use super::session::Outgoing;
use super::{call, parameters, transaction_end};
use crate::channel::message::Request;
use crate::channel::target::Key;
use crate::error::{Error, Kind, Result};
use crate::nats::headers;
use crate::pg::report::{self, Level};

/// What a held message takes besides its subject, headers and payload, in bytes; an estimate.
const OVERHEAD: usize = 100;

#[derive(Default)]
struct HeldPublishes {
    messages: Vec<(Key, Outgoing<'static>)>,
    bytes: usize,
    /// The runtime worker has the messages, or some of them.
    handed_over: bool,
}

thread_local! {
    static HELD: RefCell<HeldPublishes> = RefCell::default();
}

/// Has a message wait for the commit. Fails if the messages that wait would exceed `litmus_pgnats.on_commit_size`.
pub fn hold(key: Key, message: Outgoing<'_>) -> Result<()> {
    HELD.with_borrow_mut(|held| {
        let size = size(&message);
        let limit = parameters::on_commit_size();
        if held.bytes + size > limit {
            return Err(Error::new(
                Kind::TransactionTooLarge,
                "the transaction publishes more than may wait for its commit",
            )
            .detail(format!("The limit is {} kB.", limit / 1024)));
        }
        held.bytes += size;
        held.messages.push((key, message.into_owned()));
        Ok(())
    })
}

fn size(message: &Outgoing<'_>) -> usize {
    let reply = message.reply.as_ref().map_or(0, String::len);
    OVERHEAD + message.subject.len() + reply + headers::wire_len(&message.headers) + message.payload.len()
}

/// The number of messages that wait, which a savepoint remembers.
pub fn mark() -> usize {
    HELD.with_borrow(|held| held.messages.len())
}

/// Forgets the messages that were published since the mark.
pub fn roll_back_to(mark: usize) {
    HELD.with_borrow_mut(|held| {
        for (_, message) in held.messages.drain(mark.min(held.messages.len())..) {
            held.bytes = held.bytes.saturating_sub(size(&message));
        }
    });
}

/// Hands the messages that wait to the runtime worker; an error prevents the commit.
pub fn before_commit() -> Result<()> {
    let messages = HELD.with_borrow_mut(|held| {
        held.handed_over = !held.messages.is_empty();
        held.bytes = 0;
        std::mem::take(&mut held.messages)
    });
    if messages.is_empty() {
        return Ok(());
    }
    call::hand_over(messages)
}

/// Refuses to prepare a transaction with messages that wait: another session may commit it, or the same one after a
/// restart.
pub fn before_prepare() -> Result<()> {
    if mark() == 0 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unsupported,
        "cannot PREPARE a transaction that has published messages to be sent at its commit",
    ))
}

/// Has the runtime worker send the messages.
pub fn committed() {
    if HELD.take().handed_over && !transaction_end::post(&Request::Release) {
        let text = "messages that the transaction has published are lost: the litmus_pgnats runtime worker has ended";
        report::message(Level::Warning, text, "", "");
    }
}

/// Forgets the messages; the runtime worker drops those that it has.
pub fn aborted() {
    if HELD.take().handed_over {
        transaction_end::post(&Request::Discard);
    }
}
