//! A private nats-server.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use async_nats::{Client, ConnectOptions};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::daemon::Daemon;
use super::nats_config::NatsConfig;
use super::place::{self, WorkDir, as_server_user, give_to_server};
use super::ports::Port;
use super::proc;
use super::wait::{Seen, eventually};

/// How long the server may take to start, stop or answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A nats-server of one test. Dropping it kills it and removes everything.
pub struct NatsServer {
    daemon: Daemon, // first: the server ends before its ports and its directory are released
    config: NatsConfig,
    port: Port,
    monitor_port: Port,
    work: WorkDir,
}

impl NatsConfig {
    /// Starts the server; returns when it accepts connections.
    pub async fn start(self) -> NatsServer {
        let work = WorkDir::new("nats-servers");
        let mut server = NatsServer {
            daemon: Daemon::new("nats-server", libc::SIGKILL, work.path().join("server.log")),
            config: self,
            port: Port::take(),
            monitor_port: Port::take(),
            work,
        };
        server.launch().await;
        server
    }
}

impl NatsServer {
    /// A server that differs from the default.
    pub fn builder() -> NatsConfig {
        NatsConfig::default()
    }

    /// A running server that lets everybody in, without JetStream.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    async fn launch(&mut self) {
        self.write_config();
        let program = if self.config.is_old {
            place::old_nats_server()
        } else {
            place::nats_server()
        };
        let mut command = Command::new(program);
        as_server_user(&mut command)
            .arg("--config")
            .arg(self.config_path())
            .args(&self.config.args)
            .current_dir(self.work.path());
        let mark = self.log().len();
        let log = self.daemon.log_path().to_owned();
        let address = ("127.0.0.1", self.port());
        self.daemon.spawn(command);
        let ready = move || {
            let text = std::fs::read(&log).unwrap_or_default();
            String::from_utf8_lossy(text.get(mark..).unwrap_or_default()).contains("Server is ready")
                && TcpStream::connect(address).is_ok()
        };
        self.daemon.wait_ready(PATIENCE, ready).await;
    }

    fn config_path(&self) -> PathBuf {
        self.work.path().join("nats.conf")
    }

    fn write_config(&self) {
        let (path, store) = (self.config_path(), self.jetstream_dir());
        let text = self
            .config
            .render(self.port(), self.monitor_port.number(), &store);
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        give_to_server(&path);
    }

    /// A client of this server, with the credentials and certificates of its configuration.
    pub async fn client(&self) -> Client {
        self.connect(self.client_options())
            .await
            .unwrap_or_else(|e| panic!("no client of {}: {e}\n{}", self.url(), self.daemon.tail()))
    }

    /// The options of [`NatsServer::client`], for a test that changes them.
    pub fn client_options(&self) -> ConnectOptions {
        self.config.client_options()
    }

    /// A client with these options, or the error that refuses it.
    pub async fn connect(&self, options: ConnectOptions) -> Result<Client, async_nats::ConnectError> {
        options.connect(self.url()).await
    }

    /// `nats://127.0.0.1:port`, or `tls://` when the server wants TLS.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.config.scheme(), self.port())
    }

    /// [`NatsServer::url`] with the name of a user who may do everything, where that is not everybody.
    pub fn open_url(&self) -> String {
        if self.config.is_narrow() {
            self.url().replace("://", "://admin:admin@")
        } else {
            self.url()
        }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// Asks the monitoring endpoint, say for `/varz` or `/connz?subs=1`.
    pub async fn monitor(&self, path: &str) -> Value {
        let answer = tokio::time::timeout(PATIENCE, self.http_get(path)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer to {path} in {PATIENCE:?}"));
        let text = answer.unwrap_or_else(|e| panic!("ask for {path}: {e}\n{}", self.daemon.tail()));
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("not an HTTP answer to {path}: {text:?}"));
        assert!(head.contains(" 200 "), "the answer to {path}: {text}");
        serde_json::from_str(body).unwrap_or_else(|e| panic!("the answer to {path}: {e}: {body}"))
    }

    async fn http_get(&self, path: &str) -> std::io::Result<String> {
        let address = ("127.0.0.1", self.monitor_port.number());
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Everything in the server's log.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// Where the server keeps its streams.
    pub fn jetstream_dir(&self) -> PathBuf {
        self.work.path().join("jetstream")
    }

    /// Kills the server with SIGKILL.
    pub fn kill9(&mut self) {
        self.daemon.kill9();
    }

    /// Has the server tell its clients to leave, and stop some time after.
    pub fn lame_duck(&self) {
        self.daemon.signal(libc::SIGUSR2);
    }

    /// Whether the process is there.
    pub fn is_up(&self) -> bool {
        self.daemon.is_up()
    }

    /// Stops the server in an orderly way.
    pub async fn stop(&mut self) {
        self.daemon.signal(libc::SIGTERM);
        self.daemon.wait_exit(PATIENCE).await;
    }

    /// Starts the server again on the same port, stopping it before if it runs.
    pub async fn restart(&mut self) {
        if self.daemon.is_running() {
            self.stop().await;
        }
        self.launch().await;
    }

    /// [`NatsServer::restart`] with another configuration: for what a server cannot take up while it runs.
    pub async fn restart_with(&mut self, config: NatsConfig) {
        self.config = config;
        self.restart().await;
    }

    /// Freezes the server: connections stay open, nothing is answered. Returns when it stands still.
    pub async fn pause(&self) {
        self.daemon.signal(libc::SIGSTOP);
        eventually(PATIENCE, async || proc::stopped(self.pid())).await;
    }

    /// Ends [`NatsServer::pause`].
    pub fn resume(&self) {
        self.daemon.signal(libc::SIGCONT);
    }

    /// Gives the running server another configuration; returns when it has taken it up.
    pub async fn reload(&mut self, config: NatsConfig) {
        let mark = self.log().len();
        self.config = config;
        self.write_config();
        self.daemon.signal(libc::SIGHUP);
        eventually(PATIENCE, async || {
            let log = self.log();
            let news = log.get(mark..).unwrap_or_default();
            // Clients whom it throws out are errors in its log as well.
            assert!(!news.contains("Failed to reload"), "not reloaded: {news}");
            let taken = news.contains("Reloaded server configuration");
            taken.then_some(()).ok_or_else(|| Seen(self.daemon.tail()))
        })
        .await;
    }
}

/// Returns when the server has taken in everything that this client sent before, subscriptions above all:
/// `Client::flush` only says that it has left for the socket.
pub async fn round_trip(client: &Client) {
    let request = client.request(client.new_inbox(), "".into());
    let answer = tokio::time::timeout(PATIENCE, request).await;
    let error = answer
        .unwrap_or_else(|_| panic!("nats-server did not answer in {PATIENCE:?}"))
        .expect_err("nobody listens on a new inbox");
    let expected = async_nats::RequestErrorKind::NoResponders;
    assert_eq!(error.kind(), expected, "instead of an answer: {error}");
}
