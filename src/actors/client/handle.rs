//! A client as others use it: publishes, subscriptions and their messages, requests and round trips. In the actor
//! thread.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::interface::{InboxState, RequestFailure, SendFailure, SubscribeFailure};
use super::news::News;
use super::requests::{Accepts, PendingReply};
use super::shared::Shared;
use crate::actors::metrics::traffic::ClientTraffic;
use crate::nats::message::{Message, Outbound};
use crate::nats::wire::{self, ServerInfo};

/// Messages of a subscription that may wait to be taken. The client's task lets others take theirs between two reads,
/// so the handler's queue is what bounds waiting messages.
const SUBSCRIPTION_CAPACITY: usize = 1 << 18;

/// A client. Cheap to clone; the connection ends with the last clone and subscription.
#[derive(Clone)]
pub struct NatsClient(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    abandoned: CancellationToken,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.abandoned.cancel();
    }
}

impl fmt::Debug for NatsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NatsClient({})", self.info().server_name)
    }
}

impl NatsClient {
    /// A client that shares this with its task, which ends when `abandoned` is cancelled.
    pub(super) fn new(shared: Arc<Shared>, abandoned: CancellationToken) -> NatsClient {
        NatsClient(Arc::new(Handle { shared, abandoned }))
    }

    /// Ends the connection, whoever still has a clone.
    pub fn close(&self) {
        self.0.abandoned.cancel();
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }

    /// What the server says of itself, its account's limits included.
    pub fn info(&self) -> Arc<ServerInfo> {
        self.shared().info()
    }

    /// What the client has carried.
    pub fn traffic(&self) -> &ClientTraffic {
        &self.shared().traffic
    }

    /// What the server has reported since this was asked last.
    pub fn take_news(&self) -> News {
        self.shared().news.lock().take()
    }

    /// Whether replies to requests can come.
    pub fn inbox(&self) -> InboxState {
        self.shared().requests.inbox()
    }

    /// The subject of the replies to this client's requests.
    pub fn inbox_wildcard(&self) -> String {
        self.shared().requests.wildcard()
    }

    /// Whether the server has refused a message to this subject.
    pub fn is_forbidden(&self, subject: &str) -> bool {
        self.shared().news.lock().forbidden.contains(subject)
    }

    /// How many subscriptions the server has refused because there are too many. It does not say which.
    pub fn refused_for_number(&self) -> u64 {
        self.shared().refused_for_number()
    }

    /// A new subject for replies.
    pub fn new_inbox(&self) -> String {
        format!("{}.{}", self.shared().inbox_prefix, nuid::next())
    }

    /// Takes a message, which is sent soon; waits while much is to be sent. A call that waits may be overtaken by another
    /// one, so who wants an order begins the second call after the first has ended.
    pub async fn publish(&self, message: &Outbound) -> Result<(), SendFailure> {
        self.check(message)?;
        loop {
            let room = self.shared().written.notified();
            {
                let mut outgoing = self.shared().outgoing.lock();
                if outgoing.has_ended {
                    return Err(SendFailure::Lost);
                }
                if !outgoing.is_full() {
                    let size = wire::publish(&mut outgoing.buffer, message);
                    drop(outgoing);
                    self.shared().traffic.sent(size);
                    self.shared().wake.notify_one();
                    return Ok(());
                }
            }
            room.await;
        }
    }

    fn check(&self, message: &Outbound) -> Result<(), SendFailure> {
        if !is_word(&message.subject) || message.reply.as_deref().is_some_and(|reply| !is_word(reply)) {
            return Err(SendFailure::InvalidSubject);
        }
        // A server without headers ends the connection at a message with some.
        let info = self.info();
        let is_line = |text: &str| info.headers && !text.contains(['\r', '\n']);
        if !message
            .headers
            .iter()
            .all(|(name, value)| is_line(name) && is_line(value))
        {
            return Err(SendFailure::InvalidHeaders);
        }
        let limit = info.max_payload;
        if wire::size(message) as u64 > limit {
            return Err(SendFailure::TooLarge(limit));
        }
        Ok(())
    }

