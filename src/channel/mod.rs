//! The control channel: a Unix socket in the data directory between the runtime worker and every process that
//! runs SQL.
//!
//! - `message.rs`: what is said, the whole protocol in one table of requests and replies;
//! - `target.rs`: which NATS connection is meant;
//! - `work.rs`: what executors and the runtime say, `outbox.rs`: what outbox relays and the runtime say, `worker_id.rs`: who
//!   they are;
//! - `frame.rs`: how a message becomes bytes;
//! - `server.rs`: the runtime's end, on tokio;
//! - `counts.rs`: what passes, counted;
//! - `client.rs`: the blocking end of backends and executors, without threads and tokio.

pub mod client;
pub mod counts;
pub mod frame;
pub mod message;
pub mod outbox;
pub mod server;
pub mod target;
pub mod work;
pub mod worker_id;

/// Where the socket is, relative to the data directory, which is the working directory of every process of
/// PostgreSQL. A Unix socket's path is limited to 108 bytes; and base backups leave this folder's contents out.
pub const SOCKET_PATH: &str = "pg_stat_tmp/litmus_pgnats.sock";
