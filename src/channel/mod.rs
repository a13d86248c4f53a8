//! The control channel: a Unix socket in the data directory between the runtime worker and every process that runs SQL.
//! Pure; used by the actor thread at one end and by the other processes' main threads at the other.
//!
//! - `message.rs`: the whole protocol, in one table of requests and replies;
//! - `target.rs`: which NATS connection is meant;
//! - `work.rs`: messages of executors, `outbox.rs`: messages of outbox relays, `worker_id.rs`: the numbers of both;
//! - `progress.rs`: how far a durable subscription has got, `marks.rs`: what tells one history of a stream from another;
//! - `statistics.rs`: what the runtime worker counts, as the rows of views;
//! - `frame.rs`: how a message becomes bytes;
//! - `server.rs`: the runtime worker's end, on tokio;
//! - `counts.rs`: counters of what passes;
//! - `client.rs`: the blocking end of backends and workers, without threads and tokio.

#![forbid(unsafe_code)]

pub mod client;
pub mod counts;
pub mod frame;
pub mod marks;
pub mod message;
pub mod outbox;
pub mod progress;
pub mod server;
pub mod statistics;
pub mod target;
pub mod work;
pub mod worker_id;

/// Path of the socket, relative to the data directory, which is the working directory of every process of PostgreSQL: a
/// Unix socket's path is limited to 108 bytes, and the data directory's own may be long. Base backups leave the
/// contents of this folder out.
pub const SOCKET_PATH: &str = "pg_stat_tmp/litmus_pgnats.sock";
