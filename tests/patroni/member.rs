//! A member of a Patroni cluster: Patroni, and the PostgreSQL that it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_postgres::{Config, Error};

use super::http::{self, Answer};
use super::link::Link;
use crate::support::*;

/// How long an answer of Patroni may take that has to do something for it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a mere look.
const GLANCE: Duration = Duration::from_secs(5);
const TEMPLATE: &str = include_str!("../../scripts/patroni/member.yml");
const IN_A_CONTAINER: &str = include_str!("../../docker/patroni.yml");
/// Of all roles that have one.
const PASSWORD: &str = "secret";
const PYTHON: &str = "/usr/bin/python3";

/// Dropping it kills Patroni and PostgreSQL.
pub struct Member {
    patroni: Daemon,
    pub name: &'static str,
    /// Its way to etcd.
    pub link: Link,
    port: Port,
    api: Port,
    work: PathBuf,
    environment: Vec<(String, String)>,
}

/// The system's Python with what scripts/setup.sh has put into place.
pub fn python() -> Command {
    let library = state().join("patroni");
    assert!(
        library.exists(),
        "there is no Patroni: `make test-ha` installs it"
    );
    let mut command = Command::new(PYTHON);
    as_server_user(&mut command)
        .env("PYTHONPATH", library)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir("/");
    command
}

impl Member {
    fn prepare(name: &'static str, work: &Path, etcd: u16) -> Self {
        let directory = work.join(name);
        fs::create_dir(&directory).expect("create a member's directory");
        give_to_server(&directory);
        Self {
            // SIGTERM also if the test dies: Patroni stops PostgreSQL then.
            patroni: Daemon::new(name, libc::SIGTERM, work.join(format!("{name}.log"))),
            name,
            link: Link::to(etcd),
            port: Port::take(),
            api: Port::take(),
            work: work.to_owned(),
            environment: Vec::new(),
        }
    }

    fn configure(&self, text: String) {
        fs::write(self.config_path(), text).expect("write a member's configuration");
        give_to_server(&self.config_path());
    }

    /// A member as docker/ has it, but that all share one machine: `environment` is that of docker/compose.yaml.
    pub fn as_in_a_container(
        name: &'static str,
        work: &Path,
        etcd: u16,
        environment: &serde_json::Map<String, Value>,
    ) -> Self {
        let mut member = Self::prepare(name, work, etcd);
        let here = |port: u16| format!("127.0.0.1:{port}");
        for (key, value) in environment {
            let value = value.as_str().expect("a text");
            let value = match key.as_str() {
                "PATRONI_ETCD3_HOSTS" => here(member.link.port()),
                "PATRONI_POSTGRESQL_DATA_DIR" => member.data_dir().display().to_string(),
                "PATRONI_POSTGRESQL_BIN_DIR" => bindir().display().to_string(),
                "PATRONI_POSTGRESQL_PGPASS" => work.join(name).join("pgpass").display().to_string(),
                _ if value.ends_with(":8008") => here(member.api()),
                _ if value.ends_with(":5432") => here(member.port()),
                _ => value.replace("${dbpassword:?}", PASSWORD),
            };
            member.environment.push((key.clone(), value));
        }
        // There is no directory for sockets here; and one etcd, which tells of the address that is cut.
        let local =
            "etcd3:\n  use_proxies: true\npostgresql:\n  parameters:\n    unix_socket_directories: ''\n";
        member.configure(format!("{IN_A_CONTAINER}{local}"));
        member
    }

    /// A member that does not run yet, in a directory of its own in `work`.
    pub fn new(name: &'static str, work: &Path, etcd: u16, fencing: bool) -> Self {
        let member = Self::prepare(name, work, etcd);
        let mut text = TEMPLATE.to_owned();
        for (key, value) in [
            ("{name}", name.to_owned()),
            ("{work}", work.display().to_string()),
            ("{bin}", bindir().display().to_string()),
            ("{etcd}", member.link.port().to_string()),
            ("{api}", member.api().to_string()),
            ("{port}", member.port().to_string()),
            ("{fencing}", if fencing { "on" } else { "off" }.into()),
        ] {
            text = text.replace(key, &value);
        }
        member.configure(text);
        member
    }

    fn config_path(&self) -> PathBuf {
        self.work.join(format!("{}.yml", self.name))
    }

