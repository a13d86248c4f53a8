//! What a session does for each of its requests, but publishes. In the actor thread.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{AbortHandle, Abortable};
use futures::stream::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;

use super::calls::CallReply;
use super::session::{Session, SessionSlot, unknown_slot};
use super::{calls, statistics};
use crate::actors::connections::interface::{
    CompareSettings, ConnectionHandle, MappingsInUse, OpenConnection, Panic, ReloadServer, stopped,
};
use crate::actors::dispatcher::interface::{Promoted, Refresh, SessionSeen};
use crate::actors::doctor::examine::examine;
use crate::actors::jetstream::interface::Parts;
use crate::actors::metrics::transfers::{Transfer, Underway};
use crate::actors::outbox::interface::Wake;
use crate::actors::workers::messages::ResumeDatabase;
use crate::channel::message::{JetStreamCall, PROTOCOL, Peer, Reply, Request, StoreCall};
use crate::error::{Error, Kind, Result};

/// Requests of one session that may wait for their reply; a backend has one, an executor a few.
const MAX_CALLS: usize = 64;
/// Parts of an object that wait between a session and the object store.
const PARTS: usize = 4;
/// PostgreSQL's invalidations of a transaction are sent so soon after its commit.
const CACHES: Duration = Duration::from_millis(3);
/// Longest wait for changed handlers to take effect.
const REFRESH_LIMIT: Duration = Duration::from_secs(5);

impl Session {
    pub(super) async fn dispatch(&mut self, id: u32, request: Request, body: Bytes) -> std::io::Result<()> {
        match request {
            Request::Hello { protocol, pid, peer } => {
                self.welcome = protocol == PROTOCOL;
                self.pid = pid;
                if let (Peer::Worker { id: worker }, true) = (peer, self.welcome) {
                    self.executor = Some(worker);
                }
                let outcome = if self.welcome {
                    done(Reply::Welcome { protocol })
                } else {
                    Err(other_protocol(protocol))
                };
                self.reply(id, outcome).await
            }
            Request::Barrier => {
                self.pace.asked();
                let outcome = self.refused.take().map_or(done(Reply::Done), Err);
                self.reply(id, outcome).await
            }
            Request::Hold => {
                self.held = Some(Vec::new());
                Ok(())
            }
            Request::Release => {
                for run in self.held.take().unwrap_or_default() {
                    self.publish(run).await;
                }
                Ok(())
            }
            Request::Discard => {
                self.held = None;
                Ok(())
            }
            Request::Outbox { database } => {
                self.actors.outbox.do_send(Wake(database));
                Ok(())
            }
            Request::Leave { slot } => {
                if let Some(slot) = self.slots.remove(&slot) {
                    self.leave(slot);
                }
                Ok(())
            }
            Request::Cancel { request } => {
                self.uploads.remove(&request);
                if let Some(cancel) = self.cancels.get(&request) {
                    cancel.abort();
                }
                Ok(())
            }
            Request::Use {
                slot,
                target,
                settings,
                wait_ms,
            } => {
                let (key, server_name) = (target.key, target.server_name.clone());
                self.actors.dispatcher.do_send(SessionSeen(key.database));
                let opened = self
                    .actors
                    .supervisor
                    .send(OpenConnection {
                        target,
                        settings: *settings,
                    })
                    .await;
                let handle = match opened.map_err(|_| stopped()).and_then(|opened| opened) {
                    Ok(handle) => handle,
                    Err(error) => return self.reply(id, Err(error)).await,
                };
                let (watched, end) = oneshot::channel();
                self.watch(slot, handle.status.clone(), end);
                self.slots.insert(
                    slot,
                    SessionSlot {
                        key,
                        server_name,
                        _session: handle.session(),
                        _watched: watched,
                        handle: handle.clone(),
                    },
                );
                self.call(id, calls::link(handle, wait_ms)).await
            }
            Request::Ask {
                slot,
                subject,
                headers,
                timeout_ms,
                wait_ms,
            } => {
                self.call_slot(id, slot, |handle| {
                    calls::ask(handle, subject, headers, body, timeout_ms, wait_ms)
                })
                .await
            }
            Request::ServerInfo { slot, wait_ms } => {
                self.call_slot(id, slot, |handle| calls::server_info(handle, wait_ms))
                    .await
            }
            Request::JetStream { slot, api, call } => {
                let parts = self.parts(id, &call);
                let underway = self.underway(slot, &call);
                let progress = underway.as_ref().map(|underway| underway.progress.clone());
                self.call_slot(id, slot, |handle| async move {
                    let _underway = underway;
                    let progress = progress.unwrap_or_default();
                    calls::jetstream(handle, api, call, body, parts, progress).await
                })
                .await
            }
            Request::Upload { upload } => {
                if body.is_empty() {
                    self.uploads.remove(&upload);
                } else if let Some(parts) = self.uploads.get(&upload).cloned() {
                    self.upload(upload, parts, body).await?;
                }
                Ok(())
            }
            Request::MappingsInUse { database, server } => {
                let mappings = self.actors.supervisor.send(MappingsInUse { database, server });
                let call = async move {
                    done(Reply::MappingsInUse {
                        mappings: mappings.await.map_err(|_| stopped())?,
                    })
                };
                self.call(id, call).await
            }
            Request::Reload {
                database,
                server,
                settings,
                force,
                wait_ms,
            } => {
                let limit = Duration::from_millis(wait_ms.into());
                let reload = ReloadServer {
                    database,
                    server,
                    settings,
                    force,
                    limit,
                };
                if id == 0 {
                    // At a commit: the outcome is nobody's, but what the session says next comes after it. In a task
                    // of its own, because the session may end first, and actix skips what nobody waits for.
                    let _ = actix::spawn(self.actors.supervisor.send(reload)).await;
                    return Ok(());
                }
                let reload = self.actors.supervisor.send(reload);
                let call = async move {
                    reload
                        .await
                        .map_err(|_| stopped())?
                        .and_then(|()| done(Reply::Done))
                };
                self.call(id, call).await
            }
            Request::Refresh { database } => {
                self.drained.retain(|drained| {
                    *drained != database || {
                        self.actors.dispatcher.do_send(ResumeDatabase(database));
                        false
                    }
                });
                // A commit is told of before other processes' caches are.
                tokio::time::sleep(CACHES).await;
                // What the session says next comes after it.
                let look = actix::spawn(self.actors.dispatcher.send(Refresh(database)));
                let _ = timeout(REFRESH_LIMIT, look).await;
                Ok(())
            }
            Request::DrainDatabase { database } => {
                self.drained.push(database);
                self.call(id, calls::drain_database(self.actors.clone(), database))
                    .await
            }
            Request::Statistics { database, of } => {
                self.call(id, statistics::rows(self.actors.clone(), database, of))
                    .await
            }
            Request::Examine {
                key,
                settings,
                limit_ms,
            } => {
                let (patroni, limit) = (
                    self.actors.patroni.clone(),
                    Duration::from_millis(limit_ms.into()),
                );
                let running = self
                    .actors
                    .supervisor
                    .send(CompareSettings(key, (*settings).clone()));
                let running = async move { running.await.ok().flatten() };
                let examination = examine(*settings, running, patroni, limit);
                self.call(id, async move { done(Reply::Rows(examination.await)) })
                    .await
            }
            Request::ResetStatistics { database } => {
                self.call(id, statistics::reset(self.actors.clone(), database))
                    .await
            }
            Request::Promoted { timeline, databases } => {
                self.actors.dispatcher.do_send(Promoted { timeline, databases });
                Ok(())
            }
            // Taken by `executor_session`.
            Request::Executor(_) => Ok(()),
            #[cfg(debug_assertions)]
            Request::Panic => {
                self.actors.supervisor.do_send(Panic);
                Ok(())
            }
            // Taken by `take`.
            Request::Publish { .. } => Ok(()),
        }
    }

