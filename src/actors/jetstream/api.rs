//! JetStream for the time of one call: acknowledged publishes, and the API requests that buckets and stores are made
//! of. In the actor thread.
//!
//! Nothing about a stream is cached, so nothing is stale after a reload, a restart of NATS, or when somebody deletes
//! and re-creates a bucket. Each call takes the client that the connection has at that moment.

use std::time::{Duration, Instant};

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use super::answers::{ApiError, StreamInfo, parse};
use super::refusals::{refused, unavailable};
use crate::actors::client::{Accepts, NatsClient, PendingReply, RequestFailure};
use crate::actors::connection::delivery::unsent;
use crate::actors::connection::status::ConnectionStatus;
use crate::error::{Error, Kind, Result};
use crate::nats::headers::Headers;
use crate::nats::message::{Message, Outbound};

/// JetStream as a call uses it: a client, a domain, and the prefix of the API's subjects.
#[derive(Clone)]
pub struct Api {
    pub client: NatsClient,
    /// The JetStream domain; `None` for the JetStream of the server that the client is connected to.
    pub domain: Option<String>,
    /// Prefix of the API's subjects, without a dot at its end.
    pub prefix: String,
    /// Longest wait for each answer.
    pub timeout: Duration,
}

impl Api {
    /// JetStream on a connection; `None` while the connection is not up. `domain` overrides the foreign server's
    /// default.
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

    /// JetStream through this client, in this domain.
    pub fn to(client: NatsClient, domain: Option<String>, timeout: Duration) -> Api {
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

    /// The subject to publish to for a bucket's own subject: in a domain, with the domain's API prefix.
    pub fn own_subject(&self, subject: &str) -> String {
        if self.domain.is_some() {
            format!("{}.{subject}", self.prefix)
        } else {
            subject.to_string()
        }
    }

    /// Fails if the server does not support headers. Such a server has no JetStream and cannot report that there are no
    /// responders, so a request would time out.
    pub fn check_server(&self) -> Result<()> {
        if self.client.info().headers {
            Ok(())
        } else {
            Err(unavailable(
                self.domain.as_deref(),
                "The server does not support headers, which JetStream needs.",
            ))
        }
    }

    /// Sends a request to the API and parses the answer. A null `body` is sent as an empty one, which some requests
    /// insist on.
    pub async fn request<T: DeserializeOwned>(&self, name: &str, body: &Value) -> Result<T> {
        self.ask(name, body)
            .await?
            .map_err(|error| refused(self.domain.as_deref(), &error))
    }

    /// Like [`Api::request`], where nothing of the answer matters.
    pub async fn order(&self, name: &str, body: &Value) -> Result<()> {
        self.request::<IgnoredAny>(name, body).await.map(drop)
    }

    /// Like [`Api::request`]; `None` if JetStream answers with this error code.
    pub async fn request_unless<T: DeserializeOwned>(
        &self,
        code: ErrorCode,
        name: &str,
        body: &Value,
    ) -> Result<Option<T>> {
        match self.ask(name, body).await? {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.err_code == code => Ok(None),
            Err(error) => Err(refused(self.domain.as_deref(), &error)),
        }
    }

    /// Like [`Api::request`]; the inner result is the error that JetStream reports.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        name: &str,
        body: &Value,
    ) -> Result<std::result::Result<T, ApiError>> {
        self.check_server()?;
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        let subject = format!("{}.{name}", self.prefix);
        let request = Outbound {
            subject: subject.clone(),
            payload: body,
            ..Outbound::default()
        };
        match self.client.request(request, self.timeout).await {
            Ok(answer) => parse(&answer.payload),
            Err(RequestFailure::NoResponders) => Err(unavailable(
                self.domain.as_deref(),
                "No JetStream answers its API.",
            )),
            Err(RequestFailure::TimedOut) => Err(no_answer()),
            Err(failure) => Err(self.unanswered(&subject, failure)),
        }
    }

    /// The error for a request to a subject that nothing has answered.
    pub fn unanswered(&self, subject: &str, failure: RequestFailure) -> Error {
        match failure {
            RequestFailure::ClientLost => lost(),
            failure => unsent(&self.client, subject, failure),
        }
    }

    /// Information on a stream; `None` if the stream does not exist.
    pub async fn stream_info(&self, stream: &str) -> Result<Option<StreamInfo>> {
        let name = format!("STREAM.INFO.{stream}");
        self.request_unless(ErrorCode::STREAM_NOT_FOUND, &name, &Value::Null)
            .await
    }

    /// Whether a stream exists.
    pub async fn has_stream(&self, stream: &str) -> Result<bool> {
        Ok(self.stream_info(stream).await?.is_some())
    }

    /// Publishes a message and waits for the acknowledgement; returns the message's sequence in the stream. Others may
    /// answer on the subject too, and do not count.
    pub async fn publish(&self, subject: String, headers: Headers, payload: Bytes) -> Result<u64> {
        self.publish_and_wait(None, subject, headers, payload).await
    }

    /// Like [`Api::publish`], for a subject that is the same in every domain: a stream of this domain has to
    /// acknowledge it. Streams of several domains may take the message, and each acknowledges it.
    pub async fn publish_plain(&self, subject: String, headers: Headers, payload: Bytes) -> Result<u64> {
        self.publish_and_wait(self.domain.as_deref(), subject, headers, payload)
            .await
    }

