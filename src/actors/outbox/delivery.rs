//! Delivers a batch of the outbox to JetStream: in order, pipelined, again after every loss of the connection. A future
//! of the outbox actor; in the actor thread.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::fate::{MessageFate, is_permanent};
use crate::actors::base::backoff::full_jitter;
use crate::actors::client::interface::InboxState;
use crate::actors::client::{PendingReply, RequestFailure};
use crate::actors::connection::delivery::no_inbox;
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::jetstream::api::{Api, accepts_ack, no_stream};
use crate::channel::outbox::OutboxMessage;
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;
use crate::nats::message::{Message, Outbound};

/// Most messages that wait for their acknowledgement at a time.
const WINDOW: usize = 1024;
/// Longest wait for an acknowledgement.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// Longest pause before the next round when JetStream does not answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the connection, or for JetStream. The batch is then read again, perhaps for another connection.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// For so long it is believed that JetStream is there.
const ANSWER_LASTS: Duration = Duration::from_millis(500);
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Why some messages of a round were not sent, or have no answer.
enum RoundEnd {
    /// The connection has ended.
    Lost,
    /// There was no answer in time.
    Silence,
    /// No acknowledgement can come any more.
    NoReplies,
}

/// One attempt to send what is undecided of a batch.
struct Round<'a> {
    messages: &'a [(OutboxMessage, Bytes)],
    fates: &'a mut [Option<MessageFate>],
    /// Subjects that are sent one message at a time.
    serial: &'a HashSet<String>,
    /// Subjects of which nothing more is sent in this round.
    closed: HashSet<&'a str>,
    /// Messages, by their place in the batch, whose acknowledgement has not come yet.
    flight: VecDeque<(usize, PendingReply)>,
    /// When JetStream has last answered that it is there.
    answered_at: Option<Instant>,
}

/// Delivers a batch; returns each message's fate when all are decided, or when NATS has been away for long. Fails if no
/// acknowledgement can come, with nothing sent. Of the
/// subjects in `serial`, one message at a time is sent.
pub async fn deliver(
    mut status: watch::Receiver<ConnectionStatus>,
    messages: Vec<(OutboxMessage, Bytes)>,
    serial: HashSet<String>,
) -> Result<Vec<MessageFate>> {
    let mut fates = vec![None; messages.len()];
    let mut silent_since = None;
    loop {
        let up = status.wait_for(|status| status.client.is_some());
        let (generation, client) = match timeout(CONNECTION_LIMIT, up).await {
            Ok(Ok(status)) => (status.generation, status.client.clone()),
            _ => return Ok(decided(fates)),
        };
        if let Some(client) = client
            && client.inbox() != InboxState::Open
        {
            // What is sent and not confirmed would be sent, and stored, again and again. Nothing is given up.
            let why = no_inbox(&client, client.inbox());
            return Err(Error {
                kind: Kind::Unreachable,
                ..why
            });
        }
        let round = Round {
            messages: &messages,
            fates: &mut fates,
            serial: &serial,
            closed: HashSet::new(),
            flight: VecDeque::new(),
            answered_at: None,
        };
        match round.run(&status).await {
            Ok(()) => return Ok(decided(fates)),
            Err(RoundEnd::Lost) => {
                let replaced = |s: &ConnectionStatus| s.client.is_none() || s.generation != generation;
                if status.wait_for(replaced).await.is_err() {
                    return Ok(decided(fates));
                }
            }
            // The reason is found, and told, at the beginning of the next round.
            Err(RoundEnd::NoReplies) => {}
            Err(RoundEnd::Silence) => {
                if refuse_silenced(&status, &messages, &mut fates).await {
                    silent_since = None;
                } else if silent_since.get_or_insert_with(Instant::now).elapsed() >= CONNECTION_LIMIT {
                    return Ok(decided(fates));
                } else {
                    sleep(full_jitter(PAUSE)).await;
                }
            }
        }
    }
}

/// JetStream has not answered to the first undecided message. If it answers to something else, NATS may have refused
/// the message silently: the message counts as refused, and later messages of its subject as not sent. `false` if
/// JetStream does not answer at all.
async fn refuse_silenced(
    status: &watch::Receiver<ConnectionStatus>,
    messages: &[(OutboxMessage, Bytes)],
    fates: &mut [Option<MessageFate>],
) -> bool {
    let Some(first) = fates.iter().position(Option::is_none) else {
        return true;
    };
    let Some((silenced, _)) = messages.get(first) else {
        return true;
    };
    let Some(api) = Api::of(status, silenced.domain.clone(), ACK_LIMIT) else {
        return false;
    };
    let refusal = match api.order("INFO", &Value::Null).await {
        Ok(()) => {
            let why = format!("no acknowledgement for subject \"{}\" in time", silenced.subject);
            MessageFate::Refused(Error::new(Kind::AckTimeout, why))
        }
        // Without the right to ask it is not known whether JetStream is there, so nothing is given up; others go on.
        Err(error) if error.kind == Kind::PermissionDenied => MessageFate::NotSent,
        Err(_) => return false,
    };
    for (index, (fate, (message, _))) in fates.iter_mut().zip(messages).enumerate() {
        if index == first {
            *fate = Some(refusal.clone());
        } else if fate.is_none() && message.subject == silenced.subject {
            *fate = Some(MessageFate::NotSent);
        }
    }
    true
}

fn decided(fates: Vec<Option<MessageFate>>) -> Vec<MessageFate> {
    fates
        .into_iter()
        .map(|fate| fate.unwrap_or(MessageFate::NotSent))
        .collect()
}

