//! The server's role. In the actor thread.
//!
//! - `interface.rs`: the messages that the two actors take, and the message about a fence;
//! - `patroni_watcher.rs`: follows Patroni, and fences a primary that has lost the leader lock;
//! - `role_notifier.rs`: tells NATS of the server's role.

pub mod interface;
mod patroni_watcher;
mod role_notifier;

pub use patroni_watcher::PatroniWatcher;
pub use role_notifier::RoleNotifier;
