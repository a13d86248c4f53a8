//! Finds messages that the client library cannot read, at which it ends the connection: headers or a subject that are
//! not UTF-8, say. They are got from the stream another way, and executed or given up like others. In the actor thread.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::actors::handlers::handler::MessageHandler;
use crate::actors::handlers::queue::Incoming;
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::Found;
use crate::actors::jetstream::consumer::plain_message::{self, PlainMessage};
use crate::channel::work::{Consumer, StreamPosition};
use crate::error::Result;
use crate::nats::raw_headers;

/// The connection has to end so often before messages are suspected.
const SUSPICIOUS: usize = 2;
/// Within this time, and twice `ack_wait`, after which JetStream delivers again what it has not heard of.
const WINDOW: Duration = Duration::from_secs(30);
/// Most messages to look at. More are not under way.
const MOST: usize = 20_000;

/// When the connection has ended lately while messages were on their way.
#[derive(Default)]
pub struct Losses(VecDeque<Instant>);

impl Losses {
    /// The connection has ended.
    pub fn note(&mut self) {
        self.0.push_back(Instant::now());
        if self.0.len() > SUSPICIOUS {
            self.0.pop_front();
        }
    }

    /// Whether a message may be the reason. `ack_wait` is that of the subscription.
    pub fn are_suspicious(&self, ack_wait: Duration) -> bool {
        let window = WINDOW + ack_wait * 2;
        self.0.len() >= SUSPICIOUS && self.0.iter().all(|time| time.elapsed() < window)
    }

    /// No message is the reason.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Looks through the messages that may be on their way to the handler. Returns those that cannot be read; where the
/// order matters, those before them too. Empty if all can be read.
pub async fn find(
    api: &Api,
    handler: &MessageHandler,
    stream: &str,
    consumer: &Consumer,
    found: &Found,
) -> Result<Vec<Incoming>> {
    let filter = match consumer.filter_subjects.as_slice() {
        [one] => one.as_str(),
        _ => ">",
    };
    let ahead = (consumer.batch_size as usize).saturating_mul(2).min(MOST);
    let mut from = handler.ack_pending.floor() + 1;
    let (mut messages, mut last_unreadable, mut beyond) = (Vec::new(), 0, 0);
    for _ in 0..MOST {
        let which = json!({ "seq": from, "next_by_subj": filter });
        let Some(message) = plain_message::get(api, stream, &which).await? else {
            break;
        };
        let sequence = message.mark.sequence;
        from = sequence + 1;
        // What the consumer has not delivered yet was not the reason, but may be pulled next.
        beyond += usize::from(sequence > found.stream_sequence);
        if beyond > ahead {
            break;
        }
        let is_readable = !message.subject.contains(char::REPLACEMENT_CHARACTER)
            && raw_headers::is_readable(&message.headers);
        if handler.ack_pending.has(sequence) || (is_readable && !consumer.stop_on_failure) {
            continue;
        }
        if !is_readable {
            last_unreadable = messages.len() + 1;
        }
        messages.push(incoming(message, stream, consumer, !is_readable));
    }
    messages.truncate(last_unreadable);
    Ok(messages)
}

fn incoming(message: PlainMessage, stream: &str, consumer: &Consumer, is_unreadable: bool) -> Incoming {
    let PlainMessage { mark, subject, .. } = message;
    let durable = &consumer.durable;
    let (sequence, time_ns) = (mark.sequence, mark.time_us.saturating_mul(1000));
    Incoming {
        // JetStream knows an ack pending message by its sequence in the stream; the number of the delivery is not known
        // here, and does not matter.
        reply: Some(format!(
            "$JS.ACK.{stream}.{durable}.1.{sequence}.{sequence}.{time_ns}.0"
        )),
        headers: raw_headers::read(&message.headers),
        payload: message.payload,
        arrived: std::time::Instant::now(),
        time_us: mark.time_us,
        position: Some(StreamPosition {
            sequence,
            after: sequence.saturating_sub(1),
            deliveries: 1,
        }),
        deaths: 0,
        is_unreadable,
        subject,
    }
}
