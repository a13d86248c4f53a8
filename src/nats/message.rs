//! A message as it comes from NATS, and as it is sent there. Pure.

#![forbid(unsafe_code)]

use bytes::Bytes;

use super::headers::{self, Headers};
use super::raw_headers;

/// Statuses of messages that a NATS server itself sends (ADR-4).
pub mod status {
    /// An idle heartbeat of a consumer.
    pub const IDLE_HEARTBEAT: u16 = 100;
    /// There is no such message.
    pub const NOT_FOUND: u16 = 404;
    /// A pull has expired.
    pub const TIMEOUT: u16 = 408;
    /// Nobody subscribes to the subject of a request.
    pub const NO_RESPONDERS: u16 = 503;
}

/// A message that has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Bytes that are not UTF-8 are replaced.
    pub subject: String,
    pub reply: Option<String>,
    /// The header block as it came; empty without headers.
    pub header_block: Bytes,
    pub payload: Bytes,
    /// The status, where the NATS server itself says something, as [`status`] has them; otherwise `None`.
    pub status: Option<u16>,
}

impl Message {
    /// The headers, in order; read as well as that can be done if they are not as they should be.
    pub fn headers(&self) -> Headers {
        raw_headers::read(&self.header_block)
    }

    /// The first value of a header; `None` if there is none of this name.
    pub fn header(&self, name: &str) -> Option<String> {
        if self.header_block.is_empty() {
            return None;
        }
        headers::first(&self.headers(), name).map(String::from)
    }

    /// What the server says beside the status.
    pub fn description(&self) -> String {
        raw_headers::description(&self.header_block)
    }
}

/// A message to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    pub subject: String,
    pub reply: Option<String>,
    pub headers: Headers,
    pub payload: Bytes,
}
