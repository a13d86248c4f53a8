//! Keeps one connection for all users that present the same database, server and user mapping. Runs in the actor
//! thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::watch;

use super::interface::{
    CompareSettings, ConnectionActors, ConnectionHandle, DatabaseDropped, FinishConnections, MappingsInUse,
    OpenConnection, ReloadServer, stopped,
};
use super::lease::{ConnectionReleased, ConnectionUser, Lease};
use super::usage::Usage;
use crate::actors::base::tasks::Vital;
use crate::actors::connection::Connection;
use crate::actors::connection::interface::{
    CONNECT_LIMIT, FinishConnection, ReloadConnection, ReplaceSettings, SettingsMatch,
};
use crate::actors::connection::status::ConnectionStatus;
use crate::actors::jetstream::key_value::KeyValue;
use crate::actors::jetstream::object_store::ObjectStore;
use crate::actors::jetstream::publish::JetStream;
use crate::actors::metrics::connection_stats::{ConnectionTable, SharedStats};
use crate::channel::target::{Key, Target};
use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Time between two searches for connections that nobody has used for long.
const SWEEP: Duration = Duration::from_secs(30);

/// Most connections at a time. Each user mapping may have one, and every role that may use a server may create a
/// mapping.
const MAX_CONNECTIONS: usize = 200;

/// A connection, and who uses it.
struct OpenedConnection {
    /// Tells this connection from earlier and later ones with the same key.
    number: u64,
    actors: Arc<ConnectionActors>,
    status: watch::Receiver<ConnectionStatus>,
    usage: Usage,
    stats: SharedStats,
}

/// The actor that opens, shares and closes all NATS connections.
pub struct Supervisor {
    /// The cluster's label, a part of the connections' names in NATS's monitoring.
    cluster: String,
    connections: HashMap<Key, OpenedConnection>,
    table: ConnectionTable,
    opened: u64,
    _vital: Vital,
}

impl Supervisor {
    pub fn new(cluster: String, table: ConnectionTable) -> Self {
        Supervisor {
            cluster,
            connections: HashMap::new(),
            table,
            opened: 0,
            _vital: Vital::new("supervisor"),
        }
    }

    /// Starts the actors of a connection.
    fn open(&mut self, target: &Target, settings: Settings) -> OpenedConnection {
        let name = format!(
            "litmus_pgnats/{}/{}/{}",
            self.cluster, target.database_name, target.server_name
        );
        let stats = self.table.add(target);
        let (connection, status) = Connection::start(name, settings, stats.clone());
        let actors = ConnectionActors {
            connect_now: connection.clone().recipient(),
            connection,
            jetstream: JetStream::new(status.clone()).start(),
            key_value: KeyValue::new(status.clone()).start(),
            object_store: ObjectStore::new(status.clone()).start(),
        };
        self.opened += 1;
        OpenedConnection {
            number: self.opened,
            actors: Arc::new(actors),
            status,
            usage: Usage::new(target.key.private_to != 0),
            stats,
        }
    }

    /// If there are too many connections, closes one that nobody uses. Fails with `TooManyConnections` if all are in
    /// use.
    fn make_room(&mut self) -> Result<()> {
        if self.connections.len() < MAX_CONNECTIONS {
            return Ok(());
        }
        let mut unused = self
            .connections
            .iter()
            .filter(|(_, opened)| opened.usage.is_unused());
        let Some(key) = unused.next().map(|(key, _)| *key) else {
            return Err(
                Error::new(Kind::TooManyConnections, "too many NATS connections").detail(format!(
                    "The limit is {MAX_CONNECTIONS} for all sessions together."
                )),
            );
        };
        self.close(key);
        Ok(())
    }

    /// Closes a connection, whose client first delivers what it has taken. Remaining handles find the connection down.
    fn close(&mut self, key: Key) {
        if let Some(opened) = self.connections.remove(&key) {
            self.table.remove(key);
            opened.actors.connection.do_send(FinishConnection(CONNECT_LIMIT));
        }
    }

    fn close_all(&mut self, keys: Vec<Key>) {
        keys.into_iter().for_each(|key| self.close(key));
    }
}

