//! Acknowledges the messages of durable subscriptions after executors have committed them. In the actor thread.
//!
//! - [`decide`] says what JetStream is to be told of a message that was executed;
//! - [`settle`] tells JetStream, and returns a message that is tried again here.

use std::time::Duration;

use bytes::Bytes;

use crate::actors::base::tasks;
use crate::actors::client::NatsClient;
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::handlers::queue::Incoming;
use crate::channel::work::{Consumer, Failure};
use crate::nats::message::Outbound;

/// How long a subscription that stops at a failure holds back a message which has failed for good. By then a refresh
/// has removed the handler.
const UNTIL_STOPPED: Duration = Duration::from_secs(60);

/// What JetStream is told of a message (ADR-13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ack {
    /// The message is done with.
    Done,
    /// The message is given up, and need not be delivered again.
    GivenUp,
    /// The message was not executed, and is to be delivered again at once.
    Back,
    /// The message is to be delivered again, but not before this time has passed.
    Later(Duration),
    /// The message is still in progress.
    Progress,
}

impl Ack {
    fn payload(self) -> Bytes {
        match self {
            Ack::Done => Bytes::from_static(b"+ACK"),
            Ack::GivenUp => Bytes::from_static(b"+TERM"),
            Ack::Back => Bytes::from_static(b"-NAK"),
            Ack::Later(time) => format!("-NAK {{\"delay\": {}}}", time.as_nanos()).into(),
            Ack::Progress => Bytes::from_static(b"+WPI"),
        }
    }
}

/// What becomes of a message that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Tell(Ack),
    /// The message is tried again here after this time, because messages behind it have to wait.
    Retry(Duration),
}

/// A message that is tried again before those behind it.
pub struct Again {
    pub message: Incoming,
    pub after: Duration,
}

/// What becomes of a message after so many deliveries. `failure` says how its function failed; `None` if it succeeded.
fn decide(consumer: &Consumer, deliveries: u32, failure: Option<&Failure>) -> Decision {
    let Some(failure) = failure else {
        return Decision::Tell(Ack::Done);
    };
    match (consumer.stop_on_failure, failure.is_final) {
        (true, true) => Decision::Retry(UNTIL_STOPPED),
        (true, false) => Decision::Retry(backoff(consumer, deliveries)),
        (false, true) => Decision::Tell(Ack::GivenUp),
        (false, false) => Decision::Tell(Ack::Later(backoff(consumer, deliveries))),
    }
}

/// The pause before the next delivery. The last configured pause serves for all further deliveries; without any there
/// is no pause.
fn backoff(consumer: &Consumer, deliveries: u32) -> Duration {
    let nth = deliveries.max(1) as usize - 1;
    let pause = consumer.backoff_ms.get(nth).or(consumer.backoff_ms.last());
    Duration::from_millis(pause.copied().unwrap_or(0))
}

/// Tells JetStream what became of executed messages: failed messages are delivered again after a pause, unless they are
/// given up. Where later messages have to wait for a failed one, that message is returned instead.
pub fn settle(handler: &MessageHandler, done: Vec<Incoming>, failures: &[Failure]) -> Option<Again> {
    let definition = handler.definition();
    let consumer = definition.consumer.as_ref()?;
    let mut failures = failures.iter().peekable();
    let (mut acks, mut again) = (Vec::with_capacity(done.len()), None);
    for (index, mut message) in done.into_iter().enumerate() {
        let failure = failures.next_if(|failure| failure.index as usize == index);
        let Some(position) = &mut message.position else {
            continue;
        };
        let sequence = position.sequence;
        match decide(consumer, position.deliveries, failure) {
            Decision::Retry(after) => {
                position.deliveries += 1;
                again = Some(Again { message, after });
            }
            Decision::Tell(ack) => {
                let reply = match ack {
                    Ack::Later(_) => handler.ack_pending.postpone(sequence),
                    _ => handler.ack_pending.remove(sequence),
                };
                acks.extend(reply.map(|reply| (reply, ack)));
            }
        }
    }
    tell(handler, acks);
    again
}

