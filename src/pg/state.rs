//! The state of the server and of the running transaction. Runs wherever PostgreSQL's code runs, on the main thread.

use pgrx::pg_sys;

/// The system identifier of this PostgreSQL cluster, as a bigint.
pub fn system_identifier() -> i64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }.cast_signed()
}

/// Whether the server is a standby.
pub fn is_in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether the transaction has a transaction id, which it gets when it first changes something.
pub fn transaction_has_written() -> bool {
    // SAFETY: reads the state of the transaction.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// The transaction id that is assigned next: every transaction that has an id by now has a lower one. A snapshot's xmax
/// will not do, because it is one past the highest id of those that have ended.
pub fn next_transaction() -> u64 {
    // SAFETY: reads shared memory under PostgreSQL's own lock.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}