impl OpenedConnection {
    /// A handle for a user, with a new lease.
    fn lease(
        &mut self,
        key: Key,
        user: ConnectionUser,
        supervisor: Recipient<ConnectionReleased>,
    ) -> ConnectionHandle {
        self.usage.begin(user);
        self.stats.lock().set_sessions(self.usage.sessions());
        let lease = Lease::new(supervisor, key, self.number, user);
        ConnectionHandle::new(self.actors.clone(), self.status.clone(), lease)
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(SWEEP, |actor, _| {
            let now = Instant::now();
            let forgotten = actor
                .connections
                .iter()
                .filter(|(_, opened)| opened.usage.is_forgotten(now));
            let forgotten = forgotten.map(|(key, _)| *key).collect();
            actor.close_all(forgotten);
        });
    }
}

impl Handler<OpenConnection> for Supervisor {
    type Result = Result<ConnectionHandle>;

    fn handle(&mut self, open: OpenConnection, ctx: &mut Self::Context) -> Self::Result {
        let OpenConnection {
            target,
            settings,
            user,
        } = open;
        let supervisor = ctx.address().recipient();
        if target.key.private_to != 0 {
            // A session opens a private connection only after it has left the former one, whose options are the former
            // ones too, and which a call that was given up may still use.
            self.close(target.key);
        }
        if let Some(known) = self.connections.get_mut(&target.key) {
            if !known.status.borrow().was_up {
                // A connection that has never been up has nothing to preserve, so corrected settings take effect at
                // once.
                known.actors.connection.do_send(ReplaceSettings(settings));
            }
            return Ok(known.lease(target.key, user, supervisor));
        }
        self.make_room()?;
        let mut opened = self.open(&target, settings);
        let handle = opened.lease(target.key, user, supervisor);
        self.connections.insert(target.key, opened);
        Ok(handle)
    }
}

impl Handler<ConnectionReleased> for Supervisor {
    type Result = ();

    fn handle(&mut self, released: ConnectionReleased, _: &mut Self::Context) {
        // The users of a connection that was closed meanwhile are no longer counted.
        let Some(opened) = self.connections.get_mut(&released.key) else {
            return;
        };
        if opened.number != released.connection {
            return;
        }
        let is_over = opened.usage.end(released.user, Instant::now());
        opened.stats.lock().set_sessions(opened.usage.sessions());
        if is_over {
            self.close(released.key);
        }
    }
}

impl Handler<DatabaseDropped> for Supervisor {
    type Result = ();

    fn handle(&mut self, DatabaseDropped(database): DatabaseDropped, _: &mut Self::Context) {
        let of_database = self
            .connections
            .iter_mut()
            .filter(|(key, _)| key.database == database);
        let unused = of_database.filter_map(|(key, opened)| opened.usage.close_when_unused().then_some(*key));
        let unused = unused.collect();
        self.close_all(unused);
    }
}

impl Handler<MappingsInUse> for Supervisor {
    type Result = Vec<u32>;

    fn handle(&mut self, of: MappingsInUse, _: &mut Self::Context) -> Self::Result {
        let keys = self.connections.keys();
        keys.filter(|key| key.database == of.database && key.server == of.server && key.private_to == 0)
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
                (Some(opened), Some(settings)) => {
                    reloads.push(opened.actors.connection.send(ReloadConnection {
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
        let opened = self.connections.get(&key);
        let compared = opened.map(|opened| opened.actors.connection.send(SettingsMatch(settings)));
        // A connection that ends meanwhile counts as none.
        Box::pin(async move { compared?.await.ok() })
    }
}

impl Handler<FinishConnections> for Supervisor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, FinishConnections(limit): FinishConnections, _: &mut Self::Context) -> Self::Result {
        let connections = self
            .connections
            .drain()
            .map(|(_, opened)| opened.actors.connection.clone());
        let finished = connections.map(|connection| async move {
            // A connection that has ended by itself has nothing left to deliver.
            let _ = connection.send(FinishConnection(limit)).await;
        });
        let finished = futures::future::join_all(finished.collect::<Vec<_>>());
        Box::pin(async move {
            finished.await;
        })
    }
}

#[cfg(debug_assertions)]
impl Handler<super::interface::Panic> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: super::interface::Panic, _: &mut Self::Context) {
        std::panic::resume_unwind(Box::new("asked to panic"));
    }
}
