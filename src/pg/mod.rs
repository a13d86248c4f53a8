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
//! - `wait.rs`: waiting for a socket together with the latch and interrupts;
//! - `executor.rs`: hooks into the ends of statements, transactions and subtransactions;
//! - `utility.rs`: hooks into DROP DATABASE and similar statements;
//! - `worker.rs`: background workers, how they are started and what they do, `runtime_worker.rs`: how the runtime
//!   worker starts.
//!
//! The catalogue and the server:
//!
//! - `foreign_servers.rs`: foreign servers and user mappings, `rights.rs`: roles and what they may do;
//! - `databases.rs`: databases and their settings, `function.rs`: functions that messages may call;
//! - `own_objects.rs`: the extension's own objects, `state.rs`: the state of the server and of the transaction.
//!
//! What runs SQL:
//!
//! - `query.rs`: queries through SPI, `heap.rs`: rows written straight into a table;
//! - `transaction.rs`: transactions of workers, and the role and the settings that hold in a transaction;
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
