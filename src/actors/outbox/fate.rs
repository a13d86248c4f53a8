//! What becomes of a message that is delivered to JetStream. Pure.

use crate::error::{Error, Kind};

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageFate {
    Stored,
    Refused(Error),
    /// The message was not sent, or has no answer: NATS is away, or an earlier message of its subject was refused.
    NotSent,
}

/// Whether the message would be refused however often it is sent.
pub fn is_permanent(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::PayloadTooLarge
            | Kind::InvalidSubject
            | Kind::InvalidHeaders
            | Kind::ExpectationFailed
            | Kind::NeverStored
    )
}
