//! A real postgres_exporter with monitoring/queries.yaml, a real Prometheus that asks it each second, and promtool.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::*;

/// How long the programs may take to start, and an answer to come.
const PATIENCE: Duration = Duration::from_secs(15);

/// A file of the project.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("read {name}: {e}"))
}

/// One value of a query's result, with its labels.
#[derive(Debug)]
pub struct Sample {
    #[allow(dead_code, reason = "for the message of a panic")]
    labels: Value,
    pub value: f64,
}

/// The two programs that watch one PostgreSQL. Dropping it ends them and removes everything.
pub struct Monitoring {
    exporter: Daemon, // first: the programs end before their ports and their directory are released
    prometheus: Daemon,
    exporter_port: Port,
    prometheus_port: Port,
    work: WorkDir,
}

impl Monitoring {
    /// Watches the databases `postgres` and `databases` as role `watcher`. The rules are those of monitoring/alerts.yml,
    /// but do not wait.
    pub async fn start(pg: &Postgres, databases: &str) -> Monitoring {
        let work = WorkDir::new("clusters"); // a kind that is swept
        let place = |name: &str| work.path().join(name);
        let mut watch = Monitoring {
            exporter: Daemon::new("postgres_exporter", libc::SIGTERM, place("exporter.log")),
            prometheus: Daemon::new("Prometheus", libc::SIGTERM, place("prometheus.log")),
            exporter_port: Port::take(),
            prometheus_port: Port::take(),
            work,
        };
        watch.start_exporter(pg.port(), databases).await;
        watch.start_prometheus().await;
        watch
    }

    async fn start_exporter(&mut self, postgres: u16, databases: &str) {
        let port = self.exporter_port.number();
        // In a place that the servers' user can read, which a checkout need not be.
        let queries = self.put("queries.yaml", &read("monitoring/queries.yaml"));
        let mut command = Command::new(program("prometheus-postgres-exporter"));
        as_server_user(&mut command)
            .env(
                "DATA_SOURCE_NAME",
                format!("postgresql://watcher@127.0.0.1:{postgres}/postgres?sslmode=disable"),
            )
            .arg("--extend.query-path")
            .arg(queries)
            .arg("--auto-discover-databases")
            .arg(format!("--include-databases={databases}"))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .current_dir(self.work.path());
        self.exporter.spawn(command);
        self.exporter.wait_ready(PATIENCE, || listens(port)).await;
    }

    async fn start_prometheus(&mut self) {
        let port = self.prometheus_port.number();
        let rules = read("monitoring/alerts.yml");
        let at_once = rules
            .lines()
            .filter(|line| !line.trim_start().starts_with("for:"));
        let at_once: String = at_once.map(|line| format!("{line}\n")).collect();
        self.put("alerts.yml", &at_once);
        let exporter = self.exporter_port.number();
        let config = self.put(
            "prometheus.yml",
            &format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
                 rule_files: [alerts.yml]\n\
                 scrape_configs:\n\
                 \x20 - job_name: postgres\n\
                 \x20   static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]\n"
            ),
        );
        let mut command = Command::new(program("prometheus"));
        as_server_user(&mut command)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}/data", self.work.path().display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=warn")
            .current_dir(self.work.path());
        self.prometheus.spawn(command);
        self.prometheus.wait_ready(PATIENCE, || listens(port)).await;
        eventually(PATIENCE, async || get(port, "/-/ready").is_ok()).await;
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.work.path().join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        give_to_server(&path);
        path
    }

    /// What the exporter says of the extension, without its own metrics and those of PostgreSQL.
    pub fn exported(&self) -> String {
        let all = get(self.exporter_port.number(), "/metrics").unwrap_or_else(|e| panic!("/metrics: {e}"));
        let ours = all.lines().filter(|line| {
            let name = line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ");
            name.starts_with("litmus_pgnats_")
        });
        ours.map(|line| format!("{line}\n")).collect()
    }

    /// What the exporter has to say of its work.
    pub fn exporter_log(&self) -> String {
        self.exporter.log()
    }

    /// Evaluates an expression now; an error as Prometheus words it.
    pub fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let encoded: String = url::form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let data = self.api(&format!("query?query={encoded}"))?;
        let result = data["result"].as_array().ok_or_else(|| data.to_string())?;
        let sample = |one: &Value| {
            let value = one["value"][1].as_str().and_then(|text| text.parse().ok());
            Ok(Sample {
                labels: one["metric"].clone(),
                value: value.ok_or_else(|| format!("no value in {one}"))?,
            })
        };
        result.iter().map(sample).collect()
    }

    /// The value of an expression that has just one.
    pub fn value(&self, expression: &str) -> Result<f64, String> {
        match self.query(expression)?.as_slice() {
            [one] => Ok(one.value),
            others => Err(format!("{expression}: {others:?}")),
        }
    }

    /// What the API answers to a path, say `rules`.
    pub fn api(&self, path: &str) -> Result<Value, String> {
        let body = get(self.prometheus_port.number(), &format!("/api/v1/{path}"))?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|e| format!("{e}: {body}"))?;
        Ok(answer["data"].take())
    }

    /// The alerts that fire: name, labels and annotations of each.
    pub fn firing(&self) -> Vec<Value> {
        let data = self.api("alerts").expect("alerts");
        let all = data["alerts"].as_array().cloned().unwrap_or_default();
        all.into_iter()
            .filter(|alert| alert["state"] == "firing")
            .collect()
    }
}

/// Runs promtool; panics with what it said when it finds something.
pub fn promtool(arguments: &[&str], input: &str) {
    let mut stdin = tempfile::tempfile().expect("create a temporary file");
    stdin.write_all(input.as_bytes()).expect("write the input");
    std::io::Seek::rewind(&mut stdin).expect("rewind the input");
    let mut command = Command::new(program("promtool"));
    let output = command.args(arguments).stdin::<File>(stdin).output();
    let output = output.unwrap_or_else(|e| panic!("run {command:?}: {e}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {arguments:?}:\n{said}");
}

fn program(name: &str) -> PathBuf {
    let directory = std::env::var_os("PROMETHEUS").map_or_else(|| state().join("prometheus"), PathBuf::from);
    let program = directory.join("bin").join(name);
    assert!(
        program.exists(),
        "there is no {}: `scripts/setup.sh prometheus` installs it, or set PROMETHEUS",
        program.display()
    );
    program
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// The body that a server of 127.0.0.1 answers with, or what it answers instead of 200.
fn get(port: u16, path: &str) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // In HTTP/1.0 the answer ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|e| e.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("not an HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    if status.contains(" 200 ") {
        Ok(body.to_owned())
    } else {
        Err(format!("{status}: {body}"))
    }
}
