//! NATS's own rules for subjects and headers, as pure functions.
//!
//! Backends check what they were given before it leaves; the actors use the same types. Pure.

#![forbid(unsafe_code)]

pub mod ack;
pub mod headers;
pub mod names;
pub mod subject;
