//! Delivers a batch of the outbox to JetStream: in order, pipelined, again after every loss of the connection. A task of
//! the actor thread.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::actors::connection::delivery::forbidden;
use crate::actors::connection::headers::header_map;
use crate::actors::connection::requester::{PendingReply, RequestFailure};
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::jetstream::api::Api;
use crate::channel::outbox::OutboxMessage;
use crate::error::{Error, Kind, Result};

/// Messages that wait for their acknowledgement at a time.
const WINDOW: usize = 1024;
/// Longest wait for an acknowledgement.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// Before JetStream, which does not answer, is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the connection, or for JetStream; what it was read for may have another one by then.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageFate {
    Stored,
    Refused(Error),
    /// One before it, of the same subject, was refused.
    NotSent,
}

/// Why the rest of a round was not sent, or has no answer.
enum RoundEnd {
    /// The connection has ended.
    Lost,
    /// There was no answer in time.
    Silence,
}

/// A batch on its way.
struct Round<'a> {
    messages_read: &'a [(OutboxMessage, Bytes)],
    fates: &'a mut [Option<MessageFate>],
    /// Subjects that are sent one message at a time.
    serial: &'a HashSet<String>,
    /// Of which nothing more is sent in this round.
    closed: HashSet<&'a str>,
    flight: VecDeque<(usize, PendingReply)>,
}

