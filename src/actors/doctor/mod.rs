//! What is wrong with a connection, for `litmus_pgnats.doctor()`. In the actor thread.
//!
//! - `examine.rs`: all checks of a foreign server;
//! - `tls_probe.rs`: a server's INFO, and its TLS handshake;
//! - `certificate.rs`: what a certificate says of itself.

mod certificate;
pub mod examine;
mod tls_probe;
