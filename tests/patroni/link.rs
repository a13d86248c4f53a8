//! The way from a Patroni to etcd, which a test can cut.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::Port;

/// A port that leads to another one until it is cut. It has a thread of its own: a test that blocks cuts nothing.
pub struct Link {
    port: Port,
    cut: watch::Sender<bool>,
}

impl Link {
    pub fn to(target: u16) -> Self {
        let (port, (cut, changes)) = (Port::take(), watch::channel(false));
        let own = port.number();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .expect("start a runtime")
                .block_on(forward(own, target, changes));
        });
        Self { port, cut }
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Ends every connection and refuses new ones.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Ends [`Link::cut`].
    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

/// Runs until the link is dropped.
async fn forward(own: u16, target: u16, mut cut: watch::Receiver<bool>) {
    while cut.wait_for(|cut| !cut).await.is_ok() {
        let listener = TcpListener::bind(("127.0.0.1", own)).await;
        let listener = listener.unwrap_or_else(|e| panic!("listen on port {own}: {e}"));
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((here, _)) = accepted {
                        connections.spawn(join(here, target));
                    }
                }
                cut = cut.wait_for(|cut| *cut) => match cut {
                    Ok(_) => break,
                    Err(_) => return,
                },
            }
        }
    }
}

async fn join(mut here: TcpStream, target: u16) -> std::io::Result<()> {
    let mut there = TcpStream::connect(("127.0.0.1", target)).await?;
    tokio::io::copy_bidirectional(&mut here, &mut there).await?;
    Ok(())
}
