//! Reads the reply subject of a JetStream message, which has the message's stream position (ADR-15). Pure.

#![forbid(unsafe_code)]

/// The position of a message in its stream and among its consumer's deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message's sequence in the stream.
    pub sequence: u64,
    /// The sequence of this delivery: counts all that the consumer has delivered, repetitions included.
    pub consumer_sequence: u64,
    /// How often this message was delivered, this time included.
    pub deliveries: u32,
    /// When the stream stored the message, in nanoseconds since 1970.
    pub time_ns: i64,
    /// Messages that the consumer had still to deliver for the first time.
    pub pending: u64,
}

/// The seven tokens of a subject on which a message is acknowledged, from the stream on; `None` for another subject.
fn tokens(reply: &str) -> Option<[&str; 7]> {
    let tokens: Vec<&str> = reply.split('.').collect();
    // $JS.ACK.stream.consumer.deliveries.sequence.consumer_sequence.time.pending, or with domain and account hash
    // before the stream, and perhaps more at the end.
    let rest = match tokens.as_slice() {
        ["$JS", "ACK", rest @ ..] if rest.len() == 7 => rest,
        ["$JS", "ACK", _, _, rest @ ..] if rest.len() >= 7 => rest,
        _ => return None,
    };
    rest.first_chunk().copied()
}

/// Stream and consumer of the message that is acknowledged on a subject; `None` if it is no such subject.
pub fn consumer(reply: &str) -> Option<(&str, &str)> {
    tokens(reply).map(|[stream, consumer, ..]| (stream, consumer))
}

/// Reads the subject on which a message is acknowledged; `None` if it is no such subject.
pub fn parse(reply: &str) -> Option<Delivery> {
    let [
        _,
        _,
        deliveries,
        sequence,
        consumer_sequence,
        nanoseconds,
        pending,
    ] = tokens(reply)?;
    Some(Delivery {
        sequence: sequence.parse().ok()?,
        consumer_sequence: consumer_sequence.parse().ok()?,
        deliveries: deliveries.parse().ok()?,
        time_ns: nanoseconds.parse().ok()?,
        pending: pending.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let expected = Some(Delivery {
            sequence: 10,
            consumer_sequence: 7,
            deliveries: 2,
            time_ns: 1_600_000_000_000_000_000,
            pending: 3,
        });
        assert_eq!(parse("$JS.ACK.s.c.2.10.7.1600000000000000000.3"), expected);
        assert_eq!(parse("$JS.ACK._.hash.s.c.2.10.7.1600000000000000000.3"), expected);
        assert_eq!(
            parse("$JS.ACK.hub.hash.s.c.2.10.7.1600000000000000000.3.random"),
            expected
        );
        assert_eq!(consumer("$JS.ACK._.hash.s.c.2.10.7.16.3"), Some(("s", "c")));
        assert_eq!(consumer("$JS.ACK.s.c"), None);
        for other in ["_INBOX.a.b", "$JS.ACK.s.c.2.10", "$JS.ACK.s.c.2.ten.7.16.3"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
