//! What a peer of the control channel may send: any bytes, in any pieces.
//!
//! An input is one byte that says who reads, four lengths of pieces, and what is sent.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use litmus_pgnats::channel::frame::{Frame, FrameError, decode, encode};
use litmus_pgnats::channel::message::{Reply, Request};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

fuzz_target!(|input: &[u8]| {
    let Some(([reader, lengths @ ..], sent)) = input.split_first_chunk::<5>() else {
        return;
    };
    match reader % 2 {
        0 => check::<Request>(lengths, sent),
        _ => check::<Reply>(lengths, sent),
    }
});

fn check<M: Serialize + DeserializeOwned + Debug>(lengths: &[u8; 4], sent: &[u8]) {
    let (frames, error) = read::<M>([sent]);
    let mut rest = sent;
    let pieces = lengths.iter().cycle().map_while(|length| {
        let piece;
        (piece, rest) = rest.split_at(rest.len().min(1 + usize::from(*length)));
        (!piece.is_empty()).then_some(piece)
    });
    let (in_pieces, error_in_pieces) = read::<M>(pieces);
    assert_eq!(format!("{frames:?}"), format!("{in_pieces:?}"));
    assert_eq!(error, error_in_pieces);
    for frame in frames {
        let wire = encoded(&frame);
        let again: Frame<M> = decode(&mut BytesMut::from(&wire[..]))
            .expect("what was encoded decodes")
            .expect("what was encoded is complete");
        assert_eq!(format!("{frame:?}"), format!("{again:?}"));
        // Secrets are not in the debug form.
        assert_eq!(wire, encoded(&again));
    }
}

/// The frames up to the first error, behind which a peer is not listened to any more.
fn read<'a, M: DeserializeOwned>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Frame<M>>, Option<FrameError>) {
    let (mut buffer, mut sent, mut frames) = (BytesMut::new(), 0, Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        sent += piece.len();
        loop {
            let decoded = decode(&mut buffer);
            // The room for one step more, doubled as vectors do it when they grow.
            assert!(
                buffer.capacity() <= 2 * (sent + (1 << 20)),
                "an announced size costs nothing"
            );
            match decoded {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn encoded<M: Serialize>(frame: &Frame<M>) -> Vec<u8> {
    let mut wire = Vec::new();
    encode(&mut wire, frame.id, frame.load, &frame.message, &frame.body).expect("what was decoded encodes");
    wire
}