impl Round<'_> {
    async fn run(mut self, status: &watch::Receiver<ConnectionStatus>) -> std::result::Result<(), RoundEnd> {
        let messages = self.messages;
        let plain = Api::of(status, None, ACK_LIMIT).ok_or(RoundEnd::Lost)?;
        // A server without headers has no JetStream now, which is no reason to give messages up.
        plain.check_server().map_err(|_| RoundEnd::Silence)?;
        for (index, (message, payload)) in messages.iter().enumerate() {
            if self.fates.get(index).is_none_or(Option::is_some) {
                continue;
            }
            if self.closed.contains(message.subject.as_str()) {
                self.decide(index, MessageFate::NotSent);
                continue;
            }
            if self.serial.contains(&message.subject) {
                self.closed.insert(&message.subject);
            }
            if message.domain.is_some() || plain.domain.is_some() {
                self.send_to_domain(status, index, message, payload).await?;
                continue;
            }
            if self.flight.len() >= WINDOW {
                self.land(&plain).await?;
                // The acknowledgement that has come may be a refusal, which closes the subject.
                if self.closed.contains(message.subject.as_str()) && !self.serial.contains(&message.subject) {
                    self.decide(index, MessageFate::NotSent);
                    continue;
                }
            }
            self.send(&plain, index, message, payload).await?;
        }
        while !self.flight.is_empty() {
            self.land(&plain).await?;
        }
        Ok(())
    }

    /// Sends a message without waiting for its acknowledgement.
    async fn send(
        &mut self,
        api: &Api,
        index: usize,
        message: &OutboxMessage,
        payload: &Bytes,
    ) -> std::result::Result<(), RoundEnd> {
        let request = Outbound {
            subject: message.subject.clone(),
            reply: None,
            headers: headers_of(message),
            payload: payload.clone(),
        };
        match api.client.begin(request, accepts_ack(None)).await {
            Ok(pending) => self.flight.push_back((index, pending)),
            Err(failure @ (RequestFailure::ClientLost | RequestFailure::NoInbox(_))) => {
                self.collect(api);
                return Err(end_of(&failure));
            }
            Err(failure) => self.refuse(index, api.unanswered(&message.subject, failure)),
        }
        Ok(())
    }

    /// Sends a message and waits for its acknowledgement, because streams of other domains may acknowledge it first.
    async fn send_to_domain(
        &mut self,
        status: &watch::Receiver<ConnectionStatus>,
        index: usize,
        message: &OutboxMessage,
        payload: &Bytes,
    ) -> std::result::Result<(), RoundEnd> {
        let api = Api::of(status, message.domain.clone(), ACK_LIMIT).ok_or(RoundEnd::Lost)?;
        let published = api.publish_plain(message.subject.clone(), headers_of(message), payload.clone());
        let stored = published.await;
        if stored.is_err() && api.client.inbox() != InboxState::Open {
            return Err(RoundEnd::NoReplies);
        }
        self.answered(index, stored.map(drop))
    }

    /// Notes the acknowledgements that have come by now. Their messages must not be sent again, because a stream
    /// recognises repetitions only for a while.
    fn collect(&mut self, api: &Api) {
        for (index, pending) in std::mem::take(&mut self.flight) {
            if let Some(Ok(answer)) = pending.arrived()
                && api.acknowledged(&answer.payload).is_ok()
            {
                self.decide(index, MessageFate::Stored);
            }
        }
    }

    /// Waits for the acknowledgement of the message that was sent first.
    async fn land(&mut self, api: &Api) -> std::result::Result<(), RoundEnd> {
        let Some((index, pending)) = self.flight.pop_front() else {
            return Ok(());
        };
        let subject = self
            .messages
            .get(index)
            .map_or("", |(message, _)| &message.subject);
        let answer: Result<Message> = match pending.reply(ACK_LIMIT).await {
            Ok(answer) => Ok(answer),
            Err(RequestFailure::NoResponders) => Err(self.no_stream(api, subject).await),
            Err(failure @ (RequestFailure::Forbidden | RequestFailure::OtherReply(_))) => {
                Err(api.unanswered(subject, failure))
            }
            Err(failure) => {
                self.collect(api);
                return Err(end_of(&failure));
            }
        };
        let stored = answer.and_then(|answer| api.acknowledged(&answer.payload));
        let landed = self.answered(index, stored.map(drop));
        if landed.is_err() {
            self.collect(api);
        }
        landed
    }

    /// The error for a message that nobody took. JetStream is not asked again each time, because there may be thousands of
    /// such messages, and others behind them.
    async fn no_stream(&mut self, api: &Api, subject: &str) -> Error {
        if self.answered_at.is_some_and(|time| time.elapsed() < ANSWER_LASTS) {
            return no_stream(subject);
        }
        let error = api.no_stream(subject).await;
        self.answered_at = (error.kind == Kind::NoStream).then(Instant::now);
        error
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
        if let Some((message, _)) = self.messages.get(index)
            && !is_permanent(&error)
        {
            self.closed.insert(&message.subject);
        }
        self.decide(index, MessageFate::Refused(error));
    }

    fn decide(&mut self, index: usize, fate: MessageFate) {
        if let Some(undecided) = self.fates.get_mut(index) {
            *undecided = Some(fate);
        }
    }
}

/// What a request without an acknowledgement means for the round.
fn end_of(failure: &RequestFailure) -> RoundEnd {
    match failure {
        RequestFailure::TimedOut => RoundEnd::Silence,
        RequestFailure::NoInbox(_) => RoundEnd::NoReplies,
        _ => RoundEnd::Lost,
    }
}

/// The message's headers with a message id, by which JetStream recognises repetitions: the user's own id, if there is
/// one.
fn headers_of(message: &OutboxMessage) -> Headers {
    let mut headers = message.headers.clone();
    if !headers.iter().any(|(name, _)| name == MESSAGE_ID) {
        headers.push((MESSAGE_ID.into(), message.message_id.clone()));
    }
    headers
}
