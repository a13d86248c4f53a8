//! Keeps one connection for all sessions that present the same database, server and user mapping. Runs in the
//! actor thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::watch;

use super::connection::{self, Connection};
use super::jetstream::JetStream;
use super::key_value::KeyValue;
use super::object_store::ObjectStore;
use super::status::Status;
use super::system::Vital;
use crate::channel::message::{Key, Row, Target};
use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// A connection that no session has used for so long is closed.
const UNUSED_LIMIT: Duration = Duration::from_secs(300);

/// Between two looks for such connections.
const SWEEP: Duration = Duration::from_secs(30);

/// By then the handlers of a database that was dropped, and its last sessions, have let go of their connections.
const LET_GO: Duration = Duration::from_secs(5);

/// Most connections at a time. Each user mapping may have one, and every role that may use a server may make one.
const MAX_CONNECTIONS: usize = 200;

/// The connection for a key; made with these settings if there is none yet.
#[derive(Message)]
#[rtype(result = "Result<Handle>")]
pub struct Open {
    pub target: Target,
    pub settings: Settings,
}

/// A connection as its users hold it.
#[derive(Clone)]
pub struct Handle {
    pub connection: Addr<Connection>,
    pub jetstream: Addr<JetStream>,
    pub key_value: Addr<KeyValue>,
    pub object_store: Addr<ObjectStore>,
    pub status: watch::Receiver<Status>,
    /// Of the foreign server, when the connection was made.
    server_name: Arc<str>,
    /// Counts the users; one is the supervisor itself.
    users: Arc<()>,
    /// Counts the sessions among them.
    sessions: Arc<AtomicUsize>,
}

/// A session's place at a connection, until it is dropped.
pub struct Seat(Arc<AtomicUsize>);

