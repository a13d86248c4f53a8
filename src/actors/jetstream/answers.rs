//! JetStream's answers, where async-nats has no type for them or a type that is too narrow. Pure.
//!
//! A field that JetStream always sends has no default here: an answer without the field is an error, rather than a 0
//! that would be taken for JetStream's own.

use std::collections::HashMap;

use async_nats::datetime::DateTime;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{RawMessage, RetentionPolicy};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};

/// A time as text that PostgreSQL's type timestamptz reads.
pub fn timestamp(time: DateTime) -> String {
    time.to_string()
}

/// An error that JetStream reports. async-nats's own type does not give the description alone.
#[derive(Clone, Debug, Deserialize)]
pub struct ApiError {
    #[serde(default)]
    pub err_code: ErrorCode,
    #[serde(default)]
    description: Option<String>,
}

impl ApiError {
    /// The error as a sentence, for the detail of an error of ours.
    pub fn detail(&self) -> String {
        let description = self.description.as_deref().unwrap_or("no description");
        let description = crate::findings::line(description);
        format!("JetStream error {}: {description}.", self.err_code.0)
    }
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: Option<ApiError>,
}

/// Parses an answer. The inner result is what the answer holds, or the error that JetStream reports; an answer that is
/// neither is an error with kind `JetStreamRefused`.
pub fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<std::result::Result<T, ApiError>> {
    let unintelligible = |error: serde_json::Error| {
        Error::new(Kind::JetStreamRefused, "unintelligible answer of JetStream").detail(format!("{error}."))
    };
    let answered: ErrorAnswer = serde_json::from_slice(answer).map_err(unintelligible)?;
    match answered.error {
        Some(error) => Ok(Err(error)),
        None => serde_json::from_slice(answer).map(Ok).map_err(unintelligible),
    }
}

/// Information on a stream. async-nats's own type parses the time of creation, whose text alone tells two streams
/// apart, and hides the subjects.
#[derive(Clone, Debug, Deserialize)]
pub struct StreamInfo {
    /// When the stream was created, in JetStream's own text.
    pub created: String,
    pub config: StreamConfig,
    pub state: StreamState,
    /// The stream's JetStream domain; `None` without one.
    pub domain: Option<String>,
    /// Number of subjects that match the request's filter, on all pages; `None` if the request had no filter.
    pub total: Option<u64>,
}

/// The part of a stream's configuration that matters here.
#[derive(Clone, Debug, Deserialize)]
pub struct StreamConfig {
    pub retention: RetentionPolicy,
    /// What the stream allows its consumers; JetStream leaves it out if that is everything.
    #[serde(default)]
    pub consumer_limits: ConsumerLimits,
}

/// What a stream allows its consumers.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ConsumerLimits {
    /// Most messages that may be ack pending; `None` without a limit.
    pub max_ack_pending: Option<i64>,
}

/// What a stream holds.
#[derive(Clone, Debug, Deserialize)]
pub struct StreamState {
    pub last_seq: u64,
    /// Number of subjects; JetStream leaves a 0 out.
    #[serde(default)]
    pub num_subjects: u64,
    /// Subjects of one page, with their numbers of messages; empty if the request had no filter.
    #[serde(default)]
    pub subjects: HashMap<String, u64>,
}

/// The answer to a request for one message of a stream.
#[derive(Clone, Debug, Deserialize)]
pub struct StoredMessage {
    pub message: RawMessage,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_number_is_an_error() {
        let whole =
            r#"{"created":"2026-01-01T00:00:00Z","config":{"retention":"workqueue"},"state":{"last_seq":7}}"#;
        let info = parse::<StreamInfo>(whole.as_bytes())
            .expect("an answer")
            .expect("no error");
        assert_eq!((info.state.last_seq, info.state.num_subjects), (7, 0));
        assert_eq!(info.config.retention, RetentionPolicy::WorkQueue);
        let less = whole.replace("\"last_seq\":7", "");
        let error = parse::<StreamInfo>(less.as_bytes()).expect_err("no last_seq");
        assert_eq!(error.kind, Kind::JetStreamRefused);
        assert!(error.detail.expect("a detail").contains("last_seq"));
        assert!(parse::<StreamInfo>(b"no JSON").is_err());
    }

    #[test]
    fn an_error_is_told_by_its_code() {
        let answer = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        let error = parse::<StreamInfo>(answer)
            .expect("an answer")
            .expect_err("an error");
        assert_eq!(error.err_code, ErrorCode::STREAM_NOT_FOUND);
        assert_eq!(error.detail(), "JetStream error 10059: stream not found.");
    }
}
