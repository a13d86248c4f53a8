//! A client of NATS: one connection to one server, for its whole life. In the actor thread; files are read in tokio's
//! blocking threads.
//!
//! The client is the extension's own. The client library that the extension takes its types of JetStream from connects
//! again by itself, keeps to the limits of the server's first INFO, verifies a server by the name alone that it was
//! dialled by, and ends a connection at a header that it cannot read; and what a server sends has no bound there.
//!
//! - `connect.rs`: connects to one of several hosts; `dial.rs`: to one of them; `login.rs`: the CONNECT by which a
//!   server lets the client in; `tls.rs`: how TLS is set up; `files.rs`: reads files that options name;
//! - `interface.rs`: what a client is made from, what it reports, and how it fails;
//! - `handle.rs`: the client and its subscriptions as others use them; `requests.rs`: requests and their replies;
//! - `shared.rs`: what the handle and the task share; `pump.rs`: the task that reads and writes; `news.rs`: what the
//!   server reports for the connection's actor.

pub mod connect;
mod dial;
pub mod files;
mod handle;
pub mod interface;
mod login;
pub mod news;
mod pump;
mod requests;
mod shared;
pub mod tls;

pub use handle::{NatsClient, Subscriber};
pub use interface::{RequestFailure, SendFailure, SubscribeFailure};
pub use requests::{Accepts, PendingReply};
