//! Tells NATS of the server's role: once for each start of the server and each change of its role, however many databases
//! name the subject. One actor, in the actor thread.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::prelude::*;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::PatroniWatcher;
use super::interface::{Notify, WhoAmI};
use crate::actors::base::liveness::Vital;
use crate::actors::base::server_role::Roles;
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::{ConnectionHandle, ConnectionLeft, OpenConnection};
use crate::channel::target::Source;
use crate::patroni::Member;
use crate::server_role::{ServerIdentity, ServerRole};
use crate::settings::options::Host;

/// Longest wait for NATS to take a notification, before it is tried again.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for Patroni to tell who this node is.
const WHO_LIMIT: Duration = Duration::from_secs(2);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// A subject of a NATS: who names it more than once means the same.
type NotifiedSubject = (Vec<Host>, String);

/// A place that is told.
struct ToldSubject {
    source: Source,
    task: SpawnHandle,
    roles: mpsc::UnboundedSender<(ServerRole, SystemTime)>,
    last: ServerRole,
}

/// The actor.
pub struct Notifier {
    identity: Arc<ServerIdentity>,
    roles: Roles,
    /// Remembers what has been told, should the runtime be started again without the server.
    memory: Arc<Told>,
    supervisor: Addr<Supervisor>,
    patroni: Addr<PatroniWatcher>,
    /// By database.
    wanted: BTreeMap<u32, Vec<Source>>,
    told: BTreeMap<NotifiedSubject, ToldSubject>,
    _vital: Vital,
}

impl Notifier {
    pub fn new(
        identity: ServerIdentity,
        roles: Roles,
        memory: PathBuf,
        supervisor: Addr<Supervisor>,
        patroni: Addr<PatroniWatcher>,
        vital: Vital,
    ) -> Self {
        Notifier {
            identity: Arc::new(identity),
            roles,
            memory: Arc::new(Told(memory)),
            supervisor,
            patroni,
            wanted: BTreeMap::new(),
            told: BTreeMap::new(),
            _vital: vital,
        }
    }

    fn begin(
        &self,
        place: &NotifiedSubject,
        source: Source,
        role: ServerRole,
        ctx: &mut Context<Self>,
    ) -> ToldSubject {
        let teller = Teller {
            place: format!("{:?} {}", place.0, place.1),
            subject: place.1.clone(),
            source: source.clone(),
            identity: self.identity.clone(),
            memory: self.memory.clone(),
            supervisor: self.supervisor.clone(),
            patroni: self.patroni.clone(),
        };
        let (roles, to_tell) = mpsc::unbounded_channel();
        let _ = roles.send((role, SystemTime::now()));
        ToldSubject {
            source,
            task: ctx.spawn(teller.run(to_tell).into_actor(self)),
            roles,
            last: role,
        }
    }
}

impl Actor for Notifier {
    type Context = Context<Self>;
}

impl Handler<Notify> for Notifier {
    type Result = ();

    fn handle(&mut self, Notify { database, sources }: Notify, ctx: &mut Self::Context) {
        self.wanted.insert(database, sources);
        let mut wanted = BTreeMap::new();
        for source in self.wanted.values().flatten() {
            if let Some(subject) = &source.settings.notify_subject {
                let place = (source.settings.hosts.clone(), subject.clone());
                wanted.entry(place).or_insert_with(|| source.clone());
            }
        }
        self.told.retain(|place, told| {
            let stays = wanted.get(place) == Some(&told.source);
            if !stays {
                ctx.cancel_future(told.task);
            }
            stays
        });
        // Not before a database was looked at after a promotion: its options may have changed with the former primary.
        let role = *self.roles.borrow();
        let here: Vec<Source> = self.wanted.get(&database).cloned().unwrap_or_default();
        for (place, source) in wanted {
            match self.told.get_mut(&place) {
                Some(told) if told.last != role && here.contains(&source) => {
                    told.last = role;
                    let _ = told.roles.send((role, SystemTime::now()));
                }
                Some(_) => {}
                None => {
                    let told = self.begin(&place, source, role, ctx);
                    self.told.insert(place, told);
                }
            }
        }
    }
}

