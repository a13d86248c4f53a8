//! What a session does for each of its requests except publishes: one function for each topic. A part of the session;
//! in the actor thread.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::calls::{self, CallReply, done};
use super::session::{DrainedDatabase, Session, SessionSlot, unknown_slot};
use super::statistics;
use crate::actors::base::tasks;
use crate::actors::connections::interface::{
    CompareSettings, ConnectionHandle, MappingsInUse, OpenConnection, ReloadServer, stopped,
};
use crate::actors::connections::lease::ConnectionUser;
use crate::actors::dispatcher::interface::{Promoted, Refresh, SessionSeen};
use crate::actors::doctor::examine::examine;
use crate::actors::outbox::interface::Wake;
use crate::channel::message::{JetStreamCall, JetStreamOptions, PROTOCOL, Peer, Reply, Request};
use crate::channel::target::{Key, Target};
use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Most requests of one session that may wait for their reply; a backend has one.
const MAX_CALLS: usize = 64;
/// Longest wait for a refresh to take effect; the session is told if that was too short.
const REFRESH_LIMIT: Duration = Duration::from_secs(5);

impl Session {
    pub(super) async fn dispatch(&mut self, id: u32, request: Request, body: Bytes) -> std::io::Result<()> {
        match request {
            Request::Hello { protocol, pid, peer } => self.greet(id, protocol, pid, peer).await?,
            Request::Use {
                slot,
                target,
                settings,
                wait_ms,
            } => self.use_slot(id, slot, target, *settings, wait_ms).await?,
            Request::CloseSlot { slot } => drop(self.slots.remove(&slot)),
            Request::Barrier => self.barrier(id).await?,
            Request::Hold => self.held = Some(Vec::new()),
            Request::Release => self.release().await,
            Request::Discard => self.held = None,
            Request::Cancel { request } => self.cancel(request),
            Request::Ask {
                slot,
                subject,
                headers,
                timeout_ms,
                wait_ms,
            } => {
                let ask = |handle| calls::ask(handle, subject, headers, body, timeout_ms, wait_ms);
                self.call_slot(id, slot, ask).await?;
            }
            Request::ServerInfo { slot, wait_ms } => {
                let info = |handle| calls::server_info(handle, wait_ms);
                self.call_slot(id, slot, info).await?;
            }
            Request::JetStream { slot, api, call } => self.jetstream(id, slot, api, call, body).await?,
            Request::Upload { upload } => self.uploaded(upload, body).await?,
            Request::MappingsInUse { database, server } => {
                self.mappings_in_use(id, MappingsInUse { database, server })
                    .await?;
            }
            Request::Reload {
                database,
                server,
                settings,
                force,
                wait_ms,
            } => {
                let reload = ReloadServer {
                    database,
                    server,
                    settings,
                    force,
                    limit: Duration::from_millis(wait_ms.into()),
                };
                self.reload(id, reload).await?;
            }
            Request::Refresh { database } => self.refresh(database).await?,
            Request::Outbox { database } => self.actors.outbox.do_send(Wake(database)),
            Request::DrainDatabase { database } => self.drain(id, database).await?,
            Request::Statistics { database, of } => {
                let rows = statistics::rows(self.actors.clone(), database, of);
                self.call(id, rows).await?;
            }
            Request::ResetStatistics { database } => {
                let reset = statistics::reset(self.actors.clone(), database);
                self.call(id, reset).await?;
            }
            Request::Examine {
                key,
                settings,
                limit_ms,
            } => self.examine(id, key, *settings, limit_ms).await?,
            Request::Promoted { timeline, databases } => {
                self.actors.dispatcher.do_send(Promoted { timeline, databases });
            }
            // `worker_session` takes the former, and `Session::take` the latter.
            Request::Worker(_) | Request::Publish { .. } => {}
            #[cfg(debug_assertions)]
            Request::Panic { task } => return self.panic(id, &task).await,
        }
        Ok(())
    }

    async fn greet(&mut self, id: u32, protocol: u16, pid: u32, peer: Peer) -> std::io::Result<()> {
        self.welcome = protocol == PROTOCOL;
        self.pid = pid;
        if let (Peer::Worker { id: worker }, true) = (peer, self.welcome) {
            self.worker = Some(worker);
        }
        let outcome = if self.welcome {
            done(Reply::Welcome { protocol })
        } else {
            Err(other_protocol(protocol))
        };
        self.reply(id, outcome).await
    }

    /// Binds a slot to a connection, which is opened if needed, and watches the connection for the session.
    async fn use_slot(
        &mut self,
        id: u32,
        slot: u16,
        target: Target,
        settings: Settings,
        wait_ms: u32,
    ) -> std::io::Result<()> {
        let (key, server_name) = (target.key, target.server_name.clone());
        self.actors.dispatcher.do_send(SessionSeen(key.database));
        let open = OpenConnection {
            target,
            settings,
            user: ConnectionUser::Session,
        };
        let opened = self.actors.supervisor.send(open).await;
        let handle = match opened.unwrap_or_else(|_| Err(stopped())) {
            Ok(handle) => handle,
            Err(error) => return self.reply(id, Err(error)).await,
        };
        let (watched, end) = oneshot::channel();
        self.watch(slot, handle.status.clone(), end);
        let used = SessionSlot {
            key,
            server_name,
            handle: handle.clone(),
            _watched: watched,
        };
        self.slots.insert(slot, used);
        self.call(id, calls::link(handle, wait_ms)).await
    }

    async fn barrier(&mut self, id: u32) -> std::io::Result<()> {
        self.coalescing.asked();
        let outcome = self.refused.take().map_or(done(Reply::Done), Err);
        self.reply(id, outcome).await
    }