impl Handle {
    pub fn seat(&self) -> Seat {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Seat(self.sessions.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A session no longer uses the connection of this key.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Left(pub Key);

/// A database is gone, or takes no more connections.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Dropped(pub u32);

/// Which user mappings have a connection to a server.
#[derive(Message)]
#[rtype(result = "Vec<u32>")]
pub struct MappingsInUse {
    pub database: u32,
    pub server: u32,
}

/// Gives the connections of a server new settings by user mapping; those without settings are closed.
#[derive(Message)]
#[rtype(result = "Result<()>")]
pub struct Reload {
    pub database: u32,
    pub server: u32,
    pub settings: Vec<(u32, Option<Settings>)>,
    /// Connect anew even if nothing changed (the surface's `reload_conf_force`).
    pub force: bool,
    pub limit: Duration,
}

/// Whether the connection for a key has these settings; `None` if there is none.
#[derive(Message)]
#[rtype(result = "Option<bool>")]
pub struct Compare(pub Key, pub Settings);

/// A row for each connection.
#[derive(Message)]
#[rtype(result = "Vec<Row>")]
pub struct Rows;

/// Has the connections of a database count anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reset(pub u32);

/// Stops all connections, which first write what they hold.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finish(pub Duration);

/// A connection, and since when nobody uses it.
struct Kept {
    handle: Handle,
    unused_since: Option<Instant>,
}

impl Kept {
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
    connections: HashMap<Key, Kept>,
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

impl Handler<Open> for Supervisor {
    type Result = Result<Handle>;

    fn handle(&mut self, Open { target, settings }: Open, _: &mut Self::Context) -> Self::Result {
        if !self.connections.contains_key(&target.key) {
            self.make_room()?;
        }
        if let Some(known) = self.connections.get(&target.key)
            && !known.handle.status.borrow().was_up
        {
            // There is nothing to preserve: what was corrected since counts at once.
            let correct = connection::Correct(settings.clone());
            known.handle.connection.do_send(correct);
        }
        let kept = self.connections.entry(target.key).or_insert_with(|| {
            let name = format!(
                "litmus_pgnats/{}/{}/{}",
                self.cluster, target.database_name, target.server_name
            );
            let (connection, status) = Connection::start(name, settings, self.vital.clone());
            let handle = Handle {
                connection,
                jetstream: JetStream::new(status.clone()).start(),
                key_value: KeyValue::new(status.clone()).start(),
                object_store: ObjectStore::new(status.clone()).start(),
                status,
                users: Arc::new(()),
                sessions: Arc::default(),
                server_name: target.server_name.into(),
            };
            Kept {
                handle,
                unused_since: None,
            }
        });
        kept.unused_since = None;
        Ok(kept.handle.clone())
    }
}

impl Handler<Left> for Supervisor {
    type Result = ();

    fn handle(&mut self, Left(key): Left, _: &mut Self::Context) {
        if key.private_to != 0 {
            self.close(key);
        } else if let Some(kept) = self.connections.get_mut(&key)
            && kept.is_unused()
        {
            kept.unused_since = Some(Instant::now());
        }
    }
}

impl Handler<Dropped> for Supervisor {
    type Result = ();

    fn handle(&mut self, Dropped(database): Dropped, ctx: &mut Self::Context) {
        ctx.run_later(LET_GO, move |actor, _| {
            let mut keys: Vec<Key> = actor.connections.keys().copied().collect();
            keys.retain(|key| key.database == database && actor.is_unused(*key));
            keys.into_iter().for_each(|key| actor.close(key));
        });
    }
}

impl Supervisor {
    fn is_unused(&self, key: Key) -> bool {
        self.connections.get(&key).is_some_and(Kept::is_unused)
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
        if let Some(Kept { handle, .. }) = self.connections.remove(&key) {
            let finish = connection::Finish(connection::CONNECT_LIMIT);
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

impl Handler<Reload> for Supervisor {
    type Result = ResponseFuture<Result<()>>;

    fn handle(&mut self, reload: Reload, _: &mut Self::Context) -> Self::Result {
        let Reload {
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
                (Some(Kept { handle, .. }), Some(settings)) => {
                    reloads.push(handle.connection.send(connection::Reload {
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

impl Handler<Compare> for Supervisor {
    type Result = ResponseFuture<Option<bool>>;

    fn handle(&mut self, Compare(key, settings): Compare, _: &mut Self::Context) -> Self::Result {
        let kept = self.connections.get(&key);
        let compared = kept.map(|kept| kept.handle.connection.send(connection::Has(settings)));
        Box::pin(async move { compared?.await.ok() })
    }
}

impl Handler<Rows> for Supervisor {
    type Result = ResponseFuture<Vec<Row>>;

    fn handle(&mut self, _: Rows, _: &mut Self::Context) -> Self::Result {
        let rows = self.connections.iter().map(|(key, Kept { handle, .. })| {
            let known = [
                Some(key.database.to_string()),
                Some(key.server.to_string()),
                Some(handle.server_name.to_string()),
                (key.mapping != 0).then(|| key.mapping.to_string()),
                (key.private_to != 0).then(|| key.private_to.to_string()),
                Some(handle.sessions.load(Ordering::Relaxed).to_string()),
            ];
            let rest = handle.connection.send(connection::Describe);
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

impl Handler<Reset> for Supervisor {
    type Result = ();

    fn handle(&mut self, Reset(database): Reset, _: &mut Self::Context) {
        for (key, kept) in &self.connections {
            if key.database == database {
                kept.handle.connection.do_send(connection::Reset);
            }
        }
    }
}

impl Handler<Finish> for Supervisor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Finish(limit): Finish, _: &mut Self::Context) -> Self::Result {
        let finished = self.connections.drain().map(|(_, kept)| async move {
            let _ = kept.handle.connection.send(connection::Finish(limit)).await;
        });
        let finished = futures::future::join_all(finished);
        Box::pin(async move {
            finished.await;
        })
    }
}

/// Has the actor panic; for tests.
#[cfg(debug_assertions)]
#[derive(Message)]
#[rtype(result = "()")]
pub struct Panic;

#[cfg(debug_assertions)]
impl Handler<Panic> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        std::panic::resume_unwind(Box::new("asked to panic"));
    }
}

/// For whoever finds an actor stopped.
pub fn stopped() -> Error {
    Error::new(
        Kind::RuntimeLost,
        "the litmus_pgnats runtime worker is shutting down",
    )
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