    /// Subscribes to a subject; whether the server takes the subscription, a round trip tells.
    pub fn subscribe(
        &self,
        subject: &str,
        queue_group: Option<&str>,
    ) -> Result<Subscriber, SubscribeFailure> {
        if !is_word(subject) || queue_group.is_some_and(|group| !is_word(group)) {
            return Err(SubscribeFailure::Invalid);
        }
        let shared = self.shared();
        let sid = shared.last_subscription.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, messages) = mpsc::channel(SUBSCRIPTION_CAPACITY);
        shared.subscriptions.lock().insert(sid, sender);
        let subscriber = Subscriber {
            messages,
            sid,
            client: self.clone(),
        };
        let is_open =
            shared.queue(|outgoing| wire::subscribe(&mut outgoing.buffer, subject, queue_group, sid));
        if is_open {
            Ok(subscriber)
        } else {
            Err(SubscribeFailure::Lost)
        }
    }

    /// Subscribes to a subject, and returns when the server has taken the subscription.
    pub async fn subscribe_confirmed(
        &self,
        subject: &str,
        queue_group: Option<&str>,
    ) -> Result<Subscriber, SubscribeFailure> {
        match self.try_subscribe(subject, queue_group).await {
            // Another subscription may have been meant.
            Err(SubscribeFailure::TooMany) => {
                let _alone = self.shared().alone.lock().await;
                self.try_subscribe(subject, queue_group).await
            }
            outcome => outcome,
        }
    }

    async fn try_subscribe(
        &self,
        subject: &str,
        queue_group: Option<&str>,
    ) -> Result<Subscriber, SubscribeFailure> {
        let before = {
            let mut news = self.shared().news.lock();
            news.refused.remove(subject);
            news.too_many
        };
        let subscriber = self.subscribe(subject, queue_group)?;
        self.round_trip().await.map_err(|_| SubscribeFailure::Lost)?;
        if self.shared().news.lock().refused.remove(subject) {
            Err(SubscribeFailure::Forbidden)
        } else if self.refused_for_number() > before {
            Err(SubscribeFailure::TooMany)
        } else {
            Ok(subscriber)
        }
    }

    fn unsubscribe(&self, sid: u64) {
        if self.shared().subscriptions.lock().remove(&sid).is_some() {
            self.shared()
                .queue(|outgoing| wire::unsubscribe(&mut outgoing.buffer, sid));
        }
    }

    /// Returns when the NATS server has read all that this client has sent before, and has said what it refuses of
    /// that. Ends only with the connection, or when the caller gives up.
    pub async fn round_trip(&self) -> Result<Duration, RequestFailure> {
        self.shared().round_trip().await
    }

    /// Publishes a request, whose reply is waited for later. Requests are published in the order of these calls.
    /// `accepts` tells which reply counts; without it the first does.
    pub async fn begin(
        &self,
        mut message: Outbound,
        accepts: Option<Accepts>,
    ) -> Result<PendingReply, RequestFailure> {
        let (pending, inbox) = self.shared().requests.expect(&message.subject, accepts)?;
        message.reply = Some(inbox);
        self.publish(&message).await?;
        Ok(pending)
    }

    /// Publishes a request and waits for the first reply, for `limit` in all.
    pub async fn request(&self, message: Outbound, limit: Duration) -> Result<Message, RequestFailure> {
        let began = Instant::now();
        let pending = timeout(limit, self.begin(message, None)).await;
        let pending = pending.map_err(|_| RequestFailure::TimedOut)??;
        pending.reply(limit.saturating_sub(began.elapsed())).await
    }
}

/// Whether the protocol can carry a subject or a queue group: not empty, without white space and control characters.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte > b' ' && byte != 0x7f)
}

/// A subscription, until it is dropped; keeps its client alive. The stream of its messages ends with the connection.
pub struct Subscriber {
    messages: mpsc::Receiver<Message>,
    sid: u64,
    client: NatsClient,
}

impl Subscriber {
    /// Ends the subscription; messages that have come can still be taken.
    pub fn unsubscribe(&mut self) {
        self.client.unsubscribe(self.sid);
        self.messages.close();
    }

    /// The next message that has come already; does not wait.
    pub fn try_next(&mut self) -> Option<Message> {
        self.messages.try_recv().ok()
    }
}

impl Stream for Subscriber {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.messages.poll_recv(cx)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.client.unsubscribe(self.sid);
    }
}
