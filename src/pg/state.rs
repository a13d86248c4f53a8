//! The state of the server and of the running transaction. Runs wherever PostgreSQL's main thread is.

use pgrx::pg_sys;

/// What tells this PostgreSQL cluster from all others, as a number that SQL can hold.
pub fn system_identifier() -> i64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetSystemIdentifier() }.cast_signed()
}

/// Whether the server is a standby.
pub fn is_in_recovery() -> bool {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether the transaction has changed anything yet.
pub fn transaction_has_written() -> bool {
    // SAFETY: reads the state of the transaction.
    unsafe { pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId }
}

/// The transaction id that is assigned next: every transaction that has one by now has a lower one. A snapshot's xmax does
/// not tell that, it is one past the highest that has ended.
pub fn next_transaction() -> u64 {
    // SAFETY: reads shared memory under PostgreSQL's own lock.
    unsafe { pg_sys::ReadNextFullTransactionId() }.value
}
