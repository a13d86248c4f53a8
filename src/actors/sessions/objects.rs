//! Streams objects between a session and its object stores. A part of the session; in the actor thread.

use bytes::Bytes;
use futures::stream::StreamExt;
use tokio::sync::mpsc;

use super::calls::CallReply;
use super::session::Session;
use crate::actors::jetstream::interface::Parts;
use crate::actors::metrics::transfers::{Transfer, Underway};
use crate::channel::message::{JetStreamCall, StoreCall};

/// Most parts of an object that wait between a session and the object store.
const PARTS: usize = 4;

impl Session {
    /// Takes a part of an object that a call puts; an empty part gives the upload up.
    pub(super) async fn uploaded(&mut self, id: u32, part: Bytes) -> std::io::Result<()> {
        if part.is_empty() {
            self.uploads.remove(&id);
        } else if let Some(parts) = self.uploads.get(&id).cloned() {
            self.upload(id, parts, part).await?;
        }
        Ok(())
    }

    /// Passes a part on, and waits while earlier parts are on their way; the session has nothing else to say meanwhile.
    /// Calls are driven on meanwhile, because the one that takes the parts is among them, and may yet have to begin.
    async fn upload(&mut self, id: u32, parts: mpsc::Sender<Bytes>, part: Bytes) -> std::io::Result<()> {
        let mut sent = std::pin::pin!(parts.send(part));
        loop {
            tokio::select! {
                biased;
                sent = &mut sent => {
                    if sent.is_err() {
                        self.uploads.remove(&id);
                    }
                    return Ok(());
                }
                Some((id, outcome)) = self.calls.next() => self.called(id, outcome).await?,
            }
        }
    }

    /// Sends a part of an object that a call gets, and waits for the next one; `None` is the end of the object.
    pub(super) async fn downloaded(
        &mut self,
        id: u32,
        part: Option<CallReply>,
        rest: mpsc::Receiver<CallReply>,
    ) -> std::io::Result<()> {
        if let Some(part) = part {
            self.reply(id, Ok(part)).await?;
            self.download(id, rest);
        }
        Ok(())
    }

    fn download(&mut self, id: u32, mut parts: mpsc::Receiver<CallReply>) {
        self.downloads.push(Box::pin(async move {
            let part = parts.recv().await;
            (id, part, parts)
        }));
    }

    /// Makes the channels for the object that a call may stream.
    pub(super) fn parts(&mut self, id: u32, call: &JetStreamCall) -> Parts {
        let (sender, upload) = mpsc::channel(PARTS);
        let (download, parts) = mpsc::channel(PARTS);
        if let JetStreamCall::Store { call, .. } = call {
            match call {
                StoreCall::Put { .. } => drop(self.uploads.insert(id, sender)),
                StoreCall::Get { .. } => self.download(id, parts),
                StoreCall::Delete { .. } | StoreCall::Info { .. } | StoreCall::List => {}
            }
        }
        Parts { upload, download }
    }

    /// Has the object that a call transfers shown as long as the call runs; `None` if the call transfers none.
    pub(super) fn underway(&self, slot: u16, call: &JetStreamCall) -> Option<Underway> {
        let JetStreamCall::Store { store, call } = call else {
            return None;
        };
        let (command, name) = match call {
            StoreCall::Put { name, .. } => ("put", name),
            StoreCall::Get { name } => ("get", name),
            StoreCall::Delete { .. } | StoreCall::Info { .. } | StoreCall::List => return None,
        };
        let slot = self.slots.get(&slot)?;
        Some(self.actors.counters.transfers.begin(Transfer {
            pid: self.pid,
            database: slot.key.database,
            server: slot.key.server,
            server_name: slot.server_name.clone(),
            command,
            store: store.clone(),
            name: name.clone(),
        }))
    }
}
