//! The runtime worker's end of the control channel, on tokio. Pure; runs on the actor thread.

#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::counts::{ChannelCounts, OpenChannel};
use super::frame::{Frame, decode, encode};
use super::message::{Reply, Request};

/// Bytes read at a time.
const READ: usize = 64 * 1024;
/// Most frames that are handed on together.
const BATCH: usize = 1024;

/// The listening socket. Only processes of the user that runs PostgreSQL get in.
pub struct ChannelListener {
    listener: UnixListener,
    owner: u32,
    counts: Arc<ChannelCounts>,
}

impl ChannelListener {
    /// Binds the socket, in place of one that a dead runtime worker has left behind. The caller has made sure that no
    /// other runtime worker lives.
    pub fn bind(path: &Path, counts: Arc<ChannelCounts>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let owner = std::fs::metadata(path)?.uid();
        Ok(ChannelListener {
            listener,
            owner,
            counts,
        })
    }

    /// The next connection. A connection of another operating system user is closed and returned as an error.
    pub async fn accept(&self) -> io::Result<(FrameReader, FrameWriter)> {
        let (stream, _) = self.listener.accept().await?;
        let peer = stream.peer_cred()?.uid();
        if peer != self.owner {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("connection from user id {peer} refused"),
            ));
        }
        Ok(split(stream, &self.counts))
    }
}

/// The two halves of a connection, for frames.
pub(crate) fn split(stream: UnixStream, counts: &Arc<ChannelCounts>) -> (FrameReader, FrameWriter) {
    let (read, write) = stream.into_split();
    (
        FrameReader {
            read,
            buffer: BytesMut::new(),
            open: OpenChannel::of(counts),
        },
        FrameWriter {
            write,
            buffer: Vec::new(),
            counts: counts.clone(),
        },
    )
}

/// Reads requests.
pub struct FrameReader {
    read: OwnedReadHalf,
    buffer: BytesMut,
    open: OpenChannel,
}

impl FrameReader {
    /// Appends to `batch` the frames that have arrived, and waits until there is at least one. `false` at the end of
    /// the stream. Nothing is lost when the future is dropped.
    pub async fn next(&mut self, batch: &mut Vec<Frame<Request>>) -> io::Result<bool> {
        loop {
            while batch.len() < BATCH {
                match decode(&mut self.buffer).map_err(io::Error::other)? {
                    Some(frame) => batch.push(frame),
                    None => break,
                }
            }
            if !batch.is_empty() {
                ChannelCounts::add(&self.open.0.frames_in, batch.len());
                return Ok(true);
            }
            if self.buffer.capacity() - self.buffer.len() < READ / 2 {
                self.buffer.reserve(READ);
            }
            let read = self.read.read_buf(&mut self.buffer).await?;
            if read == 0 {
                return Ok(false);
            }
            ChannelCounts::add(&self.open.0.bytes_in, read);
        }
    }
}

/// Writes replies.
pub struct FrameWriter {
    write: OwnedWriteHalf,
    buffer: Vec<u8>,
    counts: Arc<ChannelCounts>,
}

impl FrameWriter {
    /// Writes one frame; waits while the peer does not read. The error is `InvalidData` if the frame is too large, and
    /// nothing is written then.
    pub async fn send(&mut self, id: u32, load: u16, reply: &Reply, body: &[u8]) -> io::Result<()> {
        self.buffer.clear();
        let encoded = encode(&mut self.buffer, id, load, reply, body);
        encoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.write.write_all(&self.buffer).await?;
        ChannelCounts::add(&self.counts.frames_out, 1);
        ChannelCounts::add(&self.counts.bytes_out, self.buffer.len());
        // Capacity that a large frame has left is given back with the next small frame: parts of an object follow each
        // other.
        if self.buffer.len() < READ {
            self.buffer.shrink_to(READ);
        }
        Ok(())
    }
}
