//! What the errors mean that a NATS server reports on a connection. Pure.

#![forbid(unsafe_code)]

/// An error of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerError<'a> {
    /// The user may not publish to this subject.
    PublishForbidden(&'a str),
    /// The user may not subscribe to this subject.
    SubscribeForbidden(&'a str),
    /// The user, the account or the server has as many subscriptions as it may have.
    TooManySubscriptions,
    /// The server, the account or the user has as many connections as it may have.
    TooManyConnections,
    /// The server does not let the client in, or not any longer.
    AuthenticationRefused,
    /// A message was larger than the server or the account allows.
    PayloadTooLarge,
    Other,
}

impl ServerError<'_> {
    /// Tells what an error means by its text.
    pub fn of(text: &str) -> ServerError<'_> {
        let quoted = |start: &str| {
            let (before, rest) = text.split_once('"')?;
            let (subject, _) = rest.split_once('"')?;
            before.trim_end().eq_ignore_ascii_case(start).then_some(subject)
        };
        if let Some(subject) = quoted("Permissions Violation for Publish to") {
            return ServerError::PublishForbidden(subject);
        }
        if let Some(subject) = quoted("Permissions Violation for Subscription to") {
            return ServerError::SubscribeForbidden(subject);
        }
        let text = text.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&["maximum subscriptions exceeded"]) {
            ServerError::TooManySubscriptions
        } else if says(&["connections exceeded", "maximum account active connections"]) {
            ServerError::TooManyConnections
        } else if says(&["authorization violation", "authentication"]) {
            ServerError::AuthenticationRefused
        } else if says(&["maximum payload"]) {
            ServerError::PayloadTooLarge
        } else {
            ServerError::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_nats_server() {
        for (text, meaning) in [
            (
                "Permissions Violation for Publish to \"a.b\"",
                ServerError::PublishForbidden("a.b"),
            ),
            (
                "Permissions Violation for Subscription to \"a.*\"",
                ServerError::SubscribeForbidden("a.*"),
            ),
            (
                "Permissions Violation for Subscription to \"a\" using queue \"q\"",
                ServerError::SubscribeForbidden("a"),
            ),
            (
                "maximum subscriptions exceeded",
                ServerError::TooManySubscriptions,
            ),
            ("maximum connections exceeded", ServerError::TooManyConnections),
            (
                "maximum account active connections exceeded",
                ServerError::TooManyConnections,
            ),
            ("Authorization Violation", ServerError::AuthenticationRefused),
            ("User Authentication Expired", ServerError::AuthenticationRefused),
            ("Authentication Timeout", ServerError::AuthenticationRefused),
            ("Maximum Payload Violation", ServerError::PayloadTooLarge),
            ("Unknown Protocol Operation", ServerError::Other),
            ("", ServerError::Other),
        ] {
            assert_eq!(ServerError::of(text), meaning, "{text}");
        }
    }
}
