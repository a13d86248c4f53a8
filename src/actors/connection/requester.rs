//! Requests on a NATS client: one inbox subscription, and the requests that wait for their replies. In the actor
//! thread.
//!
//! async-nats has requests of its own, but keeps a request that nobody waits for any longer until the connection ends,
//! about 0.7 KB each. Here a request is forgotten when its future is dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message, PublishError, PublishErrorKind, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::actors::base::tasks;
use crate::actors::metrics::traffic::{ClientTraffic, wire_size};

/// First wait for the answer to a round trip, before the round trip is repeated; each further wait is twice as long.
const ROUND_TRIP_LIMIT: Duration = Duration::from_secs(2);

/// Why a request has no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestFailure {
    NoResponders,
    TimedOut,
    /// The message is too large; with async-nats's explanation.
    TooLarge(String),
    InvalidSubject,
    /// The user may not publish to the subject.
    Forbidden,
    /// The connection broke.
    ClientLost,
}

/// A client that can send requests. Cheap to clone; the inbox subscription ends with the last clone.
#[derive(Clone, Debug)]
pub struct Requester {
    client: Client,
    traffic: ClientTraffic,
    inbox: Arc<Inbox>,
}

#[derive(Debug)]
struct Inbox {
    /// A reply's subject is this prefix and the request's number.
    prefix: String,
    next: AtomicU64,
    waiting: Arc<Waiting>,
    /// The user may not subscribe to the inbox, so no reply comes.
    is_refused: AtomicBool,
    /// Dropped with the inbox, which ends the task that reads the subscription and keeps the client alive.
    _open: oneshot::Sender<()>,
}

type ReplyOutcome = Result<Message, RequestFailure>;

/// A request that waits for its reply.
#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<ReplyOutcome>,
    /// The subject whose refusal fails the request: NATS reports a forbidden publish on the connection alone, by its
    /// subject.
    subject: String,
}

type Replies = HashMap<u64, Waiter>;

type Waiting = Mutex<Replies>;

/// A published request, whose reply can be waited for.
pub struct PendingReply {
    reply: oneshot::Receiver<ReplyOutcome>,
    request: Number,
}

/// The number of a request, which is forgotten when this is dropped.
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
    /// Waits for the first reply, for `limit` at most.
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

    /// The reply, if it has arrived already; does not wait.
    pub fn arrived(mut self) -> Option<ReplyOutcome> {
        self.reply.try_recv().ok()
    }
}

impl Requester {
    /// Subscribes to the client's inbox.
    pub async fn start(client: Client) -> Result<Requester, RequestFailure> {
        let prefix = format!("{}.", client.new_inbox());
        let replies = client
            .subscribe(format!("{prefix}*"))
            .await
            .map_err(|_| RequestFailure::ClientLost)?;
        let waiting = Arc::new(Waiting::default());
        let (open, closed) = oneshot::channel();
        let delivery = deliver(replies, prefix.len(), waiting.clone(), closed);
        tasks::spawn_vital("replies of a NATS connection", delivery);
        let inbox = Inbox {
            prefix,
            next: AtomicU64::new(0),
            waiting,
            is_refused: AtomicBool::new(false),
            _open: open,
        };
        Ok(Requester {
            traffic: ClientTraffic::new(client.statistics()),
            client,
            inbox: Arc::new(inbox),
        })
    }

    /// The client, for everything but publishes, which [`Requester::publish`] counts.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the client has carried.
    pub fn traffic(&self) -> &ClientTraffic {
        &self.traffic
    }

    /// Hands a message to the client, and counts its bytes.
    pub async fn publish(&self, message: OutboundMessage) -> Result<(), PublishError> {
        let size = wire_size(&message);
        self.client.publish_message(message).await?;
        self.traffic.sent(size);
        Ok(())
    }

