//! What a client's handle and its task share: the bytes that go out, the subscriptions, the requests that wait, and what
//! the server has said of itself. In the actor thread.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::interface::{InboxState, RequestFailure};
use super::news::NewsDesk;
use super::requests::PendingRequests;
use crate::actors::metrics::traffic::ClientTraffic;
use crate::nats::message::Message;
use crate::nats::server_error::ServerError;
use crate::nats::wire::{self, ServerInfo, ServerOp};

/// Number of the subscription of the replies to requests.
pub(super) const REPLIES: u64 = 1;
/// Senders wait when so many bytes are to be written.
const HIGH_WATER: usize = 256 * 1024;
/// A server that leaves PINGs unanswered for so long is given up.
const PATIENCE: Duration = Duration::from_millis(19_900);
/// However much moves, a PING is answered within this time.
const LONGEST_PATIENCE: Duration = Duration::from_secs(240);
/// A server has no reason to send more of its own lines than this in a second.
const MOST_LINES: u32 = 1000;

/// Bytes that go out, and the PINGs among them.
#[derive(Default)]
pub(super) struct OutputQueue {
    pub(super) buffer: Vec<u8>,
    /// When the PINGs were queued that the server has not answered, and who waits for the answers.
    pings: VecDeque<(Instant, Option<oneshot::Sender<()>>)>,
    pub(super) has_ended: bool,
}

impl OutputQueue {
    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= HIGH_WATER
    }

    /// Queues a PING; `waiter` is told when the server has answered.
    pub(super) fn ping(&mut self, waiter: Option<oneshot::Sender<()>>) {
        self.buffer.extend_from_slice(wire::PING);
        self.pings.push_back((Instant::now(), waiter));
    }
}

/// What the handle and the task of a client share.
pub(super) struct Shared {
    pub(super) outgoing: Mutex<OutputQueue>,
    /// Told when there is something to write.
    pub(super) wake: Notify,
    /// Told when something was written, and when the connection has ended.
    pub(super) written: Notify,
    info: Mutex<Arc<ServerInfo>>,
    pub(super) subscriptions: Mutex<HashMap<u64, mpsc::Sender<Message>>>,
    pub(super) last_subscription: AtomicU64,
    pub(super) requests: PendingRequests,
    pub(super) news: Mutex<NewsDesk>,
    pub(super) traffic: ClientTraffic,
    /// Held while one subscription is made and confirmed alone, because the server does not say which it refuses for
    /// their number.
    pub(super) alone: tokio::sync::Mutex<()>,
    /// Beginning of the subjects that replies go to.
    pub(super) inbox_prefix: String,
}

/// What the task has to do after the server has said something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    /// The connection's actor has to be told that there is news.
    Tell,
}

impl Shared {
    pub(super) fn new(info: ServerInfo, requests: PendingRequests, inbox_prefix: String) -> Shared {
        Shared {
            outgoing: Mutex::default(),
            wake: Notify::new(),
            written: Notify::new(),
            info: Mutex::new(Arc::new(info)),
            subscriptions: Mutex::default(),
            last_subscription: AtomicU64::new(REPLIES),
            requests,
            news: Mutex::default(),
            traffic: ClientTraffic::default(),
            alone: tokio::sync::Mutex::default(),
            inbox_prefix,
        }
    }

    pub(super) fn info(&self) -> Arc<ServerInfo> {
        self.info.lock().clone()
    }

    /// Queues what `write` appends, without a wait: for short lines.
    pub(super) fn queue(&self, write: impl FnOnce(&mut OutputQueue)) -> bool {
        let mut outgoing = self.outgoing.lock();
        if !outgoing.has_ended {
            write(&mut outgoing);
            self.wake.notify_one();
        }
        !outgoing.has_ended
    }

    /// How many subscriptions the server has refused because there are too many.
    pub(super) fn refused_for_number(&self) -> u64 {
        self.news.lock().too_many
    }

    /// Returns when the server has answered a PING, with the time that took.
    pub(super) async fn round_trip(&self) -> Result<Duration, RequestFailure> {
        let began = Instant::now();
        let (answer, answered) = oneshot::channel();
        self.queue(|outgoing| outgoing.ping(Some(answer)));
        answered.await.map_err(|_| RequestFailure::ClientLost)?;
        Ok(began.elapsed())
    }

    /// Subscribes to the replies again, which the server has refused.
    pub(super) async fn open_inbox(&self) {
        let _alone = self.alone.lock().await;
        let refusals = || {
            let news = self.news.lock();
            (news.inbox_forbidden, news.too_many)
        };
        let (before, replies) = (refusals(), self.requests.wildcard());
        self.queue(|outgoing| wire::subscribe(&mut outgoing.buffer, &replies, None, REPLIES));
        if self.round_trip().await.is_err() {
            return;
        }
        let after = refusals();
        self.requests.set_inbox(if after.0 > before.0 {
            InboxState::Forbidden
        } else if after.1 > before.1 {
            InboxState::TooManySubscriptions
        } else {
            InboxState::Open
        });
    }

    /// The server has said something.
    pub(super) fn take(&self, op: ServerOp, lines: &mut Lines) -> Result<Next, String> {
        match op {
            ServerOp::Message(sid, message) => return Ok(self.deliver(sid, message)),
            ServerOp::Error(text) => return Ok(self.reported(&text)),
            ServerOp::Pong => {
                let answered = self.outgoing.lock().pings.pop_front();
                match answered {
                    // Whoever waited may have given up just now.
                    Some((_, waiter)) => drop(waiter.map(|waiter| waiter.send(()))),
                    None => lines.count()?,
                }
            }
            ServerOp::Ping => {
                lines.count()?;
                self.queue(|outgoing| outgoing.buffer.extend_from_slice(wire::PONG));
            }
            ServerOp::Ok => lines.count()?,
            ServerOp::Info(info) => {
                lines.count()?;
                *self.info.lock() = Arc::new(*info);
                if self.news.lock().note(|news| news.has_info = true) {
                    return Ok(Next::Tell);
                }
            }
        }
        Ok(Next::GoOn)
    }

