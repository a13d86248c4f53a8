//! What is counted, as plain structs. In the actor thread.
//!
//! - `connection_stats.rs`: the statistics of each connection; `traffic.rs`: what a connection's clients have carried;
//! - `exec_times.rs`: how long functions of handlers take;
//! - `transfers.rs`: transfers of objects;
//! - `in_flight.rs`: calls that wait for their answer;
//! - `counters.rs`: all that is read without asking an actor, the control channel's counts included.

pub(crate) mod connection_stats;
pub(crate) mod counters;
pub mod exec_times;
pub(crate) mod in_flight;
pub(crate) mod traffic;
pub(crate) mod transfers;