    /// Starts Patroni, which then starts PostgreSQL if it does not run.
    pub fn start(&mut self) {
        let mut command = python();
        command
            .args(["-m", "patroni"])
            .arg(self.config_path())
            .env("HOME", self.work.join(self.name))
            .envs(self.environment.iter().cloned());
        self.patroni.spawn(command);
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn api(&self) -> u16 {
        self.api.number()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.work.join(self.name).join("data")
    }

    /// Everything that Patroni and PostgreSQL have logged.
    pub fn log(&self) -> String {
        self.patroni.log()
    }

    pub fn tail(&self) -> String {
        self.patroni.tail()
    }

    /// Whether Patroni runs.
    pub fn is_running(&mut self) -> bool {
        self.patroni.is_running()
    }

    /// Patroni's process.
    pub fn patroni_pid(&self) -> i32 {
        self.patroni.pid()
    }

    /// Asks Patroni's API; an error when it does not answer.
    pub async fn get(&self, path: &str) -> std::io::Result<Answer> {
        http::ask(self.api(), "GET", path, None, GLANCE).await
    }

    /// Has Patroni's API do something; panics when it does not answer with success.
    pub async fn order(&self, method: &str, path: &str, body: &Value) -> Answer {
        let answer = http::ask(self.api(), method, path, Some(body), PATIENCE).await;
        let answer = answer.unwrap_or_else(|e| panic!("{method} {path}: {e}\n{}", self.tail()));
        assert!(
            (200..300).contains(&answer.status),
            "{method} {path} {body}: {answer:?}\n{}",
            self.tail()
        );
        answer
    }

    /// Whether it is a primary that holds the leader lock.
    pub async fn leads(&self) -> bool {
        self.get("/primary")
            .await
            .is_ok_and(|answer| answer.status == 200)
    }

    /// Whether it is a standby that gets what the primary writes.
    pub async fn follows(&self) -> bool {
        let state = self.get("/patroni").await.ok();
        state.is_some_and(|answer| {
            answer.body["role"] == "replica" && answer.body["replication_state"] == "streaming"
        })
    }

    /// A session of the superuser, or why there is none.
    pub async fn try_connect(&self) -> Result<Session, Error> {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.port())
            .user("postgres")
            .password(PASSWORD)
            .dbname("postgres")
            .connect_timeout(GLANCE);
        Session::open(&config).await
    }

    pub async fn connect(&self) -> Session {
        let session = self.try_connect().await;
        session.unwrap_or_else(|e| panic!("no session of {}: {e:?}\n{}", self.name, self.tail()))
    }

    /// How often PostgreSQL was started as a server.
    pub fn starts(&self) -> usize {
        self.log().matches("LOG:  starting PostgreSQL").count()
    }

    /// When the log last said so, in seconds since 1970.
    pub fn logged_at(&self, text: &str) -> Option<f64> {
        let log = self.log();
        let line = log.lines().rfind(|line| line.contains(text))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// The process that postmaster.pid names, if it runs.
    pub fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        let directory = self.data_dir().display().to_string();
        (proc::alive(pid) && proc::command_line(pid).contains(&directory)).then_some(pid)
    }

    /// Kills Patroni with SIGKILL; PostgreSQL goes on.
    pub fn kill9_patroni(&mut self) {
        self.patroni.kill9();
    }

    /// Kills Patroni and PostgreSQL with SIGKILL, as a machine does that loses its power.
    pub fn kill9(&mut self) {
        self.patroni.kill9();
        let postmaster = self.postmaster().expect("a postmaster");
        let children = proc::children(postmaster);
        for pid in std::iter::once(postmaster).chain(children) {
            if let Some(process) = proc::Process::find(pid) {
                process.signal(libc::SIGKILL);
            }
        }
    }

    /// Freezes Patroni: its API accepts connections and does not answer.
    pub async fn freeze_patroni(&self) {
        self.patroni.signal(libc::SIGSTOP);
        eventually(PATIENCE, async || proc::stopped(self.patroni.pid())).await;
    }

    /// Ends [`Member::freeze_patroni`].
    pub fn thaw_patroni(&self) {
        self.patroni.signal(libc::SIGCONT);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.patroni.is_running() {
            self.patroni.kill9();
        }
        // The postmaster is no child of Patroni. Neither are programs that Patroni's children have started; each names
        // the directory. What the postmaster has started ends with it.
        let directory = self.work.join(self.name).display().to_string();
        let deadline = Instant::now() + Duration::from_secs(10);
        let children = self.postmaster().map(proc::children).unwrap_or_default();
        let mut rest: Vec<_> = children.into_iter().filter_map(proc::Process::find).collect();
        while Instant::now() < deadline {
            let named = proc::all().into_iter();
            let named: Vec<_> = named
                .filter(|process| proc::command_line(process.pid).contains(&directory))
                .collect();
            rest.retain(|process| process.alive());
            if named.is_empty() && rest.is_empty() {
                return;
            }
            named.iter().for_each(|process| process.signal(libc::SIGKILL));
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} has left {rest:?}, which are killed", self.name);
        rest.iter().for_each(|process| process.signal(libc::SIGKILL));
    }
}
