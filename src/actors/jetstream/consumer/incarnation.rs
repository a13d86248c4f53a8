//! Says which incarnation of a stream a durable subscription meets: asks the stream for the messages that
//! `recognise.rs` compares. In the actor thread.

use async_nats::datetime::parse_rfc3339;
use async_nats::jetstream::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::recognise::{History, Recognised, Stream, recognise};
use crate::actors::jetstream::answers::StreamInfo;
use crate::actors::jetstream::api::Api;
use crate::channel::marks::Mark;
use crate::channel::progress::{Incarnation, StreamProgress};
use crate::error::{Error, Kind, Result};

/// Says which of the known incarnations the stream is, or gives a new one a token. Fails with `Stopped` if that cannot
/// be told.
pub async fn identify(
    api: &Api,
    stream: &str,
    info: &StreamInfo,
    progress: &StreamProgress,
    has_own_consumer: bool,
) -> Result<Incarnation> {
    let held = Messages { api, stream };
    let now = Stream {
        created: &info.created,
        last_sequence: info.state.last_seq,
        has_own_consumer,
    };
    let recognised = match recognise(&held, &now, &progress.positions).await {
        Err(error) if error.kind == Kind::PermissionDenied => by_creation(&now, progress, error)?,
        recognised => recognised?,
    };
    let created = info.created.clone();
    let (token, branch) = match recognised {
        Recognised::Known(token) => {
            // As long as the database has no position there, its first one needs to know where the incarnation comes from.
            let branch = progress
                .position(&token)
                .and_then(|position| position.branch.clone());
            (token, branch)
        }
        Recognised::Branch(branch) => (nuid::next().to_string(), Some(progress.branch(branch))),
        Recognised::New => (nuid::next().to_string(), None),
    };
    Ok(Incarnation {
        token,
        created,
        branch,
    })
}

/// What can be told without reading messages, which `error` forbids.
fn by_creation(now: &Stream<'_>, progress: &StreamProgress, error: Error) -> Result<Recognised> {
    let mut as_old = progress
        .positions
        .iter()
        .filter(|position| position.created == now.created);
    let has_all = |last: Option<Mark>| last.is_none_or(|mark| mark.sequence <= now.last_sequence);
    match as_old.next() {
        Some(position) if has_all(position.marks.newest()) => Ok(Recognised::Known(position.token.clone())),
        _ => Err(error),
    }
}

/// When the stream took the first message on a subject from a sequence on, in microseconds since 1970; `None` if there
/// is none.
pub async fn first_time(api: &Api, stream: &str, from: u64, subject: &str) -> Result<Option<i64>> {
    let held = Messages { api, stream };
    let first = held.get(&json!({ "seq": from, "next_by_subj": subject })).await?;
    Ok(first.map(|message| message.time_us))
}

/// The messages of a stream, asked for one by one.
struct Messages<'a> {
    api: &'a Api,
    stream: &'a str,
}

impl Messages<'_> {
    async fn get(&self, body: &Value) -> Result<Option<Mark>> {
        /// The part of a stored message that tells which one it is.
        #[derive(Deserialize)]
        struct Answer {
            message: Stored,
        }
        #[derive(Deserialize)]
        struct Stored {
            seq: u64,
            time: String,
        }
        let name = format!("STREAM.MSG.GET.{}", self.stream);
        let asked = self
            .api
            .request_unless::<Answer>(ErrorCode::NO_MESSAGE_FOUND, &name, body);
        let Some(Answer { message }) = asked.await? else {
            return Ok(None);
        };
        let time = parse_rfc3339(&message.time).map_err(|error| {
            Error::new(Kind::JetStreamRefused, "unintelligible answer of JetStream").cause(&error.to_string())
        })?;
        Ok(Some(Mark {
            sequence: message.seq,
            // JetStream itself counts nanoseconds in 64 bits.
            time_us: i64::try_from(time.unix_timestamp_nanos().div_euclid(1000)).unwrap_or(i64::MAX),
        }))
    }
}

impl History for Messages<'_> {
    async fn time_of(&self, sequence: u64) -> Result<Option<i64>> {
        let message = self.get(&json!({ "seq": sequence })).await?;
        Ok(message.map(|message| message.time_us))
    }

    async fn first_from(&self, sequence: u64) -> Result<Option<Mark>> {
        self.get(&json!({ "seq": sequence, "next_by_subj": ">" })).await
    }
}