    fn deliver(&self, sid: u64, message: Message) -> Next {
        self.traffic.received();
        if sid == REPLIES {
            self.requests.replied(message);
            return Next::GoOn;
        }
        let mut subscriptions = self.subscriptions.lock();
        let Some(subscription) = subscriptions.get(&sid) else {
            return Next::GoOn;
        };
        match subscription.try_send(message) {
            Ok(()) => Next::GoOn,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                subscriptions.remove(&sid);
                Next::GoOn
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                drop(subscriptions);
                self.tell_if(self.news.lock().note(|news| news.is_slow = true))
            }
        }
    }

    fn reported(&self, text: &str) -> Next {
        let mut news = self.news.lock();
        match ServerError::of(text) {
            ServerError::PublishForbidden(subject) => {
                news.note_forbidden(&subject);
                self.requests.forbidden(&subject);
            }
            ServerError::SubscribeForbidden(subject, _) if self.requests.is_inbox(&subject) => {
                news.inbox_forbidden += 1;
                self.requests.set_inbox(InboxState::Forbidden);
            }
            ServerError::SubscribeForbidden(subject, sid) => {
                news.note_refused(&subject);
                // The server has ended a subscription that was there: so its stream of messages ends.
                if let Some(sid) = sid {
                    self.subscriptions.lock().remove(&sid);
                }
            }
            ServerError::TooManySubscriptions => news.too_many += 1,
            _ => {}
        }
        self.tell_if(news.note_error(text))
    }

    fn tell_if(&self, is_new: bool) -> Next {
        if is_new { Next::Tell } else { Next::GoOn }
    }

    /// Asks the server from time to time whether it is there. Fails if it has not answered for long while nothing moved
    /// in one direction; `moved_at` says when something was read, and written.
    pub(super) fn look_after(&self, moved_at: [Instant; 2]) -> Result<(), String> {
        let mut outgoing = self.outgoing.lock();
        match outgoing.pings.front() {
            Some((since, _)) if since.elapsed() >= PATIENCE => {
                let stands_still = moved_at.iter().any(|moved_at| moved_at.elapsed() >= PATIENCE);
                if stands_still || since.elapsed() >= LONGEST_PATIENCE {
                    let seconds = since.elapsed().as_secs();
                    return Err(format!("it has not answered for {seconds} seconds"));
                }
            }
            Some(_) => {}
            None => outgoing.ping(None),
        }
        self.wake.notify_one();
        Ok(())
    }

    /// The connection has ended: whoever waits for anything hears of that.
    pub(super) fn end(&self) {
        let pings = {
            let mut outgoing = self.outgoing.lock();
            outgoing.has_ended = true;
            outgoing.buffer = Vec::new();
            std::mem::take(&mut outgoing.pings)
        };
        drop(pings);
        self.subscriptions.lock().clear();
        self.requests.end();
        self.written.notify_waiters();
    }
}

/// Counts the lines that a server sends for itself.
pub(super) struct Lines {
    since: Instant,
    count: u32,
}

impl Default for Lines {
    fn default() -> Self {
        Lines {
            since: Instant::now(),
            count: 0,
        }
    }
}

impl Lines {
    fn count(&mut self) -> Result<(), String> {
        if self.since.elapsed() >= Duration::from_secs(1) {
            *self = Lines::default();
        }
        self.count += 1;
        if self.count > MOST_LINES {
            return Err(format!(
                "it sends more than {MOST_LINES} lines a second of its own"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// Has the replies subscribed to again; the server answers with these errors, if any. Returns the state before and
    /// after the answer.
    fn open_inbox(shared: &Shared, errors: &[&str]) -> [InboxState; 2] {
        let mut attempt = Box::pin(shared.open_inbox());
        assert_eq!(attempt.as_mut().now_or_never(), None);
        let before = shared.requests.inbox();
        let mut lines = Lines::default();
        for error in errors {
            let taken = shared.take(ServerOp::Error((*error).into()), &mut lines);
            taken.expect("an error is taken");
        }
        shared.take(ServerOp::Pong, &mut lines).expect("a PONG is taken");
        assert_eq!(attempt.now_or_never(), Some(()));
        [before, shared.requests.inbox()]
    }

    #[test]
    fn a_refused_inbox_is_what_the_server_said_last() {
        let requests = PendingRequests::new("_INBOX");
        let forbids = format!(
            "Permissions Violation for Subscription to \"{}\"",
            requests.wildcard()
        );
        let shared = Shared::new(ServerInfo::default(), requests, "_INBOX".into());
        let (open, forbidden, too_many) = (
            InboxState::Open,
            InboxState::Forbidden,
            InboxState::TooManySubscriptions,
        );
        shared.requests.set_inbox(forbidden);
        assert_eq!(open_inbox(&shared, &[&forbids]), [forbidden, forbidden]);
        assert_eq!(
            open_inbox(&shared, &["maximum subscriptions exceeded"]),
            [forbidden, too_many]
        );
        assert_eq!(open_inbox(&shared, &[&forbids]), [too_many, forbidden]);
        assert_eq!(open_inbox(&shared, &[]), [forbidden, open]);
    }
}
