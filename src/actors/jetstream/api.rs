//! JetStream: acknowledged publishes, and the requests to its API that buckets and stores are made of. One actor for
//! each connection, in the actor thread.
//!
//! Nothing of a stream is cached, so nothing is stale after a reload, a restart of NATS, or when somebody deletes
//! and re-creates a bucket; each call takes the client that the connection has at the moment.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{HeaderMap, StatusCode, Subject};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::actors::connection::requester::{RequestFailure, Requester};
use crate::actors::connection::status::ConnectionStatus;
use crate::error::{Error, Kind, Result};

/// JetStream's error codes that are told apart.
pub mod code {
    pub const CONSUMER_NOT_FOUND: u64 = 10014;
    pub const TOO_LARGE: u64 = 10054;
    pub const NOT_ENABLED: [u64; 3] = [10035, 10039, 10076];
    pub const STREAM_NOT_FOUND: u64 = 10059;
    pub const NO_MESSAGE_FOUND: u64 = 10037;
    pub const OTHER_STREAM: u64 = 10060;
    /// A refused Nats-Expected-Stream, -Last-Sequence, -Last-Msg-Id or -Last-Subject-Sequence.
    pub const EXPECTATIONS: [u64; 5] = [OTHER_STREAM, 10070, 10071, 10164, 10193];
    /// Storage of the server, the account or the stream; its messages, bytes or messages of a subject.
    pub const FULL: [u64; 6] = [10002, 10023, 10028, 10047, 10077, 10113];
}

/// The JetStream that a call means: a client and the prefix of the API's subjects.
#[derive(Clone)]
pub struct Api {
    pub client: Requester,
    pub domain: Option<String>,
    pub prefix: String,
    /// For each answer.
    pub timeout: Duration,
}

impl Api {
    /// `None` while the connection is not up. `domain` overrides the server's default.
    pub fn of(
        status: &watch::Receiver<ConnectionStatus>,
        domain: Option<String>,
        timeout: Duration,
    ) -> Option<Api> {
        let status = status.borrow();
        let client = status.client.clone()?;
        let domain = domain.or_else(|| status.domain.clone());
        Some(Api::to(client, domain, timeout))
    }

    /// By this client, in this domain.
    pub fn to(client: Requester, domain: Option<String>, timeout: Duration) -> Api {
        let prefix = domain
            .as_ref()
            .map_or("$JS.API".into(), |domain| format!("$JS.{domain}.API"));
        Api {
            client,
            domain,
            prefix,
            timeout,
        }
    }

    /// The subject under which JetStream of the domain takes what is published to a bucket's own subject.
    pub fn own_subject(&self, subject: &str) -> String {
        if self.domain.is_some() {
            format!("{}.{subject}", self.prefix)
        } else {
            subject.to_string()
        }
    }

    /// Why a call of async-nats's own has failed: this, unless the connection broke, of which it has no word.
    pub fn unless_lost(&self, error: Error) -> Error {
        match self.client.client().connection_state() {
            State::Disconnected => lost(),
            _ => error,
        }
    }

    /// A server without headers has no JetStream, and cannot say that nobody listens: it is not asked.
    pub fn check_server(&self) -> Result<()> {
        if self.client.client().server_info().headers {
            Ok(())
        } else {
            Err(self.unavailable("The server does not support headers, which JetStream needs."))
        }
    }

    /// A request to the API; null is an empty body, which some requests insist on.
    pub async fn request(&self, name: &str, body: &Value) -> Result<Value> {
        let answer = self.ask(name, body).await?;
        match answer.get("error") {
            Some(error) => Err(self.refused(error)),
            None => Ok(answer),
        }
    }

    /// The same; `None` if JetStream answers with this error code.
    pub async fn request_unless(&self, code: u64, name: &str, body: &Value) -> Result<Option<Value>> {
        let answer = self.ask(name, body).await?;
        match answer.get("error") {
            Some(error) if error.get("err_code").and_then(Value::as_u64) == Some(code) => Ok(None),
            Some(error) => Err(self.refused(error)),
            None => Ok(Some(answer)),
        }
    }

    async fn ask(&self, name: &str, body: &Value) -> Result<Value> {
        self.check_server()?;
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        let subject = format!("{}.{name}", self.prefix);
        let answer = match self.client.request(subject, None, body, self.timeout).await {
            Ok(answer) => answer,
            Err(RequestFailure::NoResponders) => {
                return Err(self.unavailable("No JetStream answers its API."));
            }
            Err(RequestFailure::TimedOut) => {
                return Err(Error::new(Kind::AckTimeout, "JetStream did not answer in time"));
            }
            Err(_) => return Err(lost()),
        };
        serde_json::from_slice(&answer.payload)
            .map_err(|_| Error::new(Kind::JetStreamRefused, "unintelligible answer of JetStream"))
    }

