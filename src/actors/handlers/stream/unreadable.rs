//! Finds messages that the client library cannot read, at which it ends the connection: headers or a subject that are
//! not UTF-8, say. They are got from the stream another way, and executed or given up like others. In the actor thread.

use serde_json::json;

use super::supply::Supply;
use crate::actors::handlers::handler::MessageHandler;
use crate::actors::handlers::interface::Sink;
use crate::actors::handlers::queue::{Incoming, Pushed};
use crate::actors::jetstream::api::Api;
use crate::actors::jetstream::consumer::Found;
use crate::actors::jetstream::consumer::plain_message::{self, PlainMessage};
use crate::channel::work::{Consumer, StreamPosition};
use crate::error::{Error, Kind, Result};
use crate::nats::raw_headers;

/// Most messages to look at. More are not under way.
const MOST: usize = 20_000;

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

/// Has messages executed that were found another way, and waits until they are done with.
pub async fn execute(supply: &mut Supply, messages: Vec<Incoming>, stream: &str, sink: &impl Sink) {
    let sequences: Vec<u64> = messages
        .iter()
        .filter_map(|message| message.position.map(|position| position.sequence))
        .collect();
    let unreadable = messages.iter().filter(|message| message.is_unreadable);
    let unreadable = unreadable.filter_map(|message| message.position);
    let names: Vec<String> = unreadable.map(|position| position.sequence.to_string()).collect();
    let text = format!(
        "message {} has headers or a subject that the client library cannot read",
        names.join(", ")
    );
    supply.notice(
        stream,
        Error::new(Kind::InvalidHeaders, text)
            .detail("It ends the connection when it is delivered, and was got from the stream another way."),
    );
    for message in messages {
        let Some((position, reply)) = message.position.zip(message.reply.clone()) else {
            continue;
        };
        let (sequence, time_us) = (position.sequence, message.time_us);
        supply
            .handler
            .ack_pending
            .add(sequence, position.after, &reply, time_us);
        match supply.handler.push(message) {
            Pushed::First => sink.ready(&supply.handler),
            Pushed::Behind => {}
            // There is no room; the message is found again when there is some.
            Pushed::Refused(_) => drop(supply.handler.ack_pending.remove(sequence)),
        }
    }
    while sequences
        .iter()
        .any(|sequence| supply.handler.ack_pending.has(*sequence))
    {
        supply.handler.ack_pending.fewer.notified().await;
    }
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
