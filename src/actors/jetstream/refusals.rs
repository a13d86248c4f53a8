//! What an error that JetStream reports means, told by its error code. Pure.

use async_nats::jetstream::ErrorCode;

use super::answers::ApiError;
use crate::error::{Error, Kind};

/// JetStream is not there for this account.
const NOT_ENABLED: [ErrorCode; 3] = [
    ErrorCode::NO_ACCOUNT,
    ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT,
    ErrorCode::JETSTREAM_NOT_ENABLED,
];
/// The message's header Nats-Expected-Stream, -Last-Sequence, -Last-Msg-Id or -Last-Subject-Sequence was not met.
const EXPECTATIONS: [ErrorCode; 5] = [
    ErrorCode::STREAM_NOT_MATCH,
    ErrorCode::STREAM_WRONG_LAST_MESSAGE_ID,
    ErrorCode::STREAM_WRONG_LAST_SEQUENCE,
    ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT,
    ErrorCode::STREAM_EXPECTED_LAST_SEQ_PER_SUBJECT_INVALID,
];
/// No room: in the storage of the server, the account or the stream, or by the stream's limits of messages, bytes,
/// or messages per subject.
const FULL: [ErrorCode; 6] = [
    ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ErrorCode::INSUFFICIENT_RESOURCES,
    ErrorCode::MEMORY_RESOURCES_EXCEEDED,
    ErrorCode::STORAGE_RESOURCES_EXCEEDED,
    ErrorCode::STREAM_STORE_FAILED,
    ErrorCode::STREAM_MAX_BYTES_REQUIRED,
];

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
    let code = error.err_code;
    let failed = |kind, message| Error::new(kind, message).detail(error.detail());
    match code {
        _ if NOT_ENABLED.contains(&code) => unavailable(domain, &error.detail()),
        ErrorCode::STREAM_NOT_FOUND => failed(Kind::NoStream, "stream does not exist").hint(MISSING_STREAM),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
            failed(Kind::PayloadTooLarge, "message is larger than the stream allows")
        }
        ErrorCode::NO_MESSAGE_FOUND => failed(Kind::ObjectNotFound, "no message found"),
        ErrorCode::STREAM_NOT_MATCH => failed(Kind::ExpectationFailed, UNEXPECTED)
            .hint("The header Nats-Expected-Stream has to name the stream that takes the subject."),
        _ if EXPECTATIONS.contains(&code) => failed(Kind::ExpectationFailed, UNEXPECTED),
        _ if FULL.contains(&code) => failed(Kind::StreamFull, "the stream or its storage is full"),
        _ => failed(Kind::JetStreamRefused, "JetStream refused the request"),
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
        ] {
            assert_eq!(told(code).kind, kind, "{code}");
        }
    }
}
