//! The requests of a client that wait for their replies. All replies come on one subscription; a reply's subject ends
//! with the request's number. In the actor thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::interface::{InboxState, RequestFailure};
use crate::nats::message::{Message, status};

pub(super) type ReplyOutcome = Result<Message, RequestFailure>;

/// Tells whether a reply is the one that a request waits for.
pub type Accepts = Box<dyn Fn(&Message) -> bool + Send>;

/// A request that waits for its reply.
struct Waiter {
    answer: oneshot::Sender<ReplyOutcome>,
    /// `None` if the first reply counts.
    accepts: Option<Accepts>,
    /// The last reply that does not count.
    other: Arc<Mutex<Option<Message>>>,
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
    inbox: Mutex<InboxState>,
}

/// A published request, whose reply can be waited for.
pub struct PendingReply {
    reply: oneshot::Receiver<ReplyOutcome>,
    other: Arc<Mutex<Option<Message>>>,
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
    /// Waits for the reply, for `limit` at most.
    pub async fn reply(self, limit: Duration) -> Result<Message, RequestFailure> {
        let PendingReply {
            reply,
            other,
            request,
        } = self;
        let outcome = timeout(limit, reply).await;
        drop(request);
        match outcome {
            Err(_) => Err(match other.lock().take() {
                Some(other) => RequestFailure::OtherReply(Box::new(other)),
                None => RequestFailure::TimedOut,
            }),
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
            inbox: Mutex::default(),
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
    pub(super) fn expect(
        &self,
        subject: &str,
        accepts: Option<Accepts>,
    ) -> Result<(PendingReply, String), RequestFailure> {
        let inbox = self.inbox();
        if inbox != InboxState::Open {
            return Err(RequestFailure::NoInbox(inbox));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, reply) = oneshot::channel();
        let other = Arc::default();
        let waiter = Waiter {
            answer,
            accepts,
            other: Arc::clone(&other),
            subject: subject.to_string(),
        };
        let waiting = self.waiting.clone();
        waiting.lock().insert(number, waiter);
        let request = Number { waiting, number };
        let pending = PendingReply {
            reply,
            other,
            request,
        };
        Ok((pending, format!("{}{number}", self.prefix)))
    }

    /// A reply has come.
    pub(super) fn replied(&self, reply: Message) {
        let number = reply.subject.get(self.prefix.len()..);
        let number = number.and_then(|number| number.parse::<u64>().ok());
        let Some(number) = number else { return };
        let mut waiting = self.waiting.lock();
        let is_nobody = reply.status == Some(status::NO_RESPONDERS);
        if let Some(waiter) = waiting.get(&number)
            && !is_nobody
            && waiter.accepts.as_ref().is_some_and(|accepts| !accepts(&reply))
        {
            *waiter.other.lock() = Some(reply);
            return;
        }
        let Some(waiter) = waiting.remove(&number) else {
            return;
        };
        drop(waiting);
        let answer = if is_nobody {
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

    /// Whether replies can come has changed. If none can, all requests fail, and later ones at once.
    pub(super) fn set_inbox(&self, inbox: InboxState) {
        *self.inbox.lock() = inbox;
        if inbox != InboxState::Open {
            self.fail(|_| true, &RequestFailure::NoInbox(inbox));
        }
    }

    pub(super) fn inbox(&self) -> InboxState {
        *self.inbox.lock()
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
            let (first, inbox) = requests.expect("a", None).expect("a request");
            let (second, other) = requests.expect("b", None).expect("a request");
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
            let pending = |subject| requests.expect(subject, None).expect("a request").0;
            let (forbidden, other, given_up) = (pending("a"), pending("b"), pending("b"));
            drop(given_up);
            assert_eq!(requests.waiting.lock().len(), 2);
            requests.forbidden("a");
            assert_eq!(forbidden.arrived(), Some(Err(RequestFailure::Forbidden)));
            let forbidden = RequestFailure::NoInbox(InboxState::Forbidden);
            requests.set_inbox(InboxState::Forbidden);
            assert_eq!(other.arrived(), Some(Err(forbidden.clone())));
            assert_eq!(requests.expect("c", None).err(), Some(forbidden));
        });
    }

    #[test]
    fn what_was_not_asked_for_does_not_count() {
        run(async {
            let requests = PendingRequests::new("_INBOX");
            let wants_number = || -> Option<Accepts> { Some(Box::new(|reply| reply.payload == "1")) };
            let answer = |inbox: &str, payload: &'static str| Message {
                payload: payload.into(),
                ..reply(inbox, None)
            };
            let (pending, inbox) = requests.expect("a", wants_number()).expect("a request");
            requests.replied(answer(&inbox, "x"));
            requests.replied(answer(&inbox, "1"));
            assert_eq!(pending.arrived(), Some(Ok(answer(&inbox, "1"))));
            let (pending, inbox) = requests.expect("a", wants_number()).expect("a request");
            requests.replied(answer(&inbox, "x"));
            let other = RequestFailure::OtherReply(Box::new(answer(&inbox, "x")));
            assert_eq!(pending.reply(Duration::from_millis(1)).await, Err(other));
        });
    }
}
