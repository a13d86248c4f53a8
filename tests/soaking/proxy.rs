//! The way from the extension to NATS: a forwarder of bytes whose connections can be cut, or held up.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::Port;

#[derive(Clone, Copy, Default)]
struct Orders {
    /// How often all connections were cut.
    cuts: u64,
    stalled: bool,
}

/// A port that leads to another one. It has a thread of its own: a test that blocks holds up nothing.
pub struct Proxy {
    port: Port,
    orders: watch::Sender<Orders>,
}

impl Proxy {
    pub fn to(target: u16) -> Self {
        let (port, (orders, seen)) = (Port::take(), watch::channel(Orders::default()));
        let own = port.number();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .expect("start a runtime")
                .block_on(listen(own, target, seen));
        });
        Self { port, orders }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Ends all connections; new ones are let in at once.
    pub fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Connections stay, and no byte moves for so long.
    pub async fn stall(&self, time: Duration) {
        self.orders.send_modify(|orders| orders.stalled = true);
        tokio::time::sleep(time).await;
        self.orders.send_modify(|orders| orders.stalled = false);
    }
}

/// Runs until the proxy is dropped.
async fn listen(own: u16, target: u16, mut orders: watch::Receiver<Orders>) {
    let listener = TcpListener::bind(("127.0.0.1", own)).await;
    let listener = listener.unwrap_or_else(|e| panic!("listen on port {own}: {e}"));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((here, _)) = accepted {
                    tokio::spawn(forward(here, target, orders.clone()));
                }
            }
            changed = orders.changed() => if changed.is_err() {
                return;
            }
        }
    }
}

/// An error of either side ends the connection.
async fn forward(here: TcpStream, target: u16, orders: watch::Receiver<Orders>) -> std::io::Result<()> {
    let cuts = orders.borrow().cuts;
    let there = TcpStream::connect(("127.0.0.1", target)).await?;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    let ((from_here, to_here), (from_there, to_there)) = (here.into_split(), there.into_split());
    let both = async {
        let out = copy(from_here, to_there, orders.clone());
        tokio::try_join!(out, copy(from_there, to_here, orders.clone()))
    };
    let mut seen = orders.clone();
    tokio::select! {
        _ = both => {}
        _ = seen.wait_for(|orders| orders.cuts != cuts) => {}
    }
    Ok(())
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut orders: watch::Receiver<Orders>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut buffer).await?;
        let _ = orders.wait_for(|orders| !orders.stalled).await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}
