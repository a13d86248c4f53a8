//! NATS's own rules, as pure functions. Backends check what they were given before it leaves; the actors use the same
//! types. Pure.
//!
//! - `subject.rs`: which subjects may be published or subscribed to;
//! - `headers.rs`: message headers, from and to JSON;
//! - `raw_headers.rs`: header blocks as they come, which may not be as they should be;
//! - `names.rs`: names of buckets, keys, object stores, streams, consumers and domains;
//! - `ack.rs`: what the reply subject of a JetStream message says; `jetstream_errors.rs`: what JetStream's error codes
//!   mean;
//! - `wire/`: NATS's client protocol; `message.rs`: messages that come and go; `server_error.rs`: what a server's errors
//!   mean;
//! - `credentials.rs`: what a `.creds` file holds.

#![forbid(unsafe_code)]

pub mod ack;
pub mod credentials;
pub mod headers;
pub mod jetstream_errors;
pub mod message;
pub mod names;
pub mod raw_headers;
pub mod server_error;
pub mod subject;
pub mod wire;
