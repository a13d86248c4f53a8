//! Keeps one connection for all sessions that present the same database, server and user mapping. Runs in the
//! actor thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::interface::{
    CompareSettings, ConnectionHandle, ConnectionLeft, ConnectionRows, DatabaseDropped, FinishConnections,
    MappingsInUse, OpenConnection, Panic, ReloadServer, ResetConnections, stopped,
};
use crate::actors::base::liveness::Vital;
use crate::actors::connection::Connection;
use crate::actors::connection::interface::{
    CONNECT_LIMIT, DescribeConnection, FinishConnection, ReloadConnection, ReplaceSettings, ResetConnection,
    SettingsMatch,
};
use crate::actors::jetstream::key_value::KeyValue;
use crate::actors::jetstream::object_store::ObjectStore;
use crate::actors::jetstream::publish::JetStream;
use crate::channel::target::Key;
use crate::error::{Error, Kind, Result};
use crate::row::Row;

/// A connection that no session has used for so long is closed.
const UNUSED_LIMIT: Duration = Duration::from_secs(300);

/// Between two looks for such connections.
const SWEEP: Duration = Duration::from_secs(30);

/// By then the handlers of a database that was dropped, and its last sessions, have let go of their connections.
const LET_GO: Duration = Duration::from_secs(5);

/// Most connections at a time. Each user mapping may have one, and every role that may use a server may make one.
const MAX_CONNECTIONS: usize = 200;

/// A connection, and since when nobody uses it.
struct KeptConnection {
    handle: ConnectionHandle,
    unused_since: Option<Instant>,
}

impl KeptConnection {
    fn is_unused(&self) -> bool {
        Arc::strong_count(&self.handle.users) == 1
    }
}

/// Whether nobody has used a connection for [`UNUSED_LIMIT`]. Asked now and then, so that also one is found whose last
/// user went without a word.
fn is_forgotten(unused_since: &mut Option<Instant>, is_unused: bool, now: Instant) -> bool {
    if !is_unused {
        *unused_since = None;
        return false;
    }
    now.duration_since(*unused_since.get_or_insert(now)) >= UNUSED_LIMIT
}

/// The actor.
pub struct Supervisor {
    /// First part of the connections' names in NATS's monitoring.
    cluster: String,
    connections: HashMap<Key, KeptConnection>,
    vital: Vital,
}

impl Supervisor {
    pub fn new(cluster: String, vital: Vital) -> Self {
        Supervisor {
            cluster,
            connections: HashMap::new(),
            vital,
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(SWEEP, |actor, _| {
            let now = Instant::now();
            let mut forgotten = Vec::new();
            for (key, kept) in &mut actor.connections {
                let is_unused = kept.is_unused();
                if is_forgotten(&mut kept.unused_since, is_unused, now) {
                    forgotten.push(*key);
                }
            }
            forgotten.into_iter().for_each(|key| actor.close(key));
        });
    }
}

impl Handler<OpenConnection> for Supervisor {
    type Result = Result<ConnectionHandle>;

    fn handle(
        &mut self,
        OpenConnection { target, settings }: OpenConnection,
        _: &mut Self::Context,
    ) -> Self::Result {
        if !self.connections.contains_key(&target.key) {
            self.make_room()?;
        }
        if let Some(known) = self.connections.get(&target.key)
            && !known.handle.status.borrow().was_up
        {
            // There is nothing to preserve: what was corrected since counts at once.
            let correct = ReplaceSettings(settings.clone());
            known.handle.connection.do_send(correct);
        }
        let kept = self.connections.entry(target.key).or_insert_with(|| {
            let name = format!(
                "litmus_pgnats/{}/{}/{}",
                self.cluster, target.database_name, target.server_name
            );
            let (connection, status) = Connection::start(name, settings, self.vital.clone());
            let handle = ConnectionHandle {
                connection,
                jetstream: JetStream::new(status.clone()).start(),
                key_value: KeyValue::new(status.clone()).start(),
                object_store: ObjectStore::new(status.clone()).start(),
                status,
                users: Arc::new(()),
                sessions: Arc::default(),
                server_name: target.server_name.into(),
            };
            KeptConnection {
                handle,
                unused_since: None,
            }
        });
        kept.unused_since = None;
        Ok(kept.handle.clone())
    }
}

impl Handler<ConnectionLeft> for Supervisor {
    type Result = ();

    fn handle(&mut self, ConnectionLeft(key): ConnectionLeft, _: &mut Self::Context) {
        if key.private_to != 0 {
            self.close(key);
        } else if let Some(kept) = self.connections.get_mut(&key)
            && kept.is_unused()
        {
            kept.unused_since = Some(Instant::now());
        }
    }
}

impl Handler<DatabaseDropped> for Supervisor {
    type Result = ();

    fn handle(&mut self, DatabaseDropped(database): DatabaseDropped, ctx: &mut Self::Context) {
        ctx.run_later(LET_GO, move |actor, _| {
            let mut keys: Vec<Key> = actor.connections.keys().copied().collect();
            keys.retain(|key| key.database == database && actor.is_unused(*key));
            keys.into_iter().for_each(|key| actor.close(key));
        });
    }
}

impl Supervisor {
    fn is_unused(&self, key: Key) -> bool {
        self.connections.get(&key).is_some_and(KeptConnection::is_unused)
    }