    /// Returns when the NATS server has read all that this client has sent before: a message that the client publishes
    /// to its own inbox comes back behind that. Unlike a request to a subject without responders, this needs nothing of
    /// a server but publish and subscribe. A server that forbids the publish has read all that came before it as well.
    /// Ends only with the client, or when the caller gives up.
    pub async fn round_trip(&self) -> Result<(), RequestFailure> {
        let mut limit = ROUND_TRIP_LIMIT;
        loop {
            match self.try_round_trip(limit).await {
                Ok(_) | Err(RequestFailure::Forbidden) => return Ok(()),
                // async-nats drops what the server reports if too much comes at once, so a refusal may be lost.
                Err(RequestFailure::TimedOut) => limit = limit.saturating_mul(2),
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn try_round_trip(&self, limit: Duration) -> Result<Message, RequestFailure> {
        let (pending, inbox) = self.expect(str::to_string);
        let is_refused = self.inbox.is_refused.load(Ordering::Relaxed);
        let is_repeated = limit > ROUND_TRIP_LIMIT;
        // No reply comes to a refused inbox, but then the server refuses a subscription of the reply's own subject too,
        // and says so after it has read all that came before.
        let _refused = if is_refused || is_repeated {
            let subscribed = self.client.subscribe(inbox.clone()).await;
            Some(subscribed.map_err(|_| RequestFailure::ClientLost)?)
        } else {
            None
        };
        if !is_refused {
            self.publish_request(inbox, None, None, Bytes::new()).await?;
        }
        pending.reply(limit).await
    }

    /// Adds a request that waits, and returns it with its inbox. `published_to` makes from the inbox the subject whose
    /// refusal fails the request.
    fn expect(&self, published_to: impl FnOnce(&str) -> String) -> (PendingReply, String) {
        let number = self.inbox.next.fetch_add(1, Ordering::Relaxed);
        let inbox = format!("{}{number}", self.inbox.prefix);
        let subject = published_to(&inbox);
        let (answer, reply) = oneshot::channel();
        let waiting = self.inbox.waiting.clone();
        waiting.lock().insert(number, Waiter { answer, subject });
        let request = Number { waiting, number };
        (PendingReply { reply, request }, inbox)
    }

    /// Whether a subject is one of this client's reply inboxes.
    pub fn is_inbox(&self, subject: &str) -> bool {
        subject.starts_with(&self.inbox.prefix)
    }

    /// NATS has refused a publish to this subject: the requests that were published to it fail.
    pub fn forbidden(&self, subject: &str) {
        let mut waiting = self.inbox.waiting.lock();
        for (_, waiter) in waiting.extract_if(|_, waiter| waiter.subject == subject) {
            // The caller may have given up just now.
            let _ = waiter.answer.send(Err(RequestFailure::Forbidden));
        }
    }

    /// NATS has refused a subscription of this subject. Without its inbox the client gets no reply; what waits for one
    /// in a round trip tries another way.
    pub fn subscription_refused(&self, subject: &str) {
        let is_own = subject.strip_prefix(&self.inbox.prefix);
        if is_own != Some("*") {
            return self.forbidden(subject);
        }
        self.inbox.is_refused.store(true, Ordering::Relaxed);
        let is_round_trip = |waiter: &Waiter| self.is_inbox(&waiter.subject);
        let mut waiting = self.inbox.waiting.lock();
        for (_, waiter) in waiting.extract_if(|_, waiter| is_round_trip(waiter)) {
            // The caller may have given up just now.
            let _ = waiter.answer.send(Err(RequestFailure::TimedOut));
        }
    }

    /// Publishes a request, whose reply is waited for later. Requests are published in the order of these calls.
    pub async fn begin(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PendingReply, RequestFailure> {
        let (pending, inbox) = self.expect(|_| subject.clone());
        self.publish_request(subject, Some(inbox), Some(headers), payload)
            .await?;
        Ok(pending)
    }

    async fn publish_request(
        &self,
        subject: String,
        reply: Option<String>,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), RequestFailure> {
        let message = OutboundMessage {
            subject: subject.into(),
            reply: reply.map(Into::into),
            payload,
            headers,
        };
        self.publish(message).await.map_err(|error| unsent(&error))
    }

    /// Publishes a request and waits for the first reply, for `limit` in all.
    pub async fn request(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        limit: Duration,
    ) -> Result<Message, RequestFailure> {
        let (pending, inbox) = self.expect(|_| subject.clone());
        let ask = self.publish_request(subject, Some(inbox), headers, payload);
        let began = Instant::now();
        timeout(limit, ask)
            .await
            .map_err(|_| RequestFailure::TimedOut)??;
        pending.reply(limit.saturating_sub(began.elapsed())).await
    }
}

fn unsent(error: &PublishError) -> RequestFailure {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => RequestFailure::TooLarge(error.to_string()),
        PublishErrorKind::InvalidSubject => RequestFailure::InvalidSubject,
        PublishErrorKind::Send => RequestFailure::ClientLost,
    }
}

/// Passes replies to the requests that wait for them, until the connection or the requester ends.
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
            let is_nobody = reply.status == Some(StatusCode::NO_RESPONDERS);
            let answer = if is_nobody {
                Err(RequestFailure::NoResponders)
            } else {
                Ok(reply)
            };
            // The caller may have given up just now.
            let _ = waiter.answer.send(answer);
        }
    }
    waiting.lock().clear();
}
