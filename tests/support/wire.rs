//! A listener that looks like a nats-server as far as the greeting goes, and records what clients say.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::wait::eventually;

/// Sends INFO to whoever connects, records each line that comes in, answers PING with PONG. It runs in threads of its
/// own, so it answers even while the test blocks. Dropping it closes everything.
pub struct WireStub {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    lines: Vec<String>,
    streams: Vec<TcpStream>,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no panic while recording")
    }
}

impl WireStub {
    /// A stub that says nothing special about itself.
    pub fn start() -> Self {
        Self::start_with(json!({}))
    }

    /// A stub whose INFO has these fields besides or instead of the usual ones, say `{"auth_required": true}`.
    pub fn start_with(info: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a free port");
        let port = listener.local_addr().expect("the listener's address").port();
        let mut fields = json!({
            "server_id": "STUB", "server_name": "stub", "version": "2.10.0", "go": "go1.22", "proto": 1,
            "host": "127.0.0.1", "port": port, "headers": true, "max_payload": 1_048_576, "client_id": 1,
        });
        let all = fields.as_object_mut().expect("an object");
        all.extend(info.as_object().expect("the fields of INFO").clone());
        let greeting = format!("INFO {fields}\r\n");
        let shared = Arc::<Shared>::default();
        let sink = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if sink.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (sink, greeting) = (Arc::clone(&sink), greeting.clone());
                // An error here is a client that went away, which is no news to a stub.
                std::thread::spawn(move || serve(stream, &greeting, &sink).ok());
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Every line of every client so far, without the line ends; payloads are recorded as lines too.
    pub fn lines(&self) -> Vec<String> {
        self.shared.record().lines.clone()
    }

    /// What the clients sent with CONNECT, oldest first.
    pub fn connects(&self) -> Vec<Value> {
        let lines = self.lines();
        let sent = lines.iter().filter_map(|line| line.strip_prefix("CONNECT "));
        sent.map(|text| serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")))
            .collect()
    }

    /// Waits for the first CONNECT.
    pub async fn connect(&self) -> Value {
        let first = async || self.connects().first().cloned();
        eventually(Duration::from_secs(10), first).await
    }

    /// Waits for a line that starts so and returns it.
    pub async fn line(&self, start: &str) -> String {
        eventually(Duration::from_secs(10), async || {
            let lines = self.lines();
            let found = lines.iter().find(|line| line.starts_with(start)).cloned();
            found.ok_or(lines)
        })
        .await
    }
}

impl Drop for WireStub {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes the listener, which then ends
        for stream in &self.shared.record().streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut stream: TcpStream, greeting: &str, shared: &Shared) -> std::io::Result<()> {
    shared.record().streams.push(stream.try_clone()?);
    stream.write_all(greeting.as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        bytes.clear();
        let ping = line == "PING";
        shared.record().lines.push(line);
        if ping {
            stream.write_all(b"PONG\r\n")?;
        }
    }
    Ok(())
}
