//! What an error that JetStream reports means, told by its error code. Pure.

use async_nats::jetstream::ErrorCode;

use super::answers::ApiError;
use crate::error::{Error, Kind};
use crate::nats::jetstream_errors::{Meaning, meaning};

const UNEXPECTED: &str = "the stream is not in the expected state";
/// Hint of the error about a named stream that does not exist.
pub const MISSING_STREAM: &str =
    "Create the stream, or check its name and the option domain of the foreign server.";

/// JetStream, or the JetStream of this domain, cannot be reached.
pub fn unavailable(domain: Option<&str>, why: &str) -> Error {
    let message = match domain {
        Some(domain) => format!("JetStream domain \"{domain}\" is not reachable"),
        None => "the NATS server or account has no JetStream".into(),
    };
    Error::new(Kind::JetStreamUnavailable, message).detail(why)
}

/// Turns an error that JetStream reports into one of ours. `domain` is the domain that was asked.
pub fn refused(domain: Option<&str>, error: &ApiError) -> Error {
    let failed = |kind, message| Error::new(kind, message).detail(error.detail());
    match meaning(error.err_code.0) {
        Meaning::NotEnabled => unavailable(domain, &error.detail()),
        Meaning::NoStream => failed(Kind::NoStream, "stream does not exist").hint(MISSING_STREAM),
        Meaning::TooLarge => failed(Kind::PayloadTooLarge, "message is larger than the stream allows"),
        Meaning::NoMessage => failed(Kind::ObjectNotFound, "no message found"),
        Meaning::Expectation if error.err_code == ErrorCode::STREAM_NOT_MATCH => {
            failed(Kind::ExpectationFailed, UNEXPECTED)
                .hint("The header Nats-Expected-Stream has to name the stream that takes the subject.")
        }
        Meaning::Expectation => failed(Kind::ExpectationFailed, UNEXPECTED),
        Meaning::Full => failed(Kind::StreamFull, "the stream or its storage is full"),
        Meaning::Limit => failed(Kind::JetStreamLimit, "a limit of JetStream is reached"),
        Meaning::TryAgain => failed(Kind::JetStreamBusy, "JetStream cannot do this now"),
        Meaning::NeverStored => failed(Kind::NeverStored, "the stream does not take such a message"),
        Meaning::NoConsumer | Meaning::NameTaken | Meaning::Other => {
            failed(Kind::JetStreamRefused, "JetStream refused the request")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::jetstream::answers::parse;

    fn told(code: u64) -> Error {
        let answer = format!(r#"{{"error":{{"code":400,"err_code":{code},"description":"why"}}}}"#);
        let parsed = parse::<serde_json::Value>(answer.as_bytes()).expect("an answer");
        refused(None, &parsed.expect_err("an error"))
    }

    /// A stream is no bucket, which putting a value would create.
    #[test]
    fn a_missing_stream_is_a_missing_stream() {
        let error = told(10059);
        assert_eq!(error.kind, Kind::NoStream);
        assert_eq!(error.hint.as_deref(), Some(MISSING_STREAM));
        assert_eq!(error.detail.as_deref(), Some("JetStream error 10059: why."));
    }

    #[test]
    fn each_code_has_its_kind() {
        for (code, kind) in [
            (10039, Kind::JetStreamUnavailable),
            (10054, Kind::PayloadTooLarge),
            (10037, Kind::ObjectNotFound),
            (10060, Kind::ExpectationFailed),
            (10071, Kind::ExpectationFailed),
            (10077, Kind::StreamFull),
            (10058, Kind::JetStreamRefused),
            (10097, Kind::PayloadTooLarge),
            (10026, Kind::JetStreamLimit),
            (10008, Kind::JetStreamBusy),
            (10166, Kind::NeverStored),
        ] {
            assert_eq!(told(code).kind, kind, "{code}");
        }
    }
}
