//! Requests on a NATS client: one inbox subscription, and who waits for which reply. In the actor thread.
//!
//! async-nats has the same for itself, but remembers a request that nobody waits for any longer until the connection
//! ends, about 0.7 KB each; here it is forgotten when its future is dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap, Message, PublishError, PublishErrorKind, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Why a request has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    NoResponders,
    TimedOut,
    /// With what the client says of it.
    TooLarge(String),
    InvalidSubject,
    /// The user may not publish there.
    Forbidden,
    /// The connection broke.
    ClientLost,
}

/// A client that can ask. Cheap to clone; the subscription ends with the last clone.
#[derive(Clone, Debug)]
pub struct Requester {
    client: Client,
    inbox: Arc<Inbox>,
}

#[derive(Debug)]
struct Inbox {
    /// The replies' subject is this and a number.
    prefix: String,
    next: AtomicU64,
    waiting: Arc<Waiting>,
    /// Dropped with the inbox; ends the task that reads the subscription, which keeps the client alive.
    _open: oneshot::Sender<()>,
}

type ReplyOutcome = Result<Message, RequestFailure>;

/// Somebody who waits for a reply.
#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<ReplyOutcome>,
    /// Of what was begun: NATS says on the connection alone that it forbids a subject.
    subject: Option<String>,
}

type Replies = HashMap<u64, Waiter>;

#[derive(Debug, Default)]
struct Waiting(Mutex<Replies>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Replies> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that was published.
pub struct PendingReply {
    reply: oneshot::Receiver<ReplyOutcome>,
    request: Number,
}

/// Forgets a request when it is dropped.
struct Number {
    waiting: Arc<Waiting>,
    number: u64,
}

impl Drop for Number {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.number);
    }
}

impl PendingReply {
    /// Waits for the first reply.
    pub async fn reply(self, limit: Duration) -> Result<Message, RequestFailure> {
        let PendingReply { reply, request } = self;
        let outcome = timeout(limit, reply).await;
        drop(request);
        match outcome {
            Err(_) => Err(RequestFailure::TimedOut),
            Ok(Err(_)) => Err(RequestFailure::ClientLost),
            Ok(Ok(answer)) => answer,
        }
    }

    /// The reply that is there already, if it is.
    pub fn arrived(mut self) -> Option<ReplyOutcome> {
        self.reply.try_recv().ok()
    }
}

impl Requester {
    /// Subscribes the client's inbox.
    pub async fn start(client: Client) -> Result<Requester, RequestFailure> {
        let prefix = format!("{}.", client.new_inbox());
        let replies = client
            .subscribe(format!("{prefix}*"))
            .await
            .map_err(|_| RequestFailure::ClientLost)?;
        let waiting = Arc::new(Waiting::default());
        let (open, closed) = oneshot::channel();
        tokio::spawn(deliver(replies, prefix.len(), waiting.clone(), closed));
        let inbox = Inbox {
            prefix,
            next: AtomicU64::new(0),
            waiting,
            _open: open,
        };
        Ok(Requester {
            client,
            inbox: Arc::new(inbox),
        })
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns when the NATS server has taken in all that this client has said before: what it sends to itself comes
    /// back behind that. Unlike a request that nobody answers, it needs nothing but publish and subscribe of a server.
    pub async fn round_trip(&self) -> Result<(), RequestFailure> {
        let (begun, inbox) = self.expect(None);
        let sent = self.client.publish(inbox, Bytes::new()).await;
        sent.map_err(|error| unsent(&error))?;
        begun
            .reply
            .await
            .map(drop)
            .map_err(|_| RequestFailure::ClientLost)
    }

    /// Somebody will wait for what comes to this inbox.
    fn expect(&self, subject: Option<String>) -> (PendingReply, String) {
        let number = self.inbox.next.fetch_add(1, Ordering::Relaxed);
        let (answer, reply) = oneshot::channel();
        let waiting = self.inbox.waiting.clone();
        waiting.lock().insert(number, Waiter { answer, subject });
        let request = Number { waiting, number };
        let inbox = format!("{}{number}", self.inbox.prefix);
        (PendingReply { reply, request }, inbox)
    }

    /// Whether replies to this client come there.
    pub fn is_inbox(&self, subject: &str) -> bool {
        subject.starts_with(&self.inbox.prefix)
    }

    /// NATS has refused what was published to a subject: nobody waits for its reply any longer.
    pub fn forbidden(&self, subject: &str) {
        let mut waiting = self.inbox.waiting.lock();
        for (_, waiter) in waiting.extract_if(|_, waiter| waiter.subject.as_deref() == Some(subject)) {
            let _ = waiter.answer.send(Err(RequestFailure::Forbidden));
        }
    }

    /// Publishes a request; the reply is waited for later. What is begun in an order is published in that order.
    pub async fn begin(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PendingReply, RequestFailure> {
        let (begun, inbox) = self.expect(Some(subject.clone()));
        let sent = self
            .client
            .publish_with_reply_and_headers(subject, inbox, headers, payload)
            .await;
        sent.map_err(|error| unsent(&error))?;
        Ok(begun)
    }

    /// Publishes a request and waits for the first reply.
    pub async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        limit: Duration,
    ) -> Result<Message, RequestFailure> {
        let (begun, inbox) = self.expect(None);
        let ask = async {
            match headers {
                Some(headers) => {
                    self.client
                        .publish_with_reply_and_headers(subject, inbox, headers, payload)
                        .await
                }
                None => self.client.publish_with_reply(subject, inbox, payload).await,
            }
            .map_err(|error| unsent(&error))
        };
        let began = Instant::now();
        timeout(limit, ask)
            .await
            .map_err(|_| RequestFailure::TimedOut)??;
        begun.reply(limit.saturating_sub(began.elapsed())).await
    }
}

fn unsent(error: &PublishError) -> RequestFailure {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => RequestFailure::TooLarge(error.to_string()),
        PublishErrorKind::InvalidSubject => RequestFailure::InvalidSubject,
        PublishErrorKind::Send => RequestFailure::ClientLost,
    }
}

/// Brings replies to those who wait, until the connection or the requester ends.
async fn deliver(
    mut replies: Subscriber,
    prefix: usize,
    waiting: Arc<Waiting>,
    mut closed: oneshot::Receiver<()>,
) {
    loop {
        let reply = tokio::select! {
            reply = replies.next() => reply,
            _ = &mut closed => break,
        };
        let Some(reply) = reply else { break };
        let number = reply.subject.get(prefix..).and_then(|number| number.parse().ok());
        let waiter = number.and_then(|number: u64| waiting.lock().remove(&number));
        if let Some(waiter) = waiter {
            // It may have been given up just now.
            let is_nobody = reply.status == Some(StatusCode::NO_RESPONDERS);
            let answer = if is_nobody {
                Err(RequestFailure::NoResponders)
            } else {
                Ok(reply)
            };
            let _ = waiter.answer.send(answer);
        }
    }
    waiting.lock().clear();
}