/// Returns when it is decided what became of every message, or NATS is away for long.
pub async fn deliver(
    mut status: watch::Receiver<ConnectionStatus>,
    messages_read: Vec<(OutboxMessage, Bytes)>,
    serial: HashSet<String>,
) -> Vec<MessageFate> {
    let mut fates = vec![None; messages_read.len()];
    let mut silent_since = None;
    loop {
        let up = status.wait_for(|status| status.client.is_some());
        let generation = match timeout(CONNECTION_LIMIT, up).await {
            Ok(Ok(status)) => status.generation,
            _ => return decided(fates),
        };
        let round = Round {
            messages_read: &messages_read,
            fates: &mut fates,
            serial: &serial,
            closed: HashSet::new(),
            flight: VecDeque::new(),
        };
        match round.run(&status).await {
            Ok(()) => return decided(fates),
            Err(RoundEnd::Lost) => {
                let replaced = |s: &ConnectionStatus| s.client.is_none() || s.generation != generation;
                if status.wait_for(replaced).await.is_err() {
                    return decided(fates);
                }
            }
            Err(RoundEnd::Silence) => {
                let silent = fates.iter().zip(&messages_read).find(|(fate, _)| fate.is_none());
                let domain = silent.and_then(|(_, (message_read, _))| message_read.domain.clone());
                let api = Api::of(&status, domain, ACK_LIMIT);
                let is_there = match &api {
                    Some(api) => api.request("INFO", &Value::Null).await.is_ok(),
                    None => false,
                };
                // JetStream answers, but not to this message: NATS may have refused it without a word.
                let first = fates
                    .iter_mut()
                    .zip(&messages_read)
                    .find(|(fate, _)| fate.is_none());
                if is_there && let Some((fate, (message_read, _))) = first {
                    let subject = &message_read.subject;
                    let message = format!("no acknowledgement for subject \"{subject}\" in time");
                    *fate = Some(MessageFate::Refused(Error::new(Kind::AckTimeout, message)));
                    for (fate, (other, _)) in fates.iter_mut().zip(&messages_read) {
                        if fate.is_none() && other.subject == *subject {
                            *fate = Some(MessageFate::NotSent);
                        }
                    }
                    silent_since = None;
                } else if silent_since.get_or_insert_with(Instant::now).elapsed() >= CONNECTION_LIMIT {
                    return decided(fates);
                } else {
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

fn decided(fates: Vec<Option<MessageFate>>) -> Vec<MessageFate> {
    fates
        .into_iter()
        .map(|fate| fate.unwrap_or(MessageFate::NotSent))
        .collect()
}

impl Round<'_> {
    async fn run(mut self, status: &watch::Receiver<ConnectionStatus>) -> std::result::Result<(), RoundEnd> {
        let messages_read = self.messages_read;
        let plain = Api::of(status, None, ACK_LIMIT).ok_or(RoundEnd::Lost)?;
        // Nothing is given up because the server has no JetStream now.
        plain.check_server().map_err(|_| RoundEnd::Silence)?;
        for (index, (message_read, payload)) in messages_read.iter().enumerate() {
            if self.fates.get(index).is_none_or(Option::is_some) {
                continue;
            }
            if self.closed.contains(message_read.subject.as_str()) {
                self.decide(index, MessageFate::NotSent);
                continue;
            }
            if self.serial.contains(&message_read.subject) {
                self.closed.insert(&message_read.subject);
            }
            let headers = headers_of(message_read);
            if message_read.domain.is_some() || plain.domain.is_some() {
                // Streams of other domains may answer first.
                let api = Api::of(status, message_read.domain.clone(), ACK_LIMIT).ok_or(RoundEnd::Lost)?;
                let stored = api
                    .publish_plain(message_read.subject.clone(), Some(headers), payload.clone())
                    .await;
                self.answered(index, stored.map(drop))?;
                continue;
            }
            if self.flight.len() >= WINDOW {
                self.land(&plain).await?;
                // The one that has landed may have closed the subject.
                if self.closed.contains(message_read.subject.as_str())
                    && !self.serial.contains(&message_read.subject)
                {
                    self.decide(index, MessageFate::NotSent);
                    continue;
                }
            }
            match plain
                .client
                .begin(message_read.subject.clone(), headers, payload.clone())
                .await
            {
                Ok(begun) => self.flight.push_back((index, begun)),
                Err(RequestFailure::TooLarge(why)) => {
                    let message = "message is larger than the NATS server allows";
                    self.refuse(index, Error::new(Kind::PayloadTooLarge, message).cause(&why));
                }
                Err(RequestFailure::InvalidSubject) => {
                    self.refuse(index, Error::new(Kind::InvalidSubject, "invalid subject"));
                }
                Err(_) => {
                    self.collect(&plain);
                    return Err(RoundEnd::Lost);
                }
            }
        }
        while !self.flight.is_empty() {
            self.land(&plain).await?;
        }
        Ok(())
    }

    /// What is acknowledged by now is not sent again: a stream remembers for a while only what it has.
    fn collect(&mut self, api: &Api) {
        for (index, begun) in std::mem::take(&mut self.flight) {
            if let Some(Ok(answer)) = begun.arrived()
                && api.acknowledged(&answer.payload).is_ok()
            {
                self.decide(index, MessageFate::Stored);
            }
        }
    }

    /// Waits for the oldest acknowledgement.
    async fn land(&mut self, api: &Api) -> std::result::Result<(), RoundEnd> {
        let Some((index, begun)) = self.flight.pop_front() else {
            return Ok(());
        };
        let subject = self
            .messages_read
            .get(index)
            .map_or("", |(message_read, _)| &message_read.subject);
        let answer: Result<Message> = match begun.reply(ACK_LIMIT).await {
            Ok(answer) => Ok(answer),
            Err(RequestFailure::NoResponders) => Err(api.no_stream(subject).await),
            Err(RequestFailure::Forbidden) => Err(forbidden(subject)),
            Err(failure) => {
                self.collect(api);
                let is_silence = failure == RequestFailure::TimedOut;
                return Err(if is_silence {
                    RoundEnd::Silence
                } else {
                    RoundEnd::Lost
                });
            }
        };
        let stored = answer.and_then(|answer| api.acknowledged(&answer.payload));
        let landed = self.answered(index, stored.map(drop));
        if landed.is_err() {
            self.collect(api);
        }
        landed
    }

    fn answered(&mut self, index: usize, stored: Result<()>) -> std::result::Result<(), RoundEnd> {
        match stored {
            Ok(()) => self.decide(index, MessageFate::Stored),
            Err(error) if error.kind == Kind::ConnectionLost => return Err(RoundEnd::Lost),
            // No message is given up because JetStream is away.
            Err(error) if matches!(error.kind, Kind::AckTimeout | Kind::JetStreamUnavailable) => {
                return Err(RoundEnd::Silence);
            }
            Err(error) => self.refuse(index, error),
        }
        Ok(())
    }

    fn refuse(&mut self, index: usize, error: Error) {
        if let Some((message_read, _)) = self.messages_read.get(index)
            && !is_permanent(&error)
        {
            self.closed.insert(&message_read.subject);
        }
        self.decide(index, MessageFate::Refused(error));
    }

    fn decide(&mut self, index: usize, fate: MessageFate) {
        if let Some(place) = self.fates.get_mut(index) {
            *place = Some(fate);
        }
    }
}

/// Whether the same message would be refused for ever, whatever time passes.
pub fn is_permanent(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::PayloadTooLarge | Kind::InvalidSubject | Kind::ExpectationFailed
    )
}

/// The message's headers, with the number by which JetStream tells repetitions; the user's own, if there is one.
fn headers_of(message_read: &OutboxMessage) -> HeaderMap {
    let mut headers = header_map(&message_read.headers).unwrap_or_default();
    if headers.get(MESSAGE_ID).is_none() {
        headers.insert(MESSAGE_ID, message_read.message_id.as_str());
    }
    headers
}
