//! Acknowledges what a durable subscription's executors have done, once it is committed. In the actor thread.

use std::time::Duration;

use async_nats::Client;
use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use bytes::Bytes;

use super::handler::MessageHandler;
use super::queue::Incoming;
use crate::channel::work::Failure;

const ACK: &[u8] = b"+ACK";
const TERM: &[u8] = b"+TERM";
const PROGRESS: &[u8] = b"+WPI";

/// A message that is tried again before those behind it.
pub struct Again {
    pub message: Incoming,
    pub after: Duration,
}

/// Tells JetStream what became of messages: those that failed are delivered again after a while, unless they were given
/// up. Where those behind have to wait for one that fails, it is given back in place of that.
pub fn settle(handler: &MessageHandler, done: Vec<Incoming>, failures: &[Failure]) -> Option<Again> {
    let definition = handler.definition();
    let consumer = definition.consumer.as_ref()?;
    let mut failures = failures.iter().peekable();
    let (mut acks, mut again) = (Vec::with_capacity(done.len()), None);
    for (index, mut message) in done.into_iter().enumerate() {
        let failure = failures.next_if(|failure| failure.index as usize == index);
        let Some(place) = &mut message.place else { continue };
        let backoff = {
            let nth = (place.deliveries.max(1) as usize - 1).min(consumer.backoff_ms.len().saturating_sub(1));
            Duration::from_millis(consumer.backoff_ms.get(nth).copied().unwrap_or(0))
        };
        let word = match failure {
            None => Bytes::from_static(ACK),
            Some(failure) if consumer.stop_on_failure => {
                place.deliveries += 1;
                // One that is final has the whole subscription stop, which ends this handler.
                let after = if failure.is_final {
                    Duration::from_secs(60)
                } else {
                    backoff
                };
                again = Some(Again { message, after });
                continue;
            }
            Some(failure) if failure.is_final => Bytes::from_static(TERM),
            Some(_) => later(backoff),
        };
        let reply = match failure {
            Some(failure) if !failure.is_final => handler.ack_pending.postpone(place.sequence),
            _ => handler.ack_pending.remove(place.sequence),
        };
        acks.extend(reply.map(|reply| (reply, word)));
    }
    say(handler, acks);
    again
}

/// There is no room for a message now.
pub fn postpone(handler: &MessageHandler, sequence: u64, time: Duration) {
    let reply = handler.ack_pending.postpone(sequence);
    say(
        handler,
        reply.map(|reply| (reply, later(time))).into_iter().collect(),
    );
}

fn later(time: Duration) -> Bytes {
    format!("-NAK {{\"delay\": {}}}", time.as_nanos()).into()
}

/// Has JetStream wait for what takes long.
pub fn tell_progress(handler: &MessageHandler, time: Duration) {
    let overdue = handler.ack_pending.overdue(time);
    say(
        handler,
        overdue
            .into_iter()
            .map(|reply| (reply, Bytes::from_static(PROGRESS)))
            .collect(),
    );
}

/// Gives back all that was not executed: JetStream delivers it again, to whoever asks next.
pub fn give_back(handler: &MessageHandler) {
    let all = handler.ack_pending.take_all();
    say(
        handler,
        all.into_iter()
            .map(|reply| (reply, Bytes::from_static(b"-NAK")))
            .collect(),
    );
}

/// While NATS is away nothing is said, and JetStream delivers again what it has not heard of.
fn say(handler: &MessageHandler, words: Vec<(String, Bytes)>) {
    let client = handler
        .connection
        .as_ref()
        .and_then(|connection| connection.status.borrow().client.clone());
    let Some(client) = client.filter(|_| !words.is_empty()) else {
        return;
    };
    actix::spawn(send(client.client().clone(), words));
}

async fn send(client: Client, words: Vec<(String, Bytes)>) {
    for (subject, payload) in words {
        let message = OutboundMessage {
            subject: subject.into(),
            reply: None,
            payload,
            headers: None,
        };
        if client.publish_message(message).await.is_err() {
            return;
        }
    }
}
