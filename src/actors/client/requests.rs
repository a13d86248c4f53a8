//! The requests of a client that wait for their replies. All replies come on one subscription; a reply's subject ends
//! with the request's number. In the actor thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::interface::RequestFailure;
use crate::nats::message::{Message, status};

pub(super) type ReplyOutcome = Result<Message, RequestFailure>;

/// A request that waits for its reply.
struct Waiter {
    answer: oneshot::Sender<ReplyOutcome>,
    /// The subject whose refusal fails the request: NATS reports a forbidden publish on the connection alone, by its
    /// subject.
    subject: String,
}

type Waiting = Mutex<HashMap<u64, Waiter>>;

/// The requests of a client.
pub(super) struct PendingRequests {
    /// A reply's subject is this prefix and the request's number.
    prefix: String,
    next: AtomicU64,
    waiting: Arc<Waiting>,
    is_inbox_refused: AtomicBool,
}

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
    pub fn arrived(mut self) -> Option<Result<Message, RequestFailure>> {
        self.reply.try_recv().ok()
    }
}

impl PendingRequests {
    pub(super) fn new(inbox_prefix: &str) -> PendingRequests {
        PendingRequests {
            prefix: format!("{inbox_prefix}.{}.", nuid::next()),
            next: AtomicU64::new(0),
            waiting: Arc::default(),
            is_inbox_refused: AtomicBool::new(false),
        }
    }

    /// The subject of the subscription of all replies.
    pub(super) fn wildcard(&self) -> String {
        format!("{}*", self.prefix)
    }

    pub(super) fn is_inbox(&self, subject: &str) -> bool {
        subject.starts_with(&self.prefix)
    }

    /// Adds a request to a subject; returns the request and the subject for its reply. Fails if no reply can come.
    pub(super) fn expect(&self, subject: &str) -> Result<(PendingReply, String), RequestFailure> {
        if self.is_inbox_refused.load(Ordering::Relaxed) {
            return Err(RequestFailure::InboxForbidden);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, reply) = oneshot::channel();
        let (waiting, subject) = (self.waiting.clone(), subject.to_string());
        waiting.lock().insert(number, Waiter { answer, subject });
        let request = Number { waiting, number };
        Ok((
            PendingReply { reply, request },
            format!("{}{number}", self.prefix),
        ))
    }

    /// A reply has come.
    pub(super) fn replied(&self, reply: Message) {
        let number = reply.subject.get(self.prefix.len()..);
        let number = number.and_then(|number| number.parse::<u64>().ok());
        let Some(waiter) = number.and_then(|number| self.waiting.lock().remove(&number)) else {
            return;
        };
        let answer = if reply.status == Some(status::NO_RESPONDERS) {
            Err(RequestFailure::NoResponders)
        } else {
            Ok(reply)
        };
        // The caller may have given up just now.
        let _ = waiter.answer.send(answer);
    }

    /// The user may not publish to this subject: the requests that were published to it fail.
    pub(super) fn forbidden(&self, subject: &str) {
        self.fail(|waiter| waiter.subject == subject, &RequestFailure::Forbidden);
    }

    /// The user may not subscribe to the subject of the replies: all requests fail, and later ones at once.
    pub(super) fn inbox_refused(&self) {
        self.is_inbox_refused.store(true, Ordering::Relaxed);
        self.fail(|_| true, &RequestFailure::InboxForbidden);
    }

    pub(super) fn is_inbox_refused(&self) -> bool {
        self.is_inbox_refused.load(Ordering::Relaxed)
    }

    fn fail(&self, which: impl Fn(&Waiter) -> bool, failure: &RequestFailure) {
        let mut waiting = self.waiting.lock();
        for (_, waiter) in waiting.extract_if(|_, waiter| which(waiter)) {
            // The caller may have given up just now.
            let _ = waiter.answer.send(Err(failure.clone()));
        }
    }

    /// The connection has ended: all requests fail.
    pub(super) fn end(&self) {
        self.waiting.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.expect("a runtime").block_on(test);
    }

    fn reply(subject: &str, status: Option<u16>) -> Message {
        Message {
            subject: subject.into(),
            status,
            ..Message::default()
        }
    }

    #[test]
    fn each_reply_finds_its_request() {
        run(async {
            let requests = PendingRequests::new("_INBOX");
            let (first, inbox) = requests.expect("a").expect("a request");
            let (second, other) = requests.expect("b").expect("a request");
            assert!(requests.is_inbox(&inbox) && inbox != other);
            requests.replied(reply(&other, Some(status::NO_RESPONDERS)));
            requests.replied(reply(&inbox, None));
            requests.replied(reply("_INBOX.unknown", None));
            let limit = Duration::from_secs(1);
            assert_eq!(first.reply(limit).await, Ok(reply(&inbox, None)));
            assert_eq!(second.reply(limit).await, Err(RequestFailure::NoResponders));
            assert!(requests.waiting.lock().is_empty());
        });
    }

    #[test]
    fn a_refusal_fails_those_whom_it_concerns() {
        run(async {
            let requests = PendingRequests::new("mine");
            let pending = |subject| requests.expect(subject).expect("a request").0;
            let (forbidden, other, given_up) = (pending("a"), pending("b"), pending("b"));
            drop(given_up);
            assert_eq!(requests.waiting.lock().len(), 2);
            requests.forbidden("a");
            assert_eq!(forbidden.arrived(), Some(Err(RequestFailure::Forbidden)));
            requests.inbox_refused();
            assert_eq!(other.arrived(), Some(Err(RequestFailure::InboxForbidden)));
            assert_eq!(requests.expect("c").err(), Some(RequestFailure::InboxForbidden));
        });
    }
}
