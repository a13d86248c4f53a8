//! What the error codes of JetStream mean for a caller: which have an SQLSTATE of their own, which refuse a message for
//! good, and which are worth another try. The codes are those of nats-server's list of errors; what is not in the table
//! is a refusal whose text says why. Pure.

#![forbid(unsafe_code)]

/// What an error code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// JetStream is not there for this account.
    NotEnabled,
    NoStream,
    NoConsumer,
    NoMessage,
    /// The stream is not in the state that the message's headers expect.
    Expectation,
    /// The message, or its headers alone, are larger than the stream allows.
    TooLarge,
    /// No room: in the storage of the server, the account or the stream, or by the stream's limits.
    Full,
    /// There are as many streams or consumers as there may be, or a setting is beyond a limit.
    Limit,
    /// Something else has the name.
    NameTaken,
    /// JetStream cannot do it now, and can later.
    TryAgain,
    /// The message asks for what its stream never does, in its headers for example.
    NeverStored,
    Other,
}

/// Codes by their meaning.
const TABLE: [(Meaning, &[u64]); 11] = [
    (Meaning::NotEnabled, &[10035, 10039, 10076]),
    (Meaning::NoStream, &[10059]),
    (Meaning::NoConsumer, &[10014, 10149]),
    (Meaning::NoMessage, &[10037, 10043, 10057]),
    // Nats-Expected-Stream, -Last-Msg-Id, -Last-Sequence, -Last-Subject-Sequence.
    (Meaning::Expectation, &[10060, 10063, 10070, 10071, 10164, 10193]),
    (Meaning::TooLarge, &[10054, 10097]),
    (Meaning::Full, &[10002, 10023, 10028, 10047, 10077, 10113, 10122]),
    // Streams, consumers, bytes of a stream, ack pending, tiers, pull sizes, inactive thresholds.
    (Meaning::Limit, &[10026, 10027, 10053, 10120, 10121, 10125, 10153]),
    (Meaning::NameTaken, &[10013, 10058, 10065, 10105, 10148]),
    // No leader or quorum, no peers, offline, moving, too many requests, a repetition whose first is being stored.
    (
        Meaning::TryAgain,
        &[
            10004, 10005, 10007, 10008, 10009, 10041, 10118, 10119, 10124, 10158, 10163, 10167, 10194, 10195,
        ],
    ),
    // A sealed stream, roll-ups, times to live, counters, atomic batches and schedules that are not allowed or not valid.
    (
        Meaning::NeverStored,
        &[
            10109, 10111, 10165, 10166, 10168, 10169, 10170, 10171, 10172, 10174, 10175, 10176, 10177, 10179,
            10180, 10188, 10189, 10190, 10191, 10192, 10199, 10200, 10201,
        ],
    ),
];

/// What an error code means.
pub fn meaning(code: u64) -> Meaning {
    let row = TABLE.iter().find(|(_, codes)| codes.contains(&code));
    row.map_or(Meaning::Other, |(meaning, _)| *meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_one_meaning() {
        let mut codes: Vec<u64> = TABLE
            .iter()
            .flat_map(|(_, codes)| codes.iter().copied())
            .collect();
        let count = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), count);
        assert!(codes.iter().all(|code| (10_000..11_000).contains(code)));
        assert_eq!((meaning(10097), meaning(0)), (Meaning::TooLarge, Meaning::Other));
    }
}
