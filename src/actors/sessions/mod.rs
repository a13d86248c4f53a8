//! The runtime's end of the control channel. In the actor thread.
//!
//! - `gateway.rs`: the actor that accepts sessions, `addresses.rs`: whom these speak to;
//! - `session.rs`: one session, `requests.rs`: what it does for each of its requests;
//! - `calls.rs`: requests that wait for an answer of NATS;
//! - `statistics.rs`: what the views show;
//! - `wakeup_coalescing.rs`: when the thread rests while many sessions publish.

mod addresses;
mod calls;
pub mod gateway;
mod requests;
mod session;
mod statistics;
pub mod wakeup_coalescing;

pub use addresses::Addresses;