/// Asks JetStream to deliver a message again after this time, because the queue has no room for it.
pub fn postpone(handler: &MessageHandler, sequence: u64, time: Duration) {
    let reply = handler.ack_pending.postpone(sequence);
    tell(
        handler,
        reply.map(|reply| (reply, Ack::Later(time))).into_iter().collect(),
    );
}

/// Tells JetStream that messages are in progress, so that it does not deliver them again: all messages that it has not
/// heard of for this time.
pub fn tell_progress(handler: &MessageHandler, time: Duration) {
    tell_all(handler, handler.ack_pending.overdue(time), Ack::Progress);
}

/// Gives back all messages that were not executed: JetStream delivers them again, to whoever pulls next.
pub fn give_back(handler: &MessageHandler) {
    tell_all(handler, handler.ack_pending.take_all(), Ack::Back);
}

fn tell_all(handler: &MessageHandler, replies: Vec<String>, ack: Ack) {
    tell(handler, replies.into_iter().map(|reply| (reply, ack)).collect());
}

/// Sends acknowledgements. While NATS is away nothing is sent, and JetStream delivers messages again that it has not
/// heard of; the database then knows which of them are done with.
fn tell(handler: &MessageHandler, acks: Vec<(String, Ack)>) {
    let connection = handler.connection.as_ref();
    let client = connection.and_then(|connection| connection.status.borrow().client.clone());
    if let Some(client) = client.filter(|_| !acks.is_empty()) {
        tasks::spawn("acknowledgements of a durable subscription", send(client, acks));
    }
}

async fn send(client: NatsClient, acks: Vec<(String, Ack)>) {
    for (subject, ack) in acks {
        let message = Outbound {
            subject,
            payload: ack.payload(),
            ..Outbound::default()
        };
        // The connection broke, and JetStream delivers the other messages again: see `tell`.
        if client.publish(&message).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::work::DeliverFrom;

    fn consumer(stop_on_failure: bool) -> Consumer {
        Consumer {
            id: "1".into(),
            cluster: 7,
            durable: "d".into(),
            domain: None,
            filter_subjects: Vec::new(),
            start: DeliverFrom::All,
            batch_size: 1,
            ack_wait_ms: 30_000,
            max_deliveries: 3,
            backoff_ms: vec![100, 500],
            stop_on_failure,
            resumed: 0,
        }
    }

    fn failure(is_final: bool) -> Failure {
        Failure {
            index: 0,
            sqlstate: "P0001".into(),
            message: "no".into(),
            is_final,
        }
    }

    #[test]
    fn a_message_that_failed_comes_again_after_its_backoff() {
        let later = |ms| Decision::Tell(Ack::Later(Duration::from_millis(ms)));
        let decided = |deliveries| decide(&consumer(false), deliveries, Some(&failure(false)));
        assert_eq!(
            [1, 2, 3, 9].map(decided),
            [later(100), later(500), later(500), later(500)]
        );
        assert_eq!(decide(&consumer(false), 1, None), Decision::Tell(Ack::Done));
        assert_eq!(
            decide(&consumer(false), 3, Some(&failure(true))),
            Decision::Tell(Ack::GivenUp)
        );
        let mut without = consumer(false);
        without.backoff_ms.clear();
        assert_eq!(decide(&without, 1, Some(&failure(false))), later(0));
    }

    #[test]
    fn where_order_matters_the_message_is_tried_again_here() {
        let decided = |is_final| decide(&consumer(true), 2, Some(&failure(is_final)));
        assert_eq!(decided(false), Decision::Retry(Duration::from_millis(500)));
        assert_eq!(decided(true), Decision::Retry(UNTIL_STOPPED));
        assert_eq!(decide(&consumer(true), 1, None), Decision::Tell(Ack::Done));
    }

    #[test]
    fn acknowledgements_are_those_of_the_protocol() {
        let later = Ack::Later(Duration::from_millis(2));
        let payloads = [Ack::Done, Ack::GivenUp, Ack::Back, later, Ack::Progress].map(Ack::payload);
        assert_eq!(
            payloads,
            ["+ACK", "+TERM", "-NAK", "-NAK {\"delay\": 2000000}", "+WPI"]
        );
    }
}
