//! NATS's client protocol: lines and payloads, read and written. Pure.
//!
//! - `read.rs`: what a server says, taken from the bytes that have come;
//! - `write.rs`: what a client says, appended to the bytes that go out;
//! - `server_info.rs`: what a server says of itself.

mod read;
mod server_info;
mod write;

pub use read::{Malformed, ServerOp, read};
pub use server_info::ServerInfo;
pub use write::{Connect, PING, PONG, connect, publish, size, subscribe, unsubscribe};
