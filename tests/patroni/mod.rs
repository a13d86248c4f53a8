//! A real Patroni cluster: etcd, two PostgreSQL servers, and what stands outside of them. A test file says
//! `mod patroni; mod scene; mod support;`. `make test-ha` installs what it takes and runs the files named `ha_...`.
//!
//! | file        | concept                                                             |
//! | ----------- | ------------------------------------------------------------------- |
//! | `member.rs` | `Member`: one Patroni and its PostgreSQL                            |
//! | `link.rs`   | `Link`: a member's way to etcd, to be cut                           |
//! | `http.rs`   | a request to an API                                                 |
//! | `load.rs`   | `Load`: numbered messages from outside, and what became of them     |
//! | `look.rs`   | the state of a handler                                              |
//! | `news.rs`   | `News`: an outside subscriber of role-change notifications          |
//! | `stub.rs`   | `Stub`: a Patroni API that answers as the test says                 |

#![allow(
    dead_code,
    unused_imports,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

mod http;
mod link;
mod load;
mod look;
mod member;
mod news;
mod stub;

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

pub use load::{Account, Load, NUMBERS, now, records, until_flowing};
pub use look::{state as state_of, until_state};
pub use member::{Member, python};
pub use news::News;
pub use stub::{Answer, Stub};

use crate::support::*;

/// For what Patroni does: it looks once in a second, and a lock lives for 20.
pub const LONG: Duration = Duration::from_secs(90);

/// Two members, named pg1 and pg2, and where PostgreSQL finds the Patroni of its own machine.
pub struct Patroni {
    pub members: [Member; 2],
    localhost: Daemon,
    localhost_port: Port,
    _etcd: Daemon,
    _etcd_ports: [Port; 2],
    _work: WorkDir,
}

impl Patroni {
    /// Returns when there is a primary and a standby that follows it.
    pub async fn start(fencing: bool) -> Self {
        let work = WorkDir::new("clusters");
        let etcd_ports = [Port::take(), Port::take()];
        let etcd = start_etcd(&work, &etcd_ports).await;
        let member = |name| Member::new(name, work.path(), etcd_ports[0].number(), fencing);
        let mut members = [member("pg1"), member("pg2")];
        members.iter_mut().for_each(Member::start);
        let mut cluster = Self {
            members,
            localhost: Daemon::new("localhost.py", libc::SIGKILL, work.path().join("localhost.log")),
            localhost_port: Port::take(),
            _etcd: etcd,
            _etcd_ports: etcd_ports,
            _work: work,
        };
        cluster.start_localhost();
        eventually(LONG, async || {
            for member in &mut cluster.members {
                assert!(member.is_running(), "Patroni has ended\n{}", member.tail());
            }
            cluster.health().await
        })
        .await;
        cluster
    }