    async fn publish_and_wait(
        &self,
        domain: Option<&str>,
        subject: String,
        headers: Headers,
        payload: Bytes,
    ) -> Result<u64> {
        let began = Instant::now();
        let pending = self.begin(domain, subject, headers, payload).await?;
        pending
            .acknowledged(self.timeout.saturating_sub(began.elapsed()))
            .await
    }

    /// Publishes a message as [`Api::publish_plain`] does, whose acknowledgement is waited for later. Messages are
    /// published in the order of these calls, if each begins after the one before has ended.
    pub async fn begin_plain(&self, subject: String, payload: Bytes) -> Result<PendingAck<'_>> {
        self.begin(self.domain.as_deref(), subject, Headers::new(), payload)
            .await
    }

    async fn begin(
        &self,
        domain: Option<&str>,
        subject: String,
        headers: Headers,
        payload: Bytes,
    ) -> Result<PendingAck<'_>> {
        self.check_server()?;
        let request = Outbound {
            subject: subject.clone(),
            reply: None,
            headers,
            payload,
        };
        let begun = timeout(self.timeout, self.client.begin(request, accepts_ack(domain))).await;
        let reply = begun.map_err(|_| no_ack(&subject))?;
        let reply = reply.map_err(|failure| self.unanswered(&subject, failure))?;
        Ok(PendingAck {
            api: self,
            domain: domain.map(String::from),
            subject,
            reply,
        })
    }

    /// Parses an acknowledgement. Fails with the reason why JetStream refused the message.
    pub fn acknowledged(&self, answer: &[u8]) -> Result<PublishAck> {
        match parse(answer) {
            Ok(Ok(ack)) => Ok(ack),
            Ok(Err(error)) => Err(refused(self.domain.as_deref(), &error)),
            Err(_) => Err(Error::new(
                Kind::JetStreamRefused,
                "what answered on the subject is not JetStream",
            )),
        }
    }

    /// The error for a message that nobody took: no stream takes its subject, or there is no JetStream at all.
    pub async fn no_stream(&self, subject: &str) -> Error {
        match self.order("INFO", &Value::Null).await {
            Ok(()) => no_stream(subject),
            // Without the right to ask, what the server has said of the subject is all there is.
            Err(error) if error.kind == Kind::PermissionDenied => no_stream(subject),
            Err(error) => error,
        }
    }

    /// The error for a message that only others have answered.
    fn answered_elsewhere(&self, domain: Option<&str>, subject: &str, other: Box<Message>) -> Error {
        let ack = parse::<PublishAck>(&other.payload);
        let (Some(domain), Ok(Ok(ack))) = (domain, ack) else {
            return self.unanswered(subject, RequestFailure::OtherReply(other));
        };
        let theirs = if ack.domain.is_empty() {
            "none"
        } else {
            &ack.domain
        };
        let message = format!("no stream of domain \"{domain}\" acknowledged subject \"{subject}\"");
        Error::new(Kind::NoStream, message)
            .detail(format!("A stream of domain \"{theirs}\" has taken the message."))
    }
}

/// A published message whose acknowledgement can be waited for.
pub struct PendingAck<'a> {
    api: &'a Api,
    domain: Option<String>,
    subject: String,
    reply: PendingReply,
}

impl PendingAck<'_> {
    /// Waits for the acknowledgement, for `limit` at most; returns the message's sequence in the stream.
    pub async fn acknowledged(self, limit: Duration) -> Result<u64> {
        let PendingAck {
            api,
            domain,
            subject,
            reply,
        } = self;
        match reply.reply(limit).await {
            Ok(answer) => api.acknowledged(&answer.payload).map(|ack| ack.sequence),
            Err(RequestFailure::NoResponders) => Err(api.no_stream(&subject).await),
            Err(RequestFailure::TimedOut) => Err(no_ack(&subject)),
            Err(RequestFailure::OtherReply(other)) => {
                Err(api.answered_elsewhere(domain.as_deref(), &subject, other))
            }
            Err(failure) => Err(api.unanswered(&subject, failure)),
        }
    }
}

/// Tells acknowledgements and refusals of JetStream from what others answer on the same subject. With a domain, the
/// acknowledgement has to be of a stream of that domain.
pub fn accepts_ack(domain: Option<&str>) -> Option<Accepts> {
    let domain = domain.map(String::from);
    Some(Box::new(move |reply| match parse::<PublishAck>(&reply.payload) {
        Ok(Ok(ack)) => domain.as_ref().is_none_or(|domain| *domain == ack.domain),
        Ok(Err(error)) => error.err_code.0 != 0,
        Err(_) => false,
    }))
}

/// The error for a subject that no stream takes.
pub fn no_stream(subject: &str) -> Error {
    Error::new(Kind::NoStream, format!("no stream takes subject \"{subject}\""))
}

/// The error for a request to the API that was not answered. It has a hint of its own: the kind's hint is about writes.
pub fn no_answer() -> Error {
    Error::new(Kind::AckTimeout, "JetStream did not answer in time").hint(
        "litmus_pgnats.jetstream_timeout sets the time. Check the JetStream cluster and the option domain.",
    )
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
