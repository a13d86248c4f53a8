//! A private PostgreSQL server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Config, Error};

use super::cluster;
use super::daemon::Daemon;
use super::place::{WorkDir, as_server_user, bindir, give_to_server};
use super::ports::Port;
use super::session::Session;
use super::wait::{Seen, eventually};

/// How long a server may take to start, stop or be promoted.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a server is told to stop.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// Waits for the sessions to end.
    Smart,
    /// Ends the sessions.
    Fast,
    /// Ends without a checkpoint: the next start recovers.
    Immediate,
}

/// A server to be started; see [`Postgres::builder`].
pub struct PostgresBuilder {
    conf: Vec<(String, String)>,
    hba: Vec<String>,
    environment: Vec<(String, String)>,
}

impl PostgresBuilder {
    /// Whether the extension's library is in shared_preload_libraries; it is unless told otherwise.
    pub fn preload(self, preload: bool) -> Self {
        let libraries = if preload { "litmus_pgnats" } else { "" };
        self.conf("shared_preload_libraries", libraries)
    }

    /// A setting of postgresql.conf; a later one wins over an earlier one.
    pub fn conf(mut self, key: &str, value: &str) -> Self {
        self.conf.push((key.into(), value.into()));
        self
    }

    /// A line of pg_hba.conf, before those that trust everybody.
    pub fn hba(mut self, line: &str) -> Self {
        self.hba.push(line.into());
        self
    }

    /// A variable in the environment of the server.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Makes the cluster and starts it; returns when it accepts connections.
    pub async fn start(self) -> Postgres {
        let mut server = Postgres::new();
        server.environment = self.environment;
        cluster::create(&server.data);
        for (key, value) in &self.conf {
            server.append_conf(key, value);
        }
        cluster::prepend_hba(&server.data, &self.hba);
        server.configure_addresses();
        server.start_again().await;
        server
    }
}

/// A PostgreSQL server of one test. Dropping it stops it and removes everything.
///
/// Its files are in a directory of its own: `data`, and `server.log` beside it.
pub struct Postgres {
    daemon: Daemon, // first: the server ends before its port and directories are released
    port: Port,
    sockets: TempDir,
    data: PathBuf,
    environment: Vec<(String, String)>,
    _work: WorkDir,
}

impl Postgres {
    /// A server that differs from the default.
    pub fn builder() -> PostgresBuilder {
        let builder = PostgresBuilder {
            conf: Vec::new(),
            hba: Vec::new(),
            environment: Vec::new(),
        };
        builder.preload(true)
    }

    /// A running server with the extension's library preloaded.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// The places of a server, without a data directory.
    fn new() -> Self {
        let work = WorkDir::new("clusters");
        // Not in the work directory: the path of a Unix socket has at most 107 bytes.
        let sockets = tempfile::Builder::new()
            .prefix("litmus-pg-")
            .tempdir_in("/tmp")
            .expect("create a directory for sockets in /tmp");
        give_to_server(sockets.path());
        work.link("sockets", sockets.path());
        Self {
            daemon: Daemon::new("PostgreSQL", libc::SIGQUIT, work.path().join("server.log")),
            port: Port::take(),
            sockets,
            data: work.path().join("data"),
            environment: Vec::new(),
            _work: work,
        }
    }

    fn configure_addresses(&self) {
        self.append_conf("port", &self.port().to_string());
        let sockets = self.socket_dir().display().to_string();
        self.append_conf("unix_socket_directories", &sockets);
    }

    /// Starts a server that was stopped or killed; returns when it accepts connections.
    ///
    /// After [`Postgres::kill9`] it first waits until the orphans are gone, and panics when they stay.
    pub async fn start_again(&mut self) {
        self.daemon.wait_orphans().await;
        let mut command = Command::new(bindir().join("postgres"));
        as_server_user(&mut command)
            .arg("-D")
            .arg(&self.data)
            .envs(self.environment.iter().cloned())
            .current_dir("/");
        self.daemon.spawn(command);
        let (pid_file, pid) = (self.data.join("postmaster.pid"), self.postmaster_pid());
        let ready = || is_ready(&pid_file, pid);
        self.daemon.wait_ready(PATIENCE, ready).await;
    }

    /// Stops the server and waits for its end; panics when that takes more than 30 s.
    pub async fn stop(&mut self, mode: Stop) {
        self.daemon.signal(match mode {
            Stop::Smart => libc::SIGTERM,
            Stop::Fast => libc::SIGINT,
            Stop::Immediate => libc::SIGQUIT,
        });
        self.daemon.wait_exit(PATIENCE).await;
    }

    /// Stops the server and starts it again on the same port.
    pub async fn restart(&mut self, mode: Stop) {
        self.stop(mode).await;
        self.start_again().await;
    }

