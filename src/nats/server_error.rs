//! What the errors mean that a NATS server reports on a connection. Pure.

#![forbid(unsafe_code)]

/// An error of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerError {
    /// The user may not publish to this subject.
    PublishForbidden(String),
    /// The user may not subscribe to this subject, or not any longer: then the subscription has this number.
    SubscribeForbidden(String, Option<u64>),
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

impl ServerError {
    /// Tells what an error means by its text.
    pub fn of(text: &str) -> ServerError {
        let quoted = |start: &str| {
            let (before, rest) = text.split_once('"')?;
            before
                .trim_end()
                .eq_ignore_ascii_case(start)
                .then(|| unquoted(rest))
        };
        if let Some(subject) = quoted("Permissions Violation for Publish to") {
            return ServerError::PublishForbidden(subject);
        }
        if let Some(subject) = quoted("Permissions Violation for Subscription to") {
            return ServerError::SubscribeForbidden(subject, number(text));
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

/// The text up to the quote that ends it; nats-server escapes quotes and backslashes.
fn unquoted(rest: &str) -> String {
    let (mut text, mut characters) = (String::new(), rest.chars());
    while let Some(c) = characters.next() {
        match c {
            '"' => break,
            '\\' => text.extend(characters.next()),
            c => text.push(c),
        }
    }
    text
}

/// The number in `(sid "7")`.
fn number(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("(sid \"")?;
    rest.split_once('"')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_nats_server() {
        let publish = |subject: &str| ServerError::PublishForbidden(subject.into());
        let subscribe = |subject: &str, sid| ServerError::SubscribeForbidden(subject.into(), sid);
        for (text, meaning) in [
            ("Permissions Violation for Publish to \"a.b\"", publish("a.b")),
            (
                "Permissions Violation for Publish to \"a\\\\b\\\"c\"",
                publish("a\\b\"c"),
            ),
            (
                "Permissions Violation for Subscription to \"a.*\"",
                subscribe("a.*", None),
            ),
            (
                "Permissions Violation for Subscription to \"a\" using queue \"q\"",
                subscribe("a", None),
            ),
            (
                "Permissions Violation for Subscription to \"a\" (sid \"7\")",
                subscribe("a", Some(7)),
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
