//! A message as bytes: length, id, load, the message in postcard's encoding, and a body that is not copied. Pure.
//!
//! ```text
//! | length: u32 | id: u32 | load: u16 | message | body ... |     little endian; length counts what follows it
//! ```

#![forbid(unsafe_code)]

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest frame, in bytes: NATS's own limit for max_payload (64 MiB) and room for the message.
pub const MAX_FRAME: usize = 64 * 1024 * 1024 + 64 * 1024;

const LENGTH: usize = size_of::<u32>();
const HEADER: usize = LENGTH + size_of::<u32>() + size_of::<u16>();

/// One frame of the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame<M> {
    /// Number of a request, and of the reply to it; 0 where there is no reply.
    pub id: u32,
    /// From the runtime worker: the most calls of all sessions that were in flight at a time lately. To the runtime
    /// worker: 0.
    pub load: u16,
    pub message: M,
    pub body: Bytes,
}

/// Why bytes are not a frame, or a message cannot be one.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Bytes that the frame has or would have.
    TooLarge(usize),
    Malformed,
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameError::TooLarge(size) => {
                write!(f, "frame of {size} bytes exceeds the limit of {MAX_FRAME} bytes")
            }
            FrameError::Malformed => f.write_str("malformed frame"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Appends a frame to `buffer`; on an error the buffer is as it was.
pub fn encode<M: Serialize>(
    buffer: &mut Vec<u8>,
    id: u32,
    load: u16,
    message: &M,
    body: &[u8],
) -> Result<(), FrameError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; LENGTH]);
    buffer.extend_from_slice(&id.to_le_bytes());
    buffer.extend_from_slice(&load.to_le_bytes());
    let written = postcard::to_io(message, &mut *buffer)
        .map(|_| ())
        .map_err(|_| FrameError::Malformed);
    let size = buffer.len() - start + body.len();
    let fits = if size > MAX_FRAME {
        Err(FrameError::TooLarge(size))
    } else {
        Ok(())
    };
    if let Err(error) = written.and(fits) {
        buffer.truncate(start);
        return Err(error);
    }
    buffer.extend_from_slice(body);
    let length = u32::try_from(size - LENGTH).map_err(|_| FrameError::TooLarge(size))?;
    if let Some(place) = buffer.get_mut(start..start + LENGTH) {
        place.copy_from_slice(&length.to_le_bytes());
    }
    Ok(())
}

/// Takes the first frame out of `buffer`; `None` while it is not complete.
pub fn decode<M: DeserializeOwned>(buffer: &mut BytesMut) -> Result<Option<Frame<M>>, FrameError> {
    let Some(prefix) = buffer.first_chunk::<LENGTH>() else {
        return Ok(None);
    };
    let size = LENGTH + u32::from_le_bytes(*prefix) as usize;
    if size > MAX_FRAME {
        return Err(FrameError::TooLarge(size));
    }
    if size < HEADER {
        return Err(FrameError::Malformed);
    }
    if buffer.len() < size {
        // Room is made for 1 MiB at a time: a peer that announces a large frame must send it before it costs memory.
        buffer.reserve((size - buffer.len()).min(1 << 20));
        return Ok(None);
    }
    let mut frame = buffer.split_to(size).freeze();
    frame.advance(LENGTH);
    let (id, load) = (frame.get_u32_le(), frame.get_u16_le());
    let (message, rest) = postcard::take_from_bytes(&frame).map_err(|_| FrameError::Malformed)?;
    let body = frame.slice_ref(rest);
    Ok(Some(Frame {
        id,
        load,
        message,
        body,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::message::{Reply, Request};

    fn encoded(id: u32, message: &Request, body: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        encode(&mut buffer, id, 0, message, body).expect("encodes");
        buffer
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut wire = encoded(1, &Request::Barrier, b"");
        let publish = Request::Publish {
            slot: 3,
            subject: "a.b".into(),
            reply: None,
            headers: vec![("h".into(), "v".into())],
            wait_ms: 0,
        };
        wire.extend(encoded(2, &publish, b"payload"));
        for cut in 0..=wire.len() {
            let (mut buffer, mut ids, mut bodies) = (BytesMut::new(), vec![], vec![]);
            for part in [&wire[..cut], &wire[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(frame) = decode::<Request>(&mut buffer).expect("valid") {
                    ids.push(frame.id);
                    bodies.push(frame.body);
                }
            }
            assert_eq!(ids, [1, 2]);
            assert_eq!(bodies, [Bytes::new(), Bytes::from_static(b"payload")]);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn garbage_is_refused_and_announced_sizes_cost_nothing() {
        let refuse = |bytes: &[u8]| decode::<Request>(&mut BytesMut::from(bytes)).expect_err("refused");
        assert!(matches!(refuse(&u32::MAX.to_le_bytes()), FrameError::TooLarge(_)));
        assert_eq!(refuse(&[0, 0, 0, 0]), FrameError::Malformed);
        assert_eq!(
            refuse(&[7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 250]),
            FrameError::Malformed
        );
        let mut announced = BytesMut::from(&(60u32 << 20).to_le_bytes()[..]);
        assert!(matches!(decode::<Request>(&mut announced), Ok(None)));
        assert!(announced.capacity() <= 2 << 20);
    }

    #[test]
    fn a_message_that_is_too_large_leaves_the_buffer_as_it_was() {
        let mut buffer = b"before".to_vec();
        let error = encode(&mut buffer, 1, 0, &Reply::Done, &vec![0; MAX_FRAME]);
        assert!(matches!(error, Err(FrameError::TooLarge(_))));
        assert_eq!(buffer, b"before");
    }
}
