//! Starts the actors, watches that they live, and stops them in order. Runs as the actor thread's main function.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot, watch};

use super::dispatcher::{Dispatcher, Noticed, Registries, Resized, Scan};
use super::gateway::{self, Actors, Gateway};
use super::host::{Host, Notice, Sizes};
use super::load::Load;
use super::notifier::Notifier;
use super::outbox::{Outbox, is_courier};
use super::pace::Pace;
use super::patroni_watcher::PatroniWatcher;
use super::pool::Pool;
use super::queue::Limits;
use super::registry::Registry;
use super::responder_registry::Requests;
use super::role::{Fencing, Identity, Role};
use super::statistics::Counters;
use super::subscription_registry::Subscriptions;
use super::supervisor::{self, Supervisor};
use crate::channel::counts::Counts;
use crate::channel::server::Listener;

/// At the end, what sessions have sent is taken in for so long, and written to NATS for so long.
const FINISH_LIMIT: Duration = Duration::from_millis(500);

/// What the actor system is told when it starts.
pub struct Config {
    /// Where the control channel listens.
    pub socket: PathBuf,
    /// What tells this cluster from others in NATS's monitoring.
    pub cluster: String,
    /// Starts executors, and what it says of them.
    pub host: Arc<dyn Host>,
    pub notices: mpsc::UnboundedReceiver<(u32, Notice)>,
    pub limits: Arc<Limits>,
    pub sizes: Arc<Sizes>,
    pub fencing: Arc<Fencing>,
    pub identity: Identity,
    /// What it is when the runtime starts, and the databases that there are then.
    pub role: Role,
    pub databases: Vec<u32>,
    /// Remembers what the notifier has told.
    pub memory: PathBuf,
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
    let counts = Arc::new(Counts::default());
    let listener = match Listener::bind(&config.socket, counts.clone()) {
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
    let (role, roles) = watch::channel(config.role);
    let (to, host) = (supervisor.clone(), config.host.clone());
    let outbox = Outbox::new(host, config.sizes.clone(), to, vital.clone()).start();
    let pool = Pool::new(config.host, config.sizes.clone(), load.clone());
    let dispatcher = Dispatcher::new(pool, role, vital.clone()).start();
    let watcher = PatroniWatcher::new(roles.clone(), config.fencing, dispatcher.clone(), vital.clone());
    let patroni = watcher.start();
    let (to, of) = (supervisor.clone(), patroni.clone());
    let notifier = Notifier::new(config.identity, roles, config.memory, to, of, vital.clone()).start();
    let limits = config.limits;
    let (to, of) = (supervisor.clone(), dispatcher.clone());
    let subscriptions = Registry::new(to, limits.clone(), Subscriptions(of), vital.clone()).start();
    let (to, of) = (supervisor.clone(), dispatcher.clone());
    let responders = Registry::new(to, limits.clone(), Requests(of), vital.clone()).start();
    dispatcher.do_send(Registries {
        subscriptions: subscriptions.clone(),
        responders: responders.clone(),
        notifier,
        patroni: patroni.clone(),
        outbox: outbox.clone(),
        supervisor: supervisor.clone(),
    });
    dispatcher.do_send(Scan(config.databases));
    let (mut notices, noticed, couriers) = (config.notices, dispatcher.clone(), outbox.clone());
    let (sizes, resized) = (config.sizes.clone(), dispatcher.clone());
    actix::spawn(async move {
        loop {
            sizes.changed.notified().await;
            resized.do_send(Resized);
        }
    });
    actix::spawn(async move {
        while let Some((ticket, notice)) = notices.recv().await {
            if is_courier(ticket) {
                couriers.do_send(Noticed(ticket, notice));
            } else {
                noticed.do_send(Noticed(ticket, notice));
            }
        }
    });
    let actors = Actors {
        supervisor: supervisor.clone(),
        dispatcher,
        subscriptions,
        responders,
        outbox,
        patroni,
        counters: Counters::new(counts, load.clone(), limits.clone()),
    };
    let gateway = Gateway::new(listener, actors, load, pace, vital).start();
    tokio::select! {
        _ = stop => {}
        _ = died.recv() => return End::ActorDied,
    }
    let _ = gateway.send(gateway::Finish(FINISH_LIMIT)).await;
    let _ = supervisor.send(supervisor::Finish(FINISH_LIMIT)).await;
    let _ = std::fs::remove_file(&config.socket);
    End::Stopped
}