/// Tells one subject.
struct Teller {
    place: String,
    subject: String,
    source: Source,
    identity: Arc<ServerIdentity>,
    memory: Arc<Told>,
    supervisor: Addr<Supervisor>,
    patroni: Addr<PatroniWatcher>,
}

impl Teller {
    async fn run(self, mut roles: mpsc::UnboundedReceiver<(ServerRole, SystemTime)>) {
        while let Some((role, time)) = roles.recv().await {
            let mark = format!("{} {} {}", self.identity.start, role.is_primary, self.place);
            if self.memory.has(&mark) {
                continue;
            }
            while !self.tell(role, time).await {
                tokio::time::sleep(PAUSE).await;
            }
            self.memory.keep(&mark, self.identity.start);
        }
    }

    /// One attempt; `true` if NATS has taken the notification.
    async fn tell(&self, role: ServerRole, time: SystemTime) -> bool {
        let open = OpenConnection {
            target: self.source.target.clone(),
            settings: self.source.settings.clone(),
        };
        let Ok(Ok(handle)) = self.supervisor.send(open).await else {
            return false;
        };
        let told = self.tell_by(&handle, role, time).await;
        drop(handle);
        self.supervisor.do_send(ConnectionLeft(self.source.target.key));
        told
    }

    async fn tell_by(&self, handle: &ConnectionHandle, role: ServerRole, time: SystemTime) -> bool {
        let mut status = handle.status.clone();
        let up = status.wait_for(|status| status.client.is_some()).await;
        let Some(client) = up.ok().and_then(|status| status.client.clone()) else {
            return false;
        };
        let Ok(payload) = self.payload(role, time).await else {
            return false;
        };
        let sent = client
            .client()
            .publish(self.subject.clone(), payload.into())
            .await;
        sent.is_ok() && matches!(timeout(CONFIRM_LIMIT, client.round_trip()).await, Ok(Ok(())))
    }

    async fn payload(&self, role: ServerRole, time: SystemTime) -> Result<Vec<u8>, serde_json::Error> {
        let member = match &self.source.settings.patroni_url {
            Some(url) => {
                let asked = timeout(WHO_LIMIT, self.patroni.send(WhoAmI(url.clone()))).await;
                asked.ok().and_then(Result::ok).and_then(Result::ok)
            }
            None => None,
        };
        let Member {
            name,
            scope,
            api_url,
            conn_url,
            ..
        } = member.unwrap_or_default();
        serde_json::to_vec(&RoleMessage {
            status: if role.is_primary { "Master" } else { "Replica" },
            listen_addresses: &self.identity.listen_addresses,
            port: self.identity.port,
            name,
            timeline: role.timeline,
            system_identifier: self.identity.system_identifier.to_string(),
            scope,
            api_url,
            conn_url,
            time: OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default(),
        })
    }
}

/// What is published, in this order.
#[derive(Serialize)]
struct RoleMessage<'a> {
    status: &'static str,
    listen_addresses: &'a [String],
    port: u16,
    name: Option<String>,
    timeline: u32,
    /// Text, because readers of JSON may cut a number of 64 bits.
    system_identifier: String,
    scope: Option<String>,
    api_url: Option<String>,
    conn_url: Option<String>,
    /// Of the change, in UTC.
    time: String,
}

/// What was told, in a file that does not outlive the server's run by much: a line for each.
struct Told(PathBuf);

impl Told {
    fn read(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }

    fn has(&self, mark: &str) -> bool {
        self.read().lines().any(|line| line == mark)
    }

    /// Adds a mark, and forgets those of earlier starts of the server.
    fn keep(&self, mark: &str, start: i64) {
        let start = format!("{start} ");
        let read = self.read();
        let lines = read.lines().filter(|line| line.starts_with(&start));
        let text: String = lines.chain([mark]).map(|line| format!("{line}\n")).collect();
        if let Err(error) = write(&self.0, &text) {
            log::warn!("could not remember that the server's role was told: {error}");
        }
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}
