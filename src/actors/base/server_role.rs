//! What the actors know of the server's role, and whether it may be fenced. In the actor thread; the runtime worker's
//! main thread sets [`Fencing`].

use std::sync::atomic::AtomicBool;

use tokio::sync::watch;

use crate::server_role::ServerRole;

/// Whether a primary is fenced that Patroni does not take for the primary (`litmus_pgnats.patroni_fencing`). May change
/// at any time.
#[derive(Debug, Default)]
pub struct Fencing(pub AtomicBool);

/// Gives the server's role, and tells of a promotion.
pub type Roles = watch::Receiver<ServerRole>;
