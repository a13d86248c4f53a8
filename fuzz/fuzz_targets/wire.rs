//! What a NATS server may send: any bytes, in any pieces.
//!
//! An input is four lengths of pieces, and what is sent.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use litmus_pgnats::nats::credentials;
use litmus_pgnats::nats::server_error::ServerError;
use litmus_pgnats::nats::wire::{Malformed, ServerOp, read};

fuzz_target!(|input: &[u8]| {
    let Some((lengths, sent)) = input.split_first_chunk::<4>() else {
        return;
    };
    let (ops, error) = all([sent]);
    let mut rest = sent;
    let pieces = lengths.iter().cycle().map_while(|length| {
        let piece;
        (piece, rest) = rest.split_at(rest.len().min(1 + usize::from(*length)));
        (!piece.is_empty()).then_some(piece)
    });
    let (in_pieces, error_in_pieces) = all(pieces);
    assert_eq!(ops, in_pieces);
    assert_eq!(error, error_in_pieces);
    for op in ops {
        match op {
            ServerOp::Message(_, message) => {
                message.headers();
                message.header("Status");
                message.description();
            }
            ServerOp::Error(text) => drop(format!("{:?}", ServerError::of(&text))),
            ServerOp::Info(info) => assert!(info.connect_urls.len() <= 64 && info.max_payload > 0),
            ServerOp::Ping | ServerOp::Pong | ServerOp::Ok => {}
        }
    }
    if let Ok(text) = std::str::from_utf8(sent) {
        drop(credentials::read(text));
    }
});

/// What was understood up to the first error, behind which a server is not listened to any more.
fn all<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<ServerOp>, Option<Malformed>) {
    let (mut input, mut sent, mut ops) = (BytesMut::new(), 0, Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        sent += piece.len();
        loop {
            let understood = read(&mut input);
            // The room for one step more, doubled as vectors do it when they grow.
            assert!(
                input.capacity() <= 2 * (sent + (1 << 20)),
                "an announced size costs nothing"
            );
            match understood {
                Ok(Some(op)) => ops.push(op),
                Ok(None) => break,
                Err(error) => return (ops, Some(error)),
            }
        }
    }
    (ops, None)
}
