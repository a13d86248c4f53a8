//! Tells NATS of the server's role: once for each start of the server and each change of its role, however many
//! databases name the subject. An actor; in the actor thread.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
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
use crate::actors::base::backoff::Backoff;
use crate::actors::base::server_role::Roles;
use crate::actors::base::tasks::Vital;
use crate::actors::connections::Supervisor;
use crate::actors::connections::interface::{ConnectionHandle, OpenConnection};
use crate::actors::connections::lease::ConnectionUser;
use crate::channel::target::Source;
use crate::nats::message::Outbound;
use crate::patroni::Member;
use crate::server_role::{ServerIdentity, ServerRole};
use crate::settings::options::Host;

/// Longest wait for NATS to take a notification, which is then tried again.
const CONFIRM_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for Patroni to tell who this node is.
const WHO_LIMIT: Duration = Duration::from_secs(2);
/// Bounds of the pause between two attempts.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_LIMIT: Duration = Duration::from_secs(1);

/// The hosts of a NATS cluster, and a subject. Foreign servers that name the same ones share one notification.
type NotifiedSubject = (Vec<Host>, String);

/// A subject that is told of the server's role.
struct ToldSubject {
    source: Source,
    task: SpawnHandle,
    roles: mpsc::UnboundedSender<(ServerRole, SystemTime)>,
    last: ServerRole,
}

/// The actor that tells NATS of the server's role.
pub struct RoleNotifier {
    identity: Arc<ServerIdentity>,
    roles: Roles,
    /// The notifications that NATS has taken, in case the runtime worker is started again without the server.
    memory: Arc<Told>,
    supervisor: Addr<Supervisor>,
    patroni: Addr<PatroniWatcher>,
    /// The foreign servers of each database.
    wanted: BTreeMap<u32, Vec<Source>>,
    told: BTreeMap<NotifiedSubject, ToldSubject>,
    _vital: Vital,
}

impl RoleNotifier {
    pub fn new(
        identity: ServerIdentity,
        roles: Roles,
        memory: PathBuf,
        supervisor: Addr<Supervisor>,
        patroni: Addr<PatroniWatcher>,
    ) -> Self {
        RoleNotifier {
            identity: Arc::new(identity),
            roles,
            memory: Arc::new(Told(memory)),
            supervisor,
            patroni,
            wanted: BTreeMap::new(),
            told: BTreeMap::new(),
            _vital: Vital::new("notifier of the server's role"),
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
        // Cannot fail: the receiver still exists.
        let _ = roles.send((role, SystemTime::now()));
        ToldSubject {
            source,
            task: ctx.spawn(teller.run(to_tell).into_actor(self)),
            roles,
            last: role,
        }
    }
}

impl Actor for RoleNotifier {
    type Context = Context<Self>;
}

impl Handler<Notify> for RoleNotifier {
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
        // A new role is told only for the database that was refreshed just now: the options of the others may be those
        // from before the promotion.
        let role = *self.roles.borrow();
        let here: Vec<Source> = self.wanted.get(&database).cloned().unwrap_or_default();
        for (place, source) in wanted {
            match self.told.get_mut(&place) {
                Some(told) if told.last != role && here.contains(&source) => {
                    told.last = role;
                    // Fails only if the task has ended, with which this entry or the whole actor ends.
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

/// Tells one subject of the server's role.
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
            let mut backoff = Backoff::new(PAUSE, PAUSE_LIMIT);
            while !self.tell(role, time).await {
                tokio::time::sleep(backoff.failed()).await;
            }
            self.memory.keep(&mark, self.identity.start);
        }
    }

    /// One attempt to notify; `true` if NATS has taken the notification.
    async fn tell(&self, role: ServerRole, time: SystemTime) -> bool {
        let open = OpenConnection {
            target: self.source.target.clone(),
            settings: self.source.settings.clone(),
            user: ConnectionUser::Worker,
        };
        match self.supervisor.send(open).await {
            Ok(Ok(handle)) => self.tell_by(&handle, role, time).await,
            _ => false,
        }
    }

    async fn tell_by(&self, handle: &ConnectionHandle, role: ServerRole, time: SystemTime) -> bool {
        let mut status = handle.status.clone();
        let up = status.wait_for(|status| status.client.is_some()).await;
        let Some(client) = up.ok().and_then(|status| status.client.clone()) else {
            return false;
        };
        let payload = match self.payload(role, time).await {
            Ok(payload) => payload,
            Err(why) => {
                log::warn!("could not describe the server's role: {why}");
                return false;
            }
        };
        let message = Outbound {
            subject: self.subject.clone(),
            payload: payload.into(),
            ..Outbound::default()
        };
        let sent = client.publish(&message).await;
        sent.is_ok() && matches!(timeout(CONFIRM_LIMIT, client.round_trip()).await, Ok(Ok(_)))
    }

    async fn payload(&self, role: ServerRole, time: SystemTime) -> Result<Vec<u8>, String> {
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
        let time = OffsetDateTime::from(time).format(&Rfc3339);
        let message = RoleMessage {
            status: if role.is_primary { "Master" } else { "Replica" },
            listen_addresses: &self.identity.listen_addresses,
            port: self.identity.port,
            name,
            timeline: role.timeline,
            system_identifier: self.identity.system_identifier.to_string(),
            scope,
            api_url,
            conn_url,
            time: time.map_err(|error| error.to_string())?,
        };
        serde_json::to_vec(&message).map_err(|error| error.to_string())
    }
}

/// The notification: JSON with the fields in this order.
#[derive(Serialize)]
struct RoleMessage<'a> {
    status: &'static str,
    listen_addresses: &'a [String],
    port: u16,
    name: Option<String>,
    timeline: u32,
    /// Text, because readers of JSON may not keep all digits of a 64-bit number.
    system_identifier: String,
    scope: Option<String>,
    api_url: Option<String>,
    conn_url: Option<String>,
    /// When the role notifier heard of the role, in UTC.
    time: String,
}

/// The notifications that NATS has taken: a file with a line for each, of the server's present start only.
struct Told(PathBuf);

impl Told {
    fn read(&self) -> String {
        match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) => {
                // Before the first notification there is no file.
                if error.kind() != ErrorKind::NotFound {
                    log::warn!("could not read what was told of the server's role: {error}");
                }
                String::new()
            }
        }
    }

    fn has(&self, mark: &str) -> bool {
        self.read().lines().any(|line| line == mark)
    }

    /// Adds a notification's mark, and removes the marks of earlier starts of the server.
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
