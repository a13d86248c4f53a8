//! Finds messages that the client library cannot read, at which it ends the connection: headers or a subject that are
//! not UTF-8, say. They are got from the stream another way, and executed or given up like others. In the actor thread.

use serde_json::json;

use super::supply::Supply;
use crate::actors::handlers::interface::Sink;
use crate::actors::handlers::queue::{Incoming, Pushed};
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::Found;
use crate::actors::jetstream::consumer::plain_message::{self, PlainMessage};
use crate::channel::marks::Mark;
use crate::channel::work::{Consumer, StreamPosition};
use crate::error::{Error, Kind, Result};
use crate::nats::{raw_headers, subject};

/// Most messages to look at. More are not under way.
const MOST: usize = 20_000;

/// What was found among the messages that may be on their way to the handler.
#[derive(Default)]
pub struct Suspects {
    /// Messages that cannot be read; where the order matters, those before them too.
    pub messages: Vec<Incoming>,
    /// The subjects to acknowledge messages on that cannot be read, were executed, and came again.
    pub done: Vec<String>,
}

/// Looks through the messages that may be on their way to the handler.
pub async fn find(
    api: &Api,
    supply: &Supply,
    stream: &str,
    consumer: &Consumer,
    found: &Found,
) -> Result<Suspects> {
    let handler = &supply.handler;
    let filter = match consumer.filter_subjects.as_slice() {
        [one] => one.as_str(),
        _ => ">",
    };
    let ahead = (consumer.batch_size as usize).saturating_mul(2).min(MOST);
    // All that the subscription wants is seen here in order, so nothing lies between one message and the next.
    let mut after = handler.ack_pending.floor();
    let mut from = after + 1;
    let (mut suspects, mut last_unreadable, mut beyond) = (Suspects::default(), 0, 0);
    for _ in 0..MOST {
        let which = json!({ "seq": from, "next_by_subj": filter });
        let Some(message) = plain_message::get(api, stream, &which).await? else {
            break;
        };
        let sequence = message.mark.sequence;
        from = sequence + 1;
        if !is_wanted(consumer, &message) {
            continue;
        }
        // What the consumer has not delivered yet was not the reason, but may be pulled next.
        beyond += usize::from(sequence > found.stream_sequence);
        if beyond > ahead {
            break;
        }
        let after = std::mem::replace(&mut after, sequence);
        let is_readable = !message.subject.contains(char::REPLACEMENT_CHARACTER)
            && raw_headers::is_readable(&message.headers);
        if handler.ack_pending.has(sequence) {
            continue;
        }
        if is_readable && !consumer.stop_on_failure {
            if sequence <= found.stream_sequence {
                // The delivery was lost with the connection.
                handler.ack_pending.expect(message.mark, after);
            }
            continue;
        }
        if !is_readable && supply.executed.contains(&sequence) {
            suspects
                .done
                .push(ack_subject(stream, &consumer.durable, message.mark));
            continue;
        }
        suspects
            .messages
            .push(incoming(message, after, stream, consumer, !is_readable));
        if !is_readable {
            last_unreadable = suspects.messages.len();
        }
    }
    suspects.messages.truncate(last_unreadable);
    Ok(suspects)
}

/// Whether the subscription wants a message. Where it has one filter at most, JetStream has seen to that.
fn is_wanted(consumer: &Consumer, message: &PlainMessage) -> bool {
    let filters = &consumer.filter_subjects;
    let mut matching = filters
        .iter()
        .filter(|filter| subject::matches(filter, &message.subject));
    filters.len() < 2 || matching.next().is_some()
}

/// Has messages executed that were found another way, and waits until they are done with.
pub async fn execute(supply: &mut Supply, messages: Vec<Incoming>, stream: &str, sink: &impl Sink) {
    let sequence_of = |message: &Incoming| message.position.map(|position| position.sequence);
    let sequences: Vec<u64> = messages.iter().filter_map(sequence_of).collect();
    let unreadable = messages.iter().filter(|message| message.is_unreadable);
    let unreadable: Vec<u64> = unreadable.filter_map(sequence_of).collect();
    say(supply, &unreadable, stream);
    let handler = supply.handler.clone();
    let mut refused = Vec::new();
    for message in messages {
        let Some((position, reply)) = message.position.zip(message.reply.clone()) else {
            continue;
        };
        let (sequence, time_us) = (position.sequence, message.time_us);
        handler.ack_pending.add(sequence, position.after, &reply, time_us);
        match handler.push(message) {
            Pushed::First => sink.ready(&handler),
            Pushed::Behind => {}
            // There is no room; the message is found again when there is some.
            Pushed::Refused(_) => {
                handler.ack_pending.remove(sequence);
                refused.push(sequence);
            }
        }
    }
    while sequences
        .iter()
        .any(|sequence| handler.ack_pending.has(*sequence))
    {
        handler.ack_pending.fewer.notified().await;
    }
    if supply.executed.len() > MOST {
        supply.executed.clear();
    }
    // One that could not even be given up is executed when it is found again.
    let is_done =
        |sequence: &u64| !refused.contains(sequence) && !handler.ack_pending.is_postponed(*sequence);
    supply.executed.extend(unreadable.into_iter().filter(is_done));
}

/// Says which messages cannot be read, the first of them at least.
fn say(supply: &mut Supply, unreadable: &[u64], stream: &str) {
    const NAMED: usize = 5;
    let named: Vec<String> = unreadable.iter().take(NAMED).map(u64::to_string).collect();
    let more = match unreadable.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = format!(
        "message {}{more} has headers or a subject that the client library cannot read",
        named.join(", ")
    );
    let problem = Error::new(Kind::InvalidHeaders, text);
    supply.notice(
        stream,
        problem
            .detail("It ends the connection when it is delivered, and was got from the stream another way."),
    );
}

/// The subject to acknowledge a message on. JetStream knows an ack pending message by its sequence in the stream; the
/// number of the delivery is not known here, and does not matter.
fn ack_subject(stream: &str, durable: &str, mark: Mark) -> String {
    let (sequence, time_ns) = (mark.sequence, mark.time_us.saturating_mul(1000));
    format!("$JS.ACK.{stream}.{durable}.1.{sequence}.{sequence}.{time_ns}.0")
}

fn incoming(
    message: PlainMessage,
    after: u64,
    stream: &str,
    consumer: &Consumer,
    is_unreadable: bool,
) -> Incoming {
    let PlainMessage { mark, subject, .. } = message;
    let sequence = mark.sequence;
    Incoming {
        reply: Some(ack_subject(stream, &consumer.durable, mark)),
        headers: raw_headers::read(&message.headers),
        payload: message.payload,
        arrived: std::time::Instant::now(),
        time_us: mark.time_us,
        position: Some(StreamPosition {
            sequence,
            after,
            deliveries: 1,
        }),
        deaths: 0,
        is_unreadable,
        subject,
    }
}
