//! PostgreSQL's C API behind safe functions: the only place, with `bgw/memory.rs` and `bgw/threads.rs`, that has
//! unsafe code.
//!
//! Everything here runs on the main thread of a backend or a background worker; pgrx turns PostgreSQL's errors
//! into unwinding and back at each call.
//!
//! - `fmgr.rs`: arguments and results of SQL functions, and the macro that defines one;
//! - `report.rs`: errors and log messages;
//! - `wait.rs`: waiting for a socket with the latch and interrupts;
//! - `catalog.rs`: foreign servers, user mappings and rights;
//! - `heap.rs`: rows written straight into a table;
//! - `batch.rs`: calls of users' functions with many messages;
//! - `query.rs`: queries by SPI whose arguments and results are text;
//! - `transaction.rs`: a worker's transactions, and whose rights and settings hold in them;
//! - `callback.rs`: calls of users' functions with messages;
//! - `utility.rs`: what happens before and after DROP DATABASE and its kin;
//! - `executor.rs`: what happens at the end of a statement and of a transaction;
//! - `worker.rs`: what a background worker does on its main thread.

pub mod batch;
pub mod callback;
pub mod catalog;
pub mod executor;
pub mod fmgr;
pub mod heap;
pub mod query;
pub mod report;
pub mod transaction;
pub mod utility;
pub mod wait;
pub mod worker;