    fn start_localhost(&mut self) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/patroni/localhost.py");
        let mut command = Command::new("/usr/bin/python3");
        as_server_user(&mut command)
            .arg("-c")
            .arg(std::fs::read_to_string(script).expect("read localhost.py")) // postgres may not reach it
            .arg(self.localhost_port.number().to_string())
            .current_dir("/");
        for member in &self.members {
            command.arg(format!("{}={}", member.data_dir().display(), member.api()));
        }
        self.localhost.spawn(command);
    }

    /// Freezes what leads to Patroni: it accepts connections and does not answer.
    pub fn freeze_localhost(&self) {
        self.localhost.signal(libc::SIGSTOP);
    }

    /// Ends [`Patroni::freeze_localhost`].
    pub fn thaw_localhost(&self) {
        self.localhost.signal(libc::SIGCONT);
    }

    /// What would be `http://localhost:8008` if each member had its own machine.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.localhost_port.number())
    }

    /// The options of the foreign server that have to do with Patroni.
    pub fn options(&self) -> String {
        format!(", patroni_url '{}', notify_subject 'ha.news'", self.url())
    }

    /// The member that is primary and holds the lock.
    pub async fn leader(&self) -> Option<usize> {
        match [self.members[0].leads().await, self.members[1].leads().await] {
            [true, false] => Some(0),
            [false, true] => Some(1),
            _ => None,
        }
    }

    /// Waits until one member leads and the other one follows; the number of the one that leads.
    pub async fn until_healthy(&self) -> usize {
        eventually(LONG, async || self.health().await).await
    }

    async fn health(&self) -> Result<usize, Seen> {
        if let Some(leader) = self.leader().await
            && self.members[1 - leader].follows().await
        {
            return Ok(leader);
        }
        let tails = self.members.iter().map(Member::tail);
        Err(Seen(tails.collect::<Vec<_>>().join("\n")))
    }

    /// Waits until this member is primary and holds the lock.
    pub async fn until_leads(&self, member: usize) {
        eventually(LONG, async || self.members[member].leads().await).await;
    }

    /// Checks what a notification of this member says but for its status: `news` is one of [`News::of`].
    pub async fn check_news(&self, member: usize, news: &Value, timelines: &[u64]) {
        let timeline = news["timeline"].as_u64().unwrap_or_default();
        assert!(timelines.contains(&timeline), "{news}");
        let member = &self.members[member];
        let session = member.connect().await;
        let sql = "SELECT system_identifier::text FROM pg_control_system()";
        let row = session.query_one(sql, &[]).await;
        let system: String = row.expect("read the system identifier").get(0);
        let expected = json!({
            "status": news["status"],
            "listen_addresses": ["127.0.0.1"],
            "port": member.port(),
            "name": member.name,
            "timeline": timeline,
            "system_identifier": system,
            "scope": "litmus",
            "api_url": format!("http://127.0.0.1:{}/patroni", member.api()),
            "conn_url": format!("postgres://127.0.0.1:{}/postgres", member.port()),
            "time": news["time"],
        });
        assert_eq!(news, &expected);
        let sql = "SELECT abs(extract(epoch FROM now() - $1::text::timestamptz)) < 120";
        let time = news["time"].as_str().expect("a time");
        let row = session.query_one(sql, &[&time]).await;
        let recent: bool = row.unwrap_or_else(|e| panic!("{time}: {e:?}")).get(0);
        assert!(recent && time.contains('T'), "{time}");
    }

    /// Has Patroni change the roles; returns when it has.
    pub async fn switchover(&self, from: usize) {
        let names = json!({ "leader": self.members[from].name, "candidate": self.members[1 - from].name });
        self.members[from].order("POST", "/switchover", &names).await;
    }

    /// Has Patroni leave PostgreSQL as it is, whatever happens; returns when both members know.
    pub async fn pause(&self, pause: bool) {
        self.members[0]
            .order("PATCH", "/config", &json!({ "pause": pause }))
            .await;
        eventually(LONG, async || {
            for member in &self.members {
                let answer = member.get("/patroni").await.map_err(|e| e.to_string())?;
                if answer.body["pause"].as_bool().unwrap_or(false) != pause {
                    return Err(format!("{}: {answer:?}", member.name));
                }
            }
            Ok(())
        })
        .await;
    }
}

/// An etcd of its own; the ports are for clients and for its likes.
pub async fn start_etcd(work: &WorkDir, ports: &[Port; 2]) -> Daemon {
    let program = state().join("etcd/bin/etcd");
    assert!(program.exists(), "there is no etcd: `make test-ha` installs it");
    let [client, peer] = [0, 1].map(|n| format!("http://127.0.0.1:{}", ports[n].number()));
    let mut command = Command::new(program);
    as_server_user(&mut command)
        .args(["--name", "etcd", "--data-dir"])
        .arg(work.path().join("etcd"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("etcd={peer}")])
        .args(["--unsafe-no-fsync", "--log-level", "warn"])
        .current_dir("/");
    let mut etcd = Daemon::new("etcd", libc::SIGKILL, work.path().join("etcd.log"));
    etcd.spawn(command);
    let port = ports[0].number();
    let ready = async || {
        http::ask(port, "GET", "/health", None, Duration::from_secs(1))
            .await
            .is_ok_and(|answer| answer.body["health"] == "true")
    };
    eventually(Duration::from_secs(30), ready).await;
    etcd
}
