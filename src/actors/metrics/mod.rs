//! What is counted, as plain structs. In the actor thread.
//!
//! - `connection_stats.rs`: what a connection has been through, with `traffic.rs`;
//! - `exec_times.rs`: how long functions of handlers take;
//! - `transfers.rs`: objects on their way;
//! - `in_flight.rs`: calls that wait for their answer;
//! - `counters.rs`: the control channel, and what no actor counts.

pub(crate) mod connection_stats;
pub(crate) mod counters;
pub mod exec_times;
pub(crate) mod in_flight;
pub(crate) mod traffic;
pub(crate) mod transfers;
