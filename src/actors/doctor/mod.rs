//! Finds out what is wrong with a connection, for `litmus_pgnats.doctor()`. In the actor thread.
//!
//! - `examine.rs`: all checks of a foreign server;
//! - `tls_probe.rs`: a NATS server's INFO, and its TLS handshake;
//! - `certificate.rs`: a certificate's subject and validity.

mod certificate;
pub mod examine;
mod tls_probe;
