//! A Patroni API that answers as the test says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::now;
use crate::support::Port;

/// What the stub does.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Answers as a Patroni whose server is leader or not, in the spelling of a version; says when it saw etcd.
    State {
        status: u16,
        patroni: Value,
        /// How many seconds ago it saw etcd.
        seen: f64,
    },
    /// Accepts and never answers.
    Silence,
    /// Answers what is no JSON.
    Nonsense,
}

/// Answers every request to `/patroni`, `/config`, `/cluster` and the health checks.
pub struct Stub {
    port: Port,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

impl Stub {
    pub async fn start(answer: Answer) -> Self {
        let port = Port::take();
        let listener = TcpListener::bind(("127.0.0.1", port.number())).await;
        let listener = listener.expect("listen as Patroni");
        let answer = Arc::new(Mutex::new(answer));
        let asked = Arc::<AtomicUsize>::default();
        let (given, counter) = (Arc::clone(&answer), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (given, counter) = (Arc::clone(&given), Arc::clone(&counter));
                tokio::spawn(async move { serve(stream, &given, &counter).await });
            }
        });
        Self { port, answer, asked }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    pub fn say(&self, answer: Answer) {
        *self.answer.lock().expect("no panic with an answer") = answer;
    }

    /// How many requests have come.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Answer {
    /// A member that is in this role and has seen etcd now.
    pub fn role(role: &str) -> Self {
        Self::seen(role, 0.0)
    }

    /// The same, that saw etcd so many seconds ago; its lock lives for 20.
    pub fn seen(role: &str, ago: f64) -> Self {
        let leads = ["primary", "master", "leader"].contains(&role);
        Self::State {
            status: if leads { 200 } else { 503 },
            patroni: json!({
                "state": "running", "role": role, "timeline": 7,
                "patroni": { "version": "4.1.5", "scope": "stubs", "name": "stub1" },
                "something_new": [1, { "two": null }],
            }),
            seen: ago,
        }
    }
}

async fn serve(stream: TcpStream, answer: &Mutex<Answer>, asked: &AtomicUsize) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut first = String::new();
        stream.read_line(&mut first).await.ok().filter(|&n| n > 0)?;
        let mut header = String::new();
        while stream.read_line(&mut header).await.ok()? > 2 {
            header.clear();
        }
        asked.fetch_add(1, Ordering::Relaxed);
        let answer = answer.lock().expect("no panic with an answer").clone();
        let path = first.split_whitespace().nth(1).unwrap_or("/").to_owned();
        let (status, body) = match answer {
            Answer::Silence => std::future::pending().await,
            Answer::Nonsense => (200, "<html>proxy</html>".to_owned()),
            Answer::State {
                status,
                mut patroni,
                seen,
            } => {
                #[expect(clippy::cast_possible_truncation, reason = "Patroni has whole seconds")]
                let seen = (now() - seen) as i64;
                patroni["dcs_last_seen"] = seen.into();
                match path.as_str() {
                    "/config" => (
                        200,
                        json!({ "ttl": 20, "loop_wait": 1, "retry_timeout": 3 }).to_string(),
                    ),
                    "/cluster" => (200, cluster(&patroni).to_string()),
                    "/patroni" => (200, patroni.to_string()),
                    _ => (status, patroni.to_string()),
                }
            }
        };
        let head = format!(
            "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}

fn cluster(patroni: &Value) -> Value {
    let role = match patroni["role"].as_str() {
        Some("primary" | "master") => "leader",
        Some(other) => other,
        None => "unknown",
    };
    let name = &patroni["patroni"]["name"];
    json!({ "scope": patroni["patroni"]["scope"], "members": [{
        "name": name, "role": role, "state": "running", "timeline": 7,
        "api_url": "http://192.0.2.1:8008/patroni", "host": "192.0.2.1", "port": 5432,
    }]})
}