    /// Closes a connection that nobody uses if there are too many; fails if all are in use.
    fn make_room(&mut self) -> Result<()> {
        if self.connections.len() < MAX_CONNECTIONS {
            return Ok(());
        }
        let unused = self.connections.keys().copied().find(|key| self.is_unused(*key));
        let Some(unused) = unused else {
            return Err(
                Error::new(Kind::TooManyConnections, "too many NATS connections").detail(format!(
                    "The limit is {MAX_CONNECTIONS} for all sessions together."
                )),
            );
        };
        self.close(unused);
        Ok(())
    }

    fn close(&mut self, key: Key) {
        if let Some(KeptConnection { handle, .. }) = self.connections.remove(&key) {
            let finish = FinishConnection(CONNECT_LIMIT);
            handle.connection.do_send(finish);
        }
    }
}

impl Handler<MappingsInUse> for Supervisor {
    type Result = Vec<u32>;

    fn handle(
        &mut self,
        MappingsInUse { database, server }: MappingsInUse,
        _: &mut Self::Context,
    ) -> Self::Result {
        let keys = self.connections.keys();
        keys.filter(|key| key.database == database && key.server == server && key.private_to == 0)
            .map(|key| key.mapping)
            .collect()
    }
}

impl Handler<ReloadServer> for Supervisor {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, reload: ReloadServer, _: &mut Self::Context) -> Self::Result {
        let ReloadServer {
            database,
            server,
            settings,
            force,
            limit,
        } = reload;
        let mut reloads = Vec::new();
        for (mapping, settings) in settings {
            let key = Key {
                database,
                server,
                mapping,
                private_to: 0,
            };
            match (self.connections.get(&key), settings) {
                (Some(KeptConnection { handle, .. }), Some(settings)) => {
                    reloads.push(handle.connection.send(ReloadConnection {
                        settings,
                        force,
                        limit,
                    }));
                }
                (Some(_), None) => self.close(key),
                (None, _) => {}
            }
        }
        Box::pin(async move {
            let outcomes = futures::future::join_all(reloads).await;
            outcomes
                .into_iter()
                .try_for_each(|outcome| outcome.unwrap_or_else(|_| Err(stopped())))
        })
    }
}

impl Handler<CompareSettings> for Supervisor {
    type Result = ResponseFuture<Option<bool>>;

    fn handle(
        &mut self,
        CompareSettings(key, settings): CompareSettings,
        _: &mut Self::Context,
    ) -> Self::Result {
        let kept = self.connections.get(&key);
        let compared = kept.map(|kept| kept.handle.connection.send(SettingsMatch(settings)));
        Box::pin(async move { compared?.await.ok() })
    }
}

impl Handler<ConnectionRows> for Supervisor {
    type Result = ResponseFuture<Vec<Row>>;

    fn handle(&mut self, _: ConnectionRows, _: &mut Self::Context) -> Self::Result {
        let rows = self
            .connections
            .iter()
            .map(|(key, KeptConnection { handle, .. })| {
                let known = [
                    Some(key.database.to_string()),
                    Some(key.server.to_string()),
                    Some(handle.server_name.to_string()),
                    (key.mapping != 0).then(|| key.mapping.to_string()),
                    (key.private_to != 0).then(|| key.private_to.to_string()),
                    Some(handle.sessions.load(Ordering::Relaxed).to_string()),
                ];
                let rest = handle.connection.send(DescribeConnection);
                async move {
                    // One that ends meanwhile has no row.
                    let rest = rest.await.ok()?;
                    Some([known.to_vec(), rest].concat())
                }
            });
        let rows = futures::future::join_all(rows);
        Box::pin(async move { rows.await.into_iter().flatten().collect() })
    }
}

impl Handler<ResetConnections> for Supervisor {
    type Result = ();

    fn handle(&mut self, ResetConnections(database): ResetConnections, _: &mut Self::Context) {
        for (key, kept) in &self.connections {
            if key.database == database {
                kept.handle.connection.do_send(ResetConnection);
            }
        }
    }
}

impl Handler<FinishConnections> for Supervisor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, FinishConnections(limit): FinishConnections, _: &mut Self::Context) -> Self::Result {
        let finished = self.connections.drain().map(|(_, kept)| async move {
            let _ = kept.handle.connection.send(FinishConnection(limit)).await;
        });
        let finished = futures::future::join_all(finished);
        Box::pin(async move {
            finished.await;
        })
    }
}

#[cfg(debug_assertions)]
impl Handler<Panic> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        std::panic::resume_unwind(Box::new("asked to panic"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_forgotten_when_its_last_use_is_long_ago() {
        let (began, mut unused_since) = (Instant::now(), None);
        let mut look = |seconds: u64, is_unused: bool| {
            let now = began + Duration::from_secs(seconds);
            is_forgotten(&mut unused_since, is_unused, now)
        };
        assert!(!look(0, true));
        assert!(!look(290, true));
        assert!(!look(295, false), "it is used");
        assert!(!look(310, true), "since now");
        assert!(!look(609, true));
        assert!(look(610, true));
    }
}
