//! What the actors know of the server that they belong to: primary or standby, and who it is. In the actor thread.

use std::sync::atomic::AtomicBool;

use tokio::sync::watch;

use crate::server_role::ServerRole;

/// Whether a primary that Patroni does not take for one pauses; may change at any time.
#[derive(Debug, Default)]
pub struct Fencing(pub AtomicBool);

/// Who hears of a promotion.
pub type Roles = watch::Receiver<ServerRole>;