    /// Whether a stream exists.
    pub async fn has_stream(&self, stream: &str) -> Result<bool> {
        match self.request(&format!("STREAM.INFO.{stream}"), &Value::Null).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == Kind::BucketNotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Publishes and waits for the acknowledgement: the sequence in the stream.
    pub async fn publish(&self, subject: String, headers: Option<HeaderMap>, payload: Bytes) -> Result<u64> {
        self.check_server()?;
        match self
            .client
            .request(subject.clone(), headers, payload, self.timeout)
            .await
        {
            Ok(answer) => self.acknowledged(&answer.payload).map(|(sequence, _)| sequence),
            Err(RequestFailure::NoResponders) => Err(self.no_stream(&subject).await),
            Err(RequestFailure::TimedOut) => Err(no_ack(&subject)),
            Err(RequestFailure::TooLarge(why)) => Err(Error::new(
                Kind::PayloadTooLarge,
                "message is larger than the NATS server allows",
            )
            .cause(&why)),
            Err(_) => Err(lost()),
        }
    }

    /// Publishes to a subject that no domain has for itself.
    pub async fn publish_plain(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<u64> {
        match &self.domain {
            Some(domain) => self.publish_to_domain(domain, subject, headers, payload).await,
            None => self.publish(subject, headers, payload).await,
        }
    }

    /// As [`Api::publish`], but the stream must be in the domain. Streams of several domains may take the message,
    /// each with an acknowledgement of its own.
    async fn publish_to_domain(
        &self,
        domain: &str,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<u64> {
        self.check_server()?;
        let deadline = Instant::now() + self.timeout;
        let inbox: Subject = self.client.client().new_inbox().into();
        let mut answers = self
            .client
            .client()
            .subscribe(inbox.clone())
            .await
            .map_err(|_| lost())?;
        let headers = headers.unwrap_or_default();
        self.client
            .client()
            .publish_with_reply_and_headers(subject.clone(), inbox, headers, payload)
            .await
            .map_err(|error| {
                let refused = Error::new(Kind::JetStreamRefused, "could not publish");
                self.unless_lost(refused.detail(format!("{error}.")))
            })?;
        let mut elsewhere = None;
        loop {
            let answer = match timeout_at(deadline, answers.next()).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(lost()),
                Err(_) => return Err(elsewhere.unwrap_or_else(|| no_ack(&subject))),
            };
            if answer.status == Some(StatusCode::NO_RESPONDERS) {
                return Err(self.no_stream(&subject).await);
            }
            match self.acknowledged(&answer.payload)? {
                (sequence, Some(theirs)) if theirs == domain => return Ok(sequence),
                (_, theirs) => {
                    let theirs = theirs.unwrap_or_else(|| "none".into());
                    let detail = format!("A stream of domain \"{theirs}\" has taken the message.");
                    let message =
                        format!("no stream of domain \"{domain}\" acknowledged subject \"{subject}\"");
                    elsewhere = Some(Error::new(Kind::NoStream, message).detail(detail));
                }
            }
        }
    }

    /// Sequence and domain of an acknowledgement.
    pub fn acknowledged(&self, answer: &[u8]) -> Result<(u64, Option<String>)> {
        let not_an_ack = || {
            Error::new(
                Kind::JetStreamRefused,
                "what answered on the subject is not JetStream",
            )
        };
        let ack: Value = serde_json::from_slice(answer).map_err(|_| not_an_ack())?;
        if let Some(error) = ack.get("error") {
            return Err(self.refused(error));
        }
        let sequence = ack.get("seq").and_then(Value::as_u64).ok_or_else(not_an_ack)?;
        Ok((
            sequence,
            ack.get("domain").and_then(Value::as_str).map(String::from),
        ))
    }

    /// Nobody took a message: is there no stream for it, or no JetStream at all?
    pub async fn no_stream(&self, subject: &str) -> Error {
        match self.request("INFO", &Value::Null).await {
            Ok(_) => Error::new(Kind::NoStream, format!("no stream takes subject \"{subject}\"")),
            Err(error) => error,
        }
    }

    fn unavailable(&self, why: &str) -> Error {
        let message = match &self.domain {
            Some(domain) => format!("JetStream domain \"{domain}\" is not reachable"),
            None => "the NATS server or account has no JetStream".into(),
        };
        Error::new(Kind::JetStreamUnavailable, message).detail(why)
    }

    /// An error that JetStream itself reports.
    fn refused(&self, error: &Value) -> Error {
        let number = error.get("err_code").and_then(Value::as_u64).unwrap_or(0);
        let description = error
            .get("description")
            .and_then(Value::as_str)
            .unwrap_or("no description");
        let description = crate::findings::line(description);
        let (kind, message) = match number {
            _ if code::NOT_ENABLED.contains(&number) => {
                return self.unavailable(&format!("JetStream error {number}: {description}."));
            }
            code::STREAM_NOT_FOUND => (Kind::BucketNotFound, "bucket or stream does not exist"),
            code::TOO_LARGE => (Kind::PayloadTooLarge, "message is larger than the stream allows"),
            code::NO_MESSAGE_FOUND => (Kind::ObjectNotFound, "no message found"),
            _ if code::EXPECTATIONS.contains(&number) => {
                (Kind::ExpectationFailed, "the stream is not in the expected state")
            }
            _ if code::FULL.contains(&number) => (Kind::StreamFull, "the stream or its storage is full"),
            _ => (Kind::JetStreamRefused, "JetStream refused the request"),
        };
        let error = Error::new(kind, message).detail(format!("JetStream error {number}: {description}."));
        match number {
            code::OTHER_STREAM => {
                error.hint("The header Nats-Expected-Stream has to name the stream that takes the subject.")
            }
            _ => error,
        }
    }
}

pub fn lost() -> Error {
    Error::new(
        Kind::ConnectionLost,
        "the connection to the NATS server was lost while waiting for the answer",
    )
}

fn no_ack(subject: &str) -> Error {
    Error::new(
        Kind::AckTimeout,
        format!("no acknowledgement for subject \"{subject}\" in time"),
    )
}
