//! A message broker that speaks as much of NATS's protocol as Litmus Edge's proxy does: core publish and subscribe,
//! without headers and JetStream.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;

/// The broker, in threads of its own. Dropping it closes everything.
pub struct CoreNats {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clients: Vec<TcpStream>,
    subscriptions: Vec<Subscription>,
    /// Lines that such a server does not understand.
    refused: Vec<String>,
}

struct Subscription {
    client: usize,
    id: String,
    subject: String,
    group: Option<String>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic in the broker")
    }
}

impl CoreNats {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a free port");
        let port = listener.local_addr().expect("the listener's address").port();
        let info = json!({
            "server_id": "CORE", "server_name": "core", "version": "2.9.0", "go": "go1.20", "proto": 1,
            "host": "127.0.0.1", "port": port, "headers": false, "max_payload": 1_048_576, "client_id": 1,
        });
        let greeting = format!("INFO {info}\r\n");
        let shared = Arc::<Shared>::default();
        let sink = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if sink.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (sink, greeting) = (Arc::clone(&sink), greeting.clone());
                // An error here is a client that went away.
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

    /// What clients are subscribed to, apart from subjects for replies; sorted.
    pub fn subjects(&self) -> Vec<String> {
        let state = self.shared.state();
        let all = state.subscriptions.iter().map(|s| s.subject.clone());
        let mut subjects: Vec<String> = all.filter(|s| !s.starts_with("_INBOX")).collect();
        subjects.sort();
        subjects
    }

    /// The lines that this server could not understand: everything with headers.
    pub fn refused(&self) -> Vec<String> {
        self.shared.state().refused.clone()
    }
}

impl Drop for CoreNats {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes the listener, which then ends
        for stream in &self.shared.state().clients {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(mut stream: TcpStream, greeting: &str, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting.as_bytes())?;
    let client = {
        let mut state = shared.state();
        state.clients.push(stream.try_clone()?);
        state.clients.len() - 1
    };
    let outcome = read(stream, client, shared);
    shared.state().subscriptions.retain(|s| s.client != client);
    outcome
}

fn read(stream: TcpStream, client: usize, shared: &Shared) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["PING"] => shared.state().clients[client].write_all(b"PONG\r\n")?,
            ["PONG"] | ["CONNECT", ..] | [] => {}
            ["SUB", subject, ref rest @ .., id] => shared.state().subscriptions.push(Subscription {
                client,
                id: id.into(),
                subject: subject.into(),
                group: rest.first().map(|&group| group.into()),
            }),
            ["UNSUB", id, ..] => {
                let mut state = shared.state();
                state.subscriptions.retain(|s| s.client != client || s.id != id);
            }
            ["PUB", subject, ref reply @ .., size] => {
                let mut payload = vec![0; size.parse::<usize>().map_err(std::io::Error::other)? + 2];
                reader.read_exact(&mut payload)?;
                shared.state().deliver(subject, reply.first().copied(), &payload);
            }
            _ => {
                let mut state = shared.state();
                state.refused.push(line.trim_end().into());
                state.clients[client].write_all(b"-ERR 'Unknown Protocol Operation'\r\n")?;
                return state.clients[client].shutdown(Shutdown::Both);
            }
        }
        line.clear();
    }
    Ok(())
}

impl State {
    fn deliver(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) {
        let mut groups = Vec::new();
        for s in &self.subscriptions {
            if !matches(&s.subject, subject) || s.group.as_ref().is_some_and(|group| groups.contains(&group))
            {
                continue;
            }
            groups.extend(&s.group);
            let reply = reply.map_or_else(String::new, |reply| format!("{reply} "));
            let mut message = format!("MSG {subject} {} {reply}{}\r\n", s.id, payload.len() - 2).into_bytes();
            message.extend(payload);
            let _ = (&self.clients[s.client]).write_all(&message); // an error is a client that goes away
        }
    }
}

/// Whether a subject is one of those that a pattern stands for.
fn matches(pattern: &str, subject: &str) -> bool {
    let (mut patterns, mut tokens) = (pattern.split('.'), subject.split('.'));
    loop {
        match (patterns.next(), tokens.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(pattern), Some(token)) if pattern == token => {}
            _ => return false,
        }
    }
}
