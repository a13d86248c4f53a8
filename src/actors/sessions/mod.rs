//! The runtime's end of the control channel. In the actor thread.
//!
//! - `gateway.rs`: the actor that accepts sessions, `addresses.rs`: the actors that sessions talk to;
//! - `session.rs`: one session, `requests.rs`: what is done for each of its requests;
//! - `calls.rs`: requests that wait for an actor or for NATS, `objects.rs`: objects that stream through a session;
//! - `statistics.rs`: what the views show;
//! - `wakeup_coalescing.rs`: fewer wake-ups of the thread while many sessions publish.

mod addresses;
mod calls;
pub mod gateway;
mod objects;
mod requests;
mod session;
mod statistics;
pub mod wakeup_coalescing;

pub use addresses::Addresses;