    /// Makes the server read its configuration again; it does so soon after.
    pub fn reload(&self) {
        self.daemon.signal(libc::SIGHUP);
    }

    /// Kills the postmaster with SIGKILL. Its children are left to notice.
    pub fn kill9(&mut self) {
        self.daemon.kill9();
    }

    /// Adds a setting to postgresql.conf, for the next reload or restart.
    pub fn append_conf(&self, key: &str, value: &str) {
        cluster::append_conf(&self.data, &cluster::conf_line(key, value));
    }

    /// How a client reaches the server: as postgres on database postgres, through the Unix socket.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .host_path(self.socket_dir())
            .port(self.port())
            .user("postgres")
            .dbname("postgres");
        config
    }

    /// A session of the superuser in database postgres.
    pub async fn connect(&self) -> Session {
        self.connect_as("postgres", "postgres").await
    }

    /// A session of a role in a database; panics when it is refused.
    pub async fn connect_as(&self, user: &str, database: &str) -> Session {
        self.try_connect_as(user, database).await.unwrap_or_else(|e| {
            panic!(
                "{user} cannot connect to {database}: {e:?}\n{}",
                self.daemon.tail()
            )
        })
    }

    /// A session of a role in a database, or the error that refuses it.
    pub async fn try_connect_as(&self, user: &str, database: &str) -> Result<Session, Error> {
        Session::open(self.config().user(user).dbname(database)).await
    }

    /// The process with this backend_type in pg_stat_activity: the oldest one, when there are several.
    pub async fn worker_pid(&self, backend_type: &str) -> Option<i32> {
        self.worker_pids(backend_type).await.first().copied()
    }

    /// The processes with this backend_type in pg_stat_activity, oldest first.
    pub async fn worker_pids(&self, backend_type: &str) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = $1 ORDER BY backend_start, pid";
        let session = self.connect().await;
        let rows = session.query(sql, &[&backend_type]).await;
        let rows = rows.unwrap_or_else(|e| panic!("read pg_stat_activity: {e:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Everything in the server's log.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Waits until the log holds `text` and returns the line with its first occurrence.
    pub async fn wait_log(&self, text: &str, timeout: Duration) -> String {
        self.wait_log_after(0, text, timeout).await
    }

    /// Waits until `text` stands in the log behind its first `mark` bytes, where `mark` is an earlier `log().len()`.
    pub async fn wait_log_after(&self, mark: usize, text: &str, timeout: Duration) -> String {
        eventually(timeout, async || {
            let log = self.log();
            let mut lines = log.get(mark..).unwrap_or_default().lines();
            let line = lines.find(|line| line.contains(text)).map(str::to_owned);
            line.ok_or_else(|| Seen(format!("no {text:?} in the log; {}", self.daemon.tail())))
        })
        .await
    }

    pub fn postmaster_pid(&self) -> i32 {
        self.daemon.pid()
    }

    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn socket_dir(&self) -> &Path {
        self.sockets.path()
    }

    /// Starts a hot standby that follows this server, with this server's settings.
    pub async fn standby(&self) -> Self {
        let mut standby = Self::new();
        if !cluster::base_backup(self.socket_dir(), self.port(), &standby.data) {
            self.copy_to(&standby.data).await;
        }
        standby.configure_addresses();
        standby.start_again().await;
        standby
    }

    /// What pg_basebackup does, by hand.
    async fn copy_to(&self, data: &Path) {
        let session = self.connect().await;
        let begin = "SELECT pg_backup_start('standby', true)";
        let begun = session.query_one(begin, &[]).await;
        begun.unwrap_or_else(|e| panic!("{begin}: {e:?}"));
        cluster::copy_running(&self.data, data);
        let end = "SELECT labelfile FROM pg_backup_stop(false)";
        let label = session.query_one(end, &[]).await;
        let label: String = label.unwrap_or_else(|e| panic!("{end}: {e:?}")).get(0);
        cluster::finish_copy(data, &label, self.socket_dir(), self.port());
    }

    /// Makes a primary of a standby; returns when it takes writes.
    pub async fn promote(&self) {
        let session = self.connect().await;
        let promoted = session.query_one("SELECT pg_promote(true, 30)", &[]).await;
        let promoted: bool = promoted
            .unwrap_or_else(|e| panic!("pg_promote: {e:?}\n{}", self.daemon.tail()))
            .get(0);
        assert!(promoted, "not promoted in 30 s\n{}", self.daemon.tail());
    }
}

/// Whether postmaster.pid says that this very process accepts connections, as pg_ctl does it.
fn is_ready(pid_file: &Path, pid: i32) -> bool {
    let text = std::fs::read_to_string(pid_file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.first() == Some(&pid.to_string().as_str()) && lines.get(7) == Some(&"ready")
}
