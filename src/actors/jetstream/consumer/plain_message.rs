//! Messages that are got from a stream one by one, in a form that needs no client library to read them: JetStream
//! answers in JSON and base64. In the actor thread.

use async_nats::datetime::{from_nanos, parse_rfc3339};
use async_nats::jetstream::ErrorCode;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::async_nats_api::timestamp;
use crate::channel::marks::Mark;
use crate::error::{Error, Kind, Result};

/// A message as the stream has it.
pub struct PlainMessage {
    pub mark: Mark,
    /// Bytes that are not UTF-8 are replaced.
    pub subject: String,
    /// The header block; empty without headers.
    pub headers: Vec<u8>,
    pub payload: Bytes,
}

impl PlainMessage {
    /// When the stream stored the message, as text that PostgreSQL's type timestamptz reads.
    pub fn created(&self) -> Option<String> {
        from_nanos(i128::from(self.mark.time_us) * 1000)
            .ok()
            .map(timestamp)
    }
}

#[derive(Deserialize)]
struct Answer {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    subject: String,
    seq: u64,
    time: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

/// Gets the message that `which` names; `None` if there is none.
pub async fn get(api: &Api, stream: &str, which: &Value) -> Result<Option<PlainMessage>> {
    let name = format!("STREAM.MSG.GET.{stream}");
    let answer = api
        .request_unless::<Answer>(ErrorCode::NO_MESSAGE_FOUND, &name, which)
        .await?;
    answer.map(|answer| read(answer.message)).transpose()
}

fn read(fields: Stored) -> Result<PlainMessage> {
    let unintelligible = |error: String| {
        Error::new(Kind::JetStreamRefused, "unintelligible answer of JetStream").cause(&error)
    };
    let time = parse_rfc3339(&fields.time).map_err(|error| unintelligible(error.to_string()))?;
    let bytes = |text: &str| {
        BASE64_STANDARD
            .decode(text)
            .map_err(|error| unintelligible(error.to_string()))
    };
    Ok(PlainMessage {
        mark: Mark {
            sequence: fields.seq,
            // JetStream itself counts nanoseconds in 64 bits.
            time_us: i64::try_from(time.unix_timestamp_nanos().div_euclid(1000)).unwrap_or(i64::MAX),
        },
        subject: fields.subject,
        headers: bytes(&fields.hdrs)?,
        payload: bytes(&fields.data)?.into(),
    })
}
