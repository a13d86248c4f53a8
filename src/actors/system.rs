//! Starts the actors, notices when one of them dies, and stops them in order. [`run`] is the main function of the
//! runtime worker's actor thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::{mpsc, oneshot, watch};

use super::base::queue_limits::Limits;
use super::base::server_role::Fencing;
use super::base::tasks;
use super::connections::Supervisor;
use super::connections::interface::FinishConnections;
use super::dispatcher::Dispatcher;
use super::dispatcher::interface::{Registries, Resized, Scan};
use super::ha::{PatroniWatcher, RoleNotifier};
use super::handlers::registry::Registry;
use super::handlers::responder_registry::Requests;
use super::handlers::subscription_registry::Subscriptions;
use super::metrics::connection_stats::ConnectionTable;
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

/// Longest time, at the end of the runtime, for reading what sessions have sent, and again for writing it to NATS.
const FINISH_LIMIT: Duration = Duration::from_millis(500);

/// What the actor system needs at its start.
pub struct Config {
    /// Path of the control channel's socket.
    pub socket: PathBuf,
    /// The cluster's label in NATS's monitoring, which tells it from other clusters.
    pub cluster: String,
    /// Starts the processes of executors and outbox relays.
    pub launcher: Arc<dyn Launcher>,
    /// What became of these processes.
    pub notices: mpsc::UnboundedReceiver<(WorkerId, Notice)>,
    pub limits: Arc<Limits>,
    pub sizes: Arc<Sizes>,
    pub fencing: Arc<Fencing>,
    pub identity: ServerIdentity,
    /// The server's role when the runtime starts.
    pub role: ServerRole,
    /// Object ids of the databases that allow connections when the runtime starts.
    pub databases: Vec<u32>,
    /// Path of the file in which the role notifier keeps the notifications that NATS has taken.
    pub memory: PathBuf,
}

/// Threads that may look up names and read files at a time, and the stack of each.
const BLOCKING_THREADS: usize = 64;
const BLOCKING_STACK: usize = 512 * 1024;

/// Why the actor system ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SystemEnd {
    /// The main thread has asked for the end, or is gone.
    Stopped,
    /// The actor or task of this name has panicked, and the others must not go on without it.
    Died(String),
    /// The system could not start, for this reason.
    Failed(String),
}

/// Runs the actor system until `stop` fires or is dropped, or until a vital actor or task panics.
pub fn run(config: Config, stop: oneshot::Receiver<()>) -> SystemEnd {
    let (in_flight, coalescing) = (InFlight::new(), WakeupCoalescing::new());
    let rest = {
        let (in_flight, coalescing) = (in_flight.clone(), coalescing.clone());
        move || coalescing.rest(in_flight.peak() > 0)
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = match runtime
        .enable_all()
        .on_thread_park(rest)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(BLOCKING_STACK)
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return SystemEnd::Failed(format!("could not start the runtime: {error}")),
    };
    let system = System::with_tokio_rt(move || runtime);
    system.block_on(live(config, in_flight, coalescing, stop))
}

async fn live(
    config: Config,
    in_flight: InFlight,
    coalescing: WakeupCoalescing,
    stop: oneshot::Receiver<()>,
) -> SystemEnd {
    let counts = Arc::new(ChannelCounts::default());
    let listener = match ChannelListener::bind(&config.socket, counts.clone()) {
        Ok(listener) => listener,
        Err(error) => {
            let socket = config.socket.display();
            return SystemEnd::Failed(format!("could not listen on \"{socket}\": {error}"));
        }
    };
    let mut died = tasks::watch_deaths();
    let socket = config.socket.clone();
    let table = ConnectionTable::default();
    let counters = Counters::new(table.clone(), counts, in_flight.clone(), config.limits.clone());
    let supervisor = Supervisor::new(config.cluster.clone(), table).start();
    let addresses = start(config, supervisor.clone(), in_flight.clone(), counters);
    let gateway = Gateway::new(listener, addresses, in_flight, coalescing).start();
    tokio::select! {
        // An error means that the main thread is gone, which ends the actors as well.
        _ = stop => {}
        Some(name) = died.recv() => return SystemEnd::Died(name.into_owned()),
    }
    if gateway.send(FinishSessions(FINISH_LIMIT)).await.is_err() {
        log::debug!("the gateway has ended before its sessions");
    }
    if supervisor.send(FinishConnections(FINISH_LIMIT)).await.is_err() {
        log::debug!("the supervisor has ended before its connections");
    }
    log::debug!("tasks that still run: {}", tasks::running().join(", "));
    if let Err(error) = std::fs::remove_file(&socket) {
        log::debug!("could not remove \"{}\": {error}", socket.display());
    }
    SystemEnd::Stopped
}

/// Starts all actors but the supervisor and the gateway, and returns those that sessions talk to.
fn start(config: Config, supervisor: Addr<Supervisor>, in_flight: InFlight, counters: Counters) -> Addresses {
    let Config {
        launcher,
        notices,
        limits,
        sizes,
        fencing,
        identity,
        role,
        databases,
        memory,
        ..
    } = config;
    let (role, roles) = watch::channel(role);
    let outbox = Outbox::new(launcher.clone(), sizes.clone(), supervisor.clone()).start();
    let pool = Pool::new(launcher, sizes.clone(), in_flight);
    let dispatcher = Dispatcher::new(pool, role).start();
    let patroni = PatroniWatcher::new(roles.clone(), fencing, dispatcher.clone().recipient()).start();
    let notifier = RoleNotifier::new(identity, roles, memory, supervisor.clone(), patroni.clone()).start();
    let ready = || dispatcher.clone().recipient();
    let subscriptions = Registry::new(
        "registry of subscriptions",
        supervisor.clone(),
        limits.clone(),
        Subscriptions(ready()),
    )
    .start();
    let responders = Registry::new(
        "registry of responders",
        supervisor.clone(),
        limits,
        Requests(ready()),
    )
    .start();
    dispatcher.do_send(Registries {
        subscriptions: subscriptions.clone(),
        responders: responders.clone(),
        notifier,
        patroni: patroni.clone(),
        outbox: outbox.clone(),
        supervisor: supervisor.clone(),
    });
    dispatcher.do_send(Scan(databases));
    tasks::spawn_vital("news of sizes", forward_sizes(sizes, dispatcher.clone()));
    let forwarding = forward_notices(notices, dispatcher.clone(), outbox.clone());
    tasks::spawn_vital("news of workers", forwarding);
    Addresses {
        supervisor,
        dispatcher,
        subscriptions,
        responders,
        outbox,
        patroni,
        counters,
    }
}

/// Tells the dispatcher when the sizes have changed.
async fn forward_sizes(sizes: Arc<Sizes>, dispatcher: Addr<Dispatcher>) {
    loop {
        sizes.changed.notified().await;
        dispatcher.do_send(Resized);
    }
}

/// Passes each notice to the actor that started the worker: the outbox for a relay, the dispatcher for an executor.
async fn forward_notices(
    mut notices: mpsc::UnboundedReceiver<(WorkerId, Notice)>,
    dispatcher: Addr<Dispatcher>,
    outbox: Addr<Outbox>,
) {
    while let Some((worker, notice)) = notices.recv().await {
        if worker.is_outbox_relay() {
            outbox.do_send(WorkerNoticed(worker, notice));
        } else {
            dispatcher.do_send(WorkerNoticed(worker, notice));
        }
    }
}
