//! PostgreSQL's C API behind safe functions: the only place, with `bgw/memory.rs` and `bgw/threads.rs`, that has
//! unsafe code.
//!
//! Everything here runs on the main thread of a backend or a background worker; pgrx turns PostgreSQL's errors
//! into unwinding and back at each call.
//!
//! Interfaces to PostgreSQL:
//!
//! - `fmgr.rs`: arguments and results of SQL functions, and the macro that defines one;
//! - `report.rs`: errors and log messages, `sqlstates.rs`: SQLSTATE and hint of each kind of error;
//! - `encoding.rs`: text in the database's encoding;
//! - `wait.rs`: waiting for a socket with the latch and interrupts;
//! - `executor.rs`: what happens at the end of a statement and of a transaction;
//! - `utility.rs`: what happens before and after DROP DATABASE and its kin;
//! - `worker.rs`: what a background worker does on its main thread, `runtime_worker.rs`: how the runtime worker starts.
//!
//! What the catalogue and the server know:
//!
//! - `foreign_servers.rs`, `rights.rs`, `databases.rs`, `function.rs`, `own_objects.rs`, `state.rs`.
//!
//! What runs SQL:
//!
//! - `query.rs`: queries by SPI whose arguments and results are text, `heap.rs`: rows written straight into a table;
//! - `transaction.rs`: a worker's transactions, and whose rights and settings hold in them;
//! - `callback.rs`: calls of users' functions with messages, `batch.rs`: with many at once.

pub mod batch;
pub mod callback;
pub mod databases;
pub mod encoding;
pub mod executor;
pub mod fmgr;
pub mod foreign_servers;
pub mod function;
pub mod heap;
pub mod own_objects;
pub mod query;
pub mod report;
pub mod rights;
pub mod runtime_worker;
pub mod sqlstates;
pub mod state;
pub mod transaction;
pub mod utility;
pub mod wait;
pub mod worker;
