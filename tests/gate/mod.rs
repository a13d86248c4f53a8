//! A gate in front of a nats-server: passes everything, until the test has it lie, stall or wait. And what looks like a
//! nats-server and is none.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;

/// A gate. Its tasks end with the test.
pub struct Gate {
    port: u16,
    lies: broadcast::Sender<Lie>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    connections: AtomicU64,
    is_stalled: AtomicBool,
}

/// What the gate tells all clients that are connected.
#[derive(Clone)]
pub enum Lie {
    /// These bytes once.
    Once(Vec<u8>),
    /// These bytes for ever, until the client is gone.
    ForEver(Vec<u8>),
}

impl Gate {
    /// A gate to this port, which passes the server's first word after `delay`.
    pub async fn to(port: u16, delay: Duration) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let own = listener.local_addr().expect("an address").port();
        let (lies, state) = (broadcast::channel(8).0, Arc::<State>::default());
        let gate = Gate {
            port: own,
            lies: lies.clone(),
            state: state.clone(),
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                state.connections.fetch_add(1, Ordering::SeqCst);
                let server = TcpStream::connect(("127.0.0.1", port)).await.expect("the server");
                tokio::spawn(pass(client, server, delay, lies.subscribe(), state.clone()));
            }
        });
        gate
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections there have been.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub fn lie(&self, lie: Lie) {
        // Without a client nobody hears it.
        let _ = self.lies.send(lie);
    }

    /// Passes nothing any more, in either direction, and closes nothing.
    pub fn stall(&self, stall: bool) {
        self.state.is_stalled.store(stall, Ordering::SeqCst);
    }
}

async fn pass(
    client: TcpStream,
    server: TcpStream,
    delay: Duration,
    mut lies: broadcast::Receiver<Lie>,
    state: Arc<State>,
) {
    tokio::time::sleep(delay).await;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let upward = {
        let state = state.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 65536];
            while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                while state.is_stalled.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                if to_server.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
        })
    };
    let mut buffer = vec![0; 65536];
    loop {
        while state.is_stalled.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::select! {
            read = from_server.read(&mut buffer) => match read {
                Ok(count @ 1..) => if to_client.write_all(&buffer[..count]).await.is_err() { break },
                _ => break,
            },
            Ok(lie) = lies.recv() => {
                let (bytes, again) = match lie {
                    Lie::Once(bytes) => (bytes, false),
                    Lie::ForEver(bytes) => (bytes, true),
                };
                while to_client.write_all(&bytes).await.is_ok() && again {}
            }
        }
    }
    upward.abort();
}

/// Accepts connections and says this to each, then nothing; returns its port.
pub async fn says(words: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("an address").port();
    let words = Arc::new(words);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let words = words.clone();
            tokio::spawn(async move {
                let _ = client.write_all(&words).await;
                let _ = copy(&mut client, &mut tokio::io::sink()).await;
            });
        }
    });
    port
}

/// A server that lets everybody in, and then sends the beginning of a message of this size to each.
pub async fn begins_a_message(size: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let info = "INFO {\"server_id\":\"X\",\"version\":\"2.10.0\",\"max_payload\":67108864,\"headers\":true}\r\n";
                let _ = client.write_all(info.as_bytes()).await;
                let mut heard = Vec::new();
                while !heard.ends_with(b"PING\r\n") && client.read_buf(&mut heard).await.is_ok_and(|n| n > 0)
                {
                }
                let _ = client.write_all(b"PONG\r\n").await;
                let _ = client.write_all(format!("MSG a 1 {size}\r\n").as_bytes()).await;
                let piece = vec![b'x'; 65536];
                for _ in 0..(size / piece.len()) {
                    if client.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                let _ = copy(&mut client, &mut tokio::io::sink()).await;
            });
        }
    });
    port
}
