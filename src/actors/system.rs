//! Starts the actors, watches that they live, and stops them in order. Runs as the actor thread's main function.

use std::path::PathBuf;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot};

use super::gateway::{self, Gateway};
use super::load::Load;
use super::pace::Pace;
use super::supervisor::{self, Supervisor};
use crate::channel::server::Listener;

/// At the end, what sessions have sent is taken in for so long, and written to NATS for so long.
const FINISH_LIMIT: Duration = Duration::from_millis(500);

/// What the actor system is told when it starts.
pub struct Config {
    /// Where the control channel listens.
    pub socket: PathBuf,
    /// What tells this cluster from others in NATS's monitoring.
    pub cluster: String,
}

/// Why the actor system ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// An actor has died, which actix does not mend.
    ActorDied,
    /// It could not start.
    Failed(String),
}

/// Held by every actor that must live; dropped with it, whether it stops or panics.
#[derive(Clone)]
pub struct Vital {
    dead: mpsc::Sender<()>,
}

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Full means that a death was reported before.
            let _ = self.dead.try_send(());
        }
    }
}

/// Runs the system until `stop` fires or an actor dies.
pub fn run(config: Config, stop: oneshot::Receiver<()>) -> End {
    let (load, pace) = (Load::new(), Pace::new());
    let rest = {
        let (load, pace) = (load.clone(), pace.clone());
        move || pace.rest(load.peak() > 0)
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = match runtime.enable_all().on_thread_park(rest).build() {
        Ok(runtime) => runtime,
        Err(error) => return End::Failed(format!("could not start the runtime: {error}")),
    };
    let system = System::with_tokio_rt(move || runtime);
    system.block_on(live(config, load, pace, stop))
}

async fn live(config: Config, load: Load, pace: Pace, stop: oneshot::Receiver<()>) -> End {
    let listener = match Listener::bind(&config.socket) {
        Ok(listener) => listener,
        Err(error) => {
            return End::Failed(format!(
                "could not listen on \"{}\": {error}",
                config.socket.display()
            ));
        }
    };
    let (dead, mut died) = mpsc::channel(1);
    let vital = Vital { dead };
    let supervisor = Supervisor::new(config.cluster, vital.clone()).start();
    let gateway = Gateway::new(listener, supervisor.clone(), load, pace, vital).start();
    tokio::select! {
        _ = stop => {}
        _ = died.recv() => return End::ActorDied,
    }
    let _ = gateway.send(gateway::Finish(FINISH_LIMIT)).await;
    let _ = supervisor.send(supervisor::Finish(FINISH_LIMIT)).await;
    let _ = std::fs::remove_file(&config.socket);
    End::Stopped
}
