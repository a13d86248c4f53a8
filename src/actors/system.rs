//! Starts the actors, watches that they live, and stops them in order. Runs as the actor thread's main function.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot, watch};

use super::base::liveness::Vital;
use super::base::queue_limits::Limits;
use super::base::server_role::Fencing;
use super::connections::Supervisor;
use super::connections::interface::FinishConnections;
use super::dispatcher::Dispatcher;
use super::dispatcher::interface::{Registries, Resized, Scan};
use super::ha::Notifier;
use super::ha::PatroniWatcher;
use super::handlers::registry::Registry;
use super::handlers::responder_registry::Requests;
use super::handlers::subscription_registry::Subscriptions;
use super::metrics::counters::Counters;
use super::metrics::in_flight::InFlight;
use super::outbox::Outbox;
use super::sessions::Addresses;
use super::sessions::gateway::{FinishSessions, Gateway};
use super::sessions::wakeup_coalescing::WakeupCoalescing;
use super::workers::launcher::{Launcher, Notice, Sizes};
use super::workers::messages::WorkerNoticed;
use super::workers::pool::Pool;
use crate::channel::counts::ChannelCounts;
use crate::channel::server::ChannelListener;
use crate::channel::worker_id::WorkerId;
use crate::server_role::{ServerIdentity, ServerRole};

/// At the end, what sessions have sent is taken in for so long, and written to NATS for so long.
const FINISH_LIMIT: Duration = Duration::from_millis(500);

/// What the actor system is told when it starts.
pub struct Config {
    /// Where the control channel listens.
    pub socket: PathBuf,
    /// What tells this cluster from others in NATS's monitoring.
    pub cluster: String,
    /// Starts executors, and what it says of them.
    pub launcher: Arc<dyn Launcher>,
    pub notices: mpsc::UnboundedReceiver<(WorkerId, Notice)>,
    pub limits: Arc<Limits>,
    pub sizes: Arc<Sizes>,
    pub fencing: Arc<Fencing>,
    pub identity: ServerIdentity,
    /// What it is when the runtime starts, and the databases that there are then.
    pub role: ServerRole,
    pub databases: Vec<u32>,
    /// Remembers what the notifier has told.
    pub memory: PathBuf,
}

/// Why the actor system ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SystemEnd {
    /// It was told to.
    Stopped,
    /// An actor has died, which actix does not mend.
    ActorDied,
    /// It could not start.
    Failed(String),
}

/// Runs the system until `stop` fires or an actor dies.
pub fn run(config: Config, stop: oneshot::Receiver<()>) -> SystemEnd {
    let (load, pace) = (InFlight::new(), WakeupCoalescing::new());
    let rest = {
        let (load, pace) = (load.clone(), pace.clone());
        move || pace.rest(load.peak() > 0)
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = match runtime.enable_all().on_thread_park(rest).build() {
        Ok(runtime) => runtime,
        Err(error) => return SystemEnd::Failed(format!("could not start the runtime: {error}")),
    };
    let system = System::with_tokio_rt(move || runtime);
    system.block_on(live(config, load, pace, stop))
}

async fn live(
    config: Config,
    load: InFlight,
    pace: WakeupCoalescing,
    stop: oneshot::Receiver<()>,
) -> SystemEnd {
    let counts = Arc::new(ChannelCounts::default());
    let listener = match ChannelListener::bind(&config.socket, counts.clone()) {
        Ok(listener) => listener,
        Err(error) => {
            return SystemEnd::Failed(format!(
                "could not listen on \"{}\": {error}",
                config.socket.display()
            ));
        }
    };
    let (vital, mut died) = Vital::watched();
    let supervisor = Supervisor::new(config.cluster, vital.clone()).start();
    let (role, roles) = watch::channel(config.role);
    let (to, launcher) = (supervisor.clone(), config.launcher.clone());
    let outbox = Outbox::new(launcher, config.sizes.clone(), to, vital.clone()).start();
    let pool = Pool::new(config.launcher, config.sizes.clone(), load.clone());
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
    let (mut notices, noticed, relays) = (config.notices, dispatcher.clone(), outbox.clone());
    let (sizes, resized) = (config.sizes.clone(), dispatcher.clone());
    actix::spawn(async move {
        loop {
            sizes.changed.notified().await;
            resized.do_send(Resized);
        }
    });
    actix::spawn(async move {
        while let Some((worker, notice)) = notices.recv().await {
            if worker.is_outbox_relay() {
                relays.do_send(WorkerNoticed(worker, notice));
            } else {
                noticed.do_send(WorkerNoticed(worker, notice));
            }
        }
    });
    let addresses = Addresses {
        supervisor: supervisor.clone(),
        dispatcher,
        subscriptions,
        responders,
        outbox,
        patroni,
        counters: Counters::new(counts, load.clone(), limits.clone()),
    };
    let gateway = Gateway::new(listener, addresses, load, pace, vital).start();
    tokio::select! {
        _ = stop => {}
        _ = died.recv() => return SystemEnd::ActorDied,
    }
    let _ = gateway.send(FinishSessions(FINISH_LIMIT)).await;
    let _ = supervisor.send(FinishConnections(FINISH_LIMIT)).await;
    let _ = std::fs::remove_file(&config.socket);
    SystemEnd::Stopped
}
