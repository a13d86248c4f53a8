//! NATS's own rules, as pure functions. Backends check what they were given before it leaves; the actors use the same
//! types. Pure.
//!
//! - `subject.rs`: which subjects may be published or subscribed to;
//! - `headers.rs`: message headers, from and to JSON;
//! - `raw_headers.rs`: header blocks that a client library cannot read;
//! - `names.rs`: names of buckets, keys, object stores, streams, consumers and domains;
//! - `ack.rs`: what the reply subject of a JetStream message says.

#![forbid(unsafe_code)]

pub mod ack;
pub mod headers;
pub mod names;
pub mod raw_headers;
pub mod subject;