    /// The session has committed: its held publishes are sent.
    async fn release(&mut self) {
        if let Some(held) = self.held.take() {
            for run in held {
                self.publish(run).await;
            }
        }
    }

    /// The session gives a call up, together with the call's upload, if it has one.
    fn cancel(&mut self, request: u32) {
        self.uploads.remove(&request);
        if let Some(cancel) = self.cancels.get(&request) {
            cancel.cancel();
        }
    }

    async fn jetstream(
        &mut self,
        id: u32,
        slot: u16,
        options: JetStreamOptions,
        call: JetStreamCall,
        body: Bytes,
    ) -> std::io::Result<()> {
        let Some(handle) = self.slots.get(&slot).map(|slot| slot.handle.clone()) else {
            return self.reply(id, Err(unknown_slot())).await;
        };
        let parts = self.parts(id, &call);
        let underway = self.underway(slot, &call);
        let cancel = CancellationToken::new();
        let asked = calls::JetStreamRequest {
            handle,
            options,
            body,
            progress: underway
                .as_ref()
                .map(|underway| underway.progress.clone())
                .unwrap_or_default(),
            cancel: cancel.clone(),
        };
        let call = async move {
            let _underway = underway;
            asked.call(call, parts).await
        };
        self.cancellable(id, cancel, call).await
    }

    async fn mappings_in_use(&mut self, id: u32, of: MappingsInUse) -> std::io::Result<()> {
        let mappings = self.actors.supervisor.send(of);
        let call = async move {
            let mappings = mappings.await.map_err(|_| stopped())?;
            done(Reply::MappingsInUse { mappings })
        };
        self.call(id, call).await
    }

    async fn reload(&mut self, id: u32, reload: ReloadServer) -> std::io::Result<()> {
        let reload = self.actors.supervisor.send(reload);
        if id == 0 {
            // At a commit nobody waits for the outcome: the connection logs a failure and shows it. The session's next
            // request comes after the reload. The reload has a task of its own, because the session may end first, and
            // actix skips a message whose answer nobody waits for.
            drop(tasks::spawn("reload at a commit", reload).await);
            return Ok(());
        }
        let call = async move {
            reload.await.unwrap_or_else(|_| Err(stopped()))?;
            done(Reply::Done)
        };
        self.call(id, call).await
    }

    /// Has a database refreshed before the session's next request. The session is told if that takes too long.
    async fn refresh(&mut self, database: u32) -> std::io::Result<()> {
        self.drained.retain(|drained| drained.database != database);
        // The refresh has a task of its own, because the session may end first, and actix skips a message whose answer
        // nobody waits for.
        let refresh = self.actors.dispatcher.send(Refresh(database));
        let refresh = tasks::spawn("refresh at a commit", refresh);
        let outcome = timeout(REFRESH_LIMIT, refresh).await;
        if matches!(outcome, Ok(Ok(Some(Ok(true))))) {
            return Ok(());
        }
        self.reply(0, done(Reply::RefreshIsLate { database })).await
    }

    /// Drains a database, until the session has it refreshed or ends.
    async fn drain(&mut self, id: u32, database: u32) -> std::io::Result<()> {
        self.drained.push(DrainedDatabase {
            database,
            dispatcher: self.actors.dispatcher.clone().recipient(),
        });
        let drained = calls::drain_database(self.actors.clone(), database);
        self.call(id, drained).await
    }

    async fn examine(&mut self, id: u32, key: Key, settings: Settings, limit_ms: u32) -> std::io::Result<()> {
        let limit = Duration::from_millis(limit_ms.into());
        let compare = CompareSettings(key, settings.clone());
        let running = self.actors.supervisor.send(compare);
        let running = async move { running.await.ok().flatten() };
        let examination = examine(settings, running, self.actors.patroni.clone(), limit);
        self.call(id, async move { done(Reply::Findings(examination.await)) })
            .await
    }

    /// For tests: makes the supervisor panic if `task` is empty, otherwise the oldest task whose name begins with
    /// `task`.
    #[cfg(debug_assertions)]
    async fn panic(&mut self, id: u32, task: &str) -> std::io::Result<()> {
        if task.is_empty() {
            let panic = crate::actors::connections::interface::Panic;
            self.actors.supervisor.do_send(panic);
            return Ok(());
        }
        if !tasks::make_panic(task) {
            log::warn!("no task is called \"{task}\"");
        }
        self.reply(id, done(Reply::Done)).await
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

    /// Starts a call, whose reply is sent when the call has ended. A call with id 0 wants no reply.
    async fn call(
        &mut self,
        id: u32,
        call: impl Future<Output = Result<CallReply>> + 'static,
    ) -> std::io::Result<()> {
        self.cancellable(id, CancellationToken::new(), call).await
    }

    /// Like [`Session::call`]. `cancel` is cancelled when the call ends, is given up, or its session ends, so that
    /// others with the token end too.
    async fn cancellable(
        &mut self,
        id: u32,
        cancel: CancellationToken,
        call: impl Future<Output = Result<CallReply>> + 'static,
    ) -> std::io::Result<()> {
        if self.calls.len() >= MAX_CALLS {
            let error = Error::new(Kind::Protocol, "too many requests of one session");
            return self.reply(id, Err(error)).await;
        }
        let in_flight = self.in_flight.call();
        self.cancels.insert(id, cancel.clone());
        self.calls.push(Box::pin(async move {
            let _in_flight = in_flight;
            let _end = cancel.clone().drop_guard();
            let outcome = cancel.run_until_cancelled(call).await;
            (id, outcome.filter(|_| id != 0))
        }));
        Ok(())
    }
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