    /// Waits while earlier parts are on their way; the session has nothing else to say meanwhile. The call that takes
    /// them goes on, or may yet have to begin.
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

    /// Starts a call on the connection of a slot.
    async fn call_slot<C>(
        &mut self,
        id: u32,
        slot: u16,
        call: impl FnOnce(ConnectionHandle) -> C,
    ) -> std::io::Result<()>
    where
        C: Future<Output = Result<CallReply>> + 'static,
    {
        match self.slots.get(&slot) {
            Some(slot) => self.call(id, call(slot.handle.clone())).await,
            None => self.reply(id, Err(unknown_slot())).await,
        }
    }

    /// Has the object that a call may transfer shown as long as it does.
    fn underway(&self, slot: u16, call: &JetStreamCall) -> Option<Underway> {
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
            server: (slot.key.server, slot.server_name.clone()),
            command,
            store: store.clone(),
            name: name.clone(),
        }))
    }

    /// Channels for the object that a call may stream.
    fn parts(&mut self, id: u32, call: &JetStreamCall) -> Parts {
        let (sender, upload) = mpsc::channel(PARTS);
        if let JetStreamCall::Store {
            call: StoreCall::Put { .. },
            ..
        } = call
        {
            self.uploads.insert(id, sender);
        }
        let (download, parts) = mpsc::channel(PARTS);
        if let JetStreamCall::Store {
            call: StoreCall::Get { .. },
            ..
        } = call
        {
            self.downloads.insert(id, ReceiverStream::new(parts));
        }
        Parts { upload, download }
    }

    /// Starts a call whose reply is sent when it is there. Calls without an id want no reply.
    async fn call(
        &mut self,
        id: u32,
        call: impl Future<Output = Result<CallReply>> + 'static,
    ) -> std::io::Result<()> {
        if self.calls.len() >= MAX_CALLS {
            return self
                .reply(
                    id,
                    Err(Error::new(Kind::Protocol, "too many requests of one session")),
                )
                .await;
        }
        let (cancel, registration) = AbortHandle::new_pair();
        let call = Abortable::new(call, registration);
        let in_flight = self.load.call();
        self.calls.push(Box::pin(async move {
            let _in_flight = in_flight;
            let outcome = call.await.ok();
            (id, outcome.filter(|_| id != 0))
        }));
        self.cancels.insert(id, cancel);
        Ok(())
    }
}

fn done(reply: Reply) -> Result<CallReply> {
    Ok((reply, Bytes::new()))
}

fn other_protocol(theirs: u16) -> Error {
    Error::new(
        Kind::Protocol,
        "this session and the litmus_pgnats runtime worker have different versions of the library",
    )
    .detail(format!(
        "The session speaks protocol {theirs}, the runtime worker {PROTOCOL}."
    ))
}
