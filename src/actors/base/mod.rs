//! What all actors use. In the actor thread, but for what is pure.
//!
//! - `liveness.rs`: the end of the runtime when something vital dies;
//! - `backoff.rs`: how long to wait after failures;
//! - `server_role.rs`: what the actors are told of the server's role;
//! - `queue_limits.rs`: how much may wait for executors;
//! - `result_limit.rs`: answers to sessions are bounded;
//! - `text.rs`: times as text for the views.

pub(crate) mod backoff;
pub(crate) mod liveness;
pub mod queue_limits;
pub(crate) mod result_limit;
pub(crate) mod server_role;
pub(crate) mod text;
