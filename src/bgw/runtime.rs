//! The runtime worker: one per cluster, PostgreSQL's shell around the actor system.
//!
//! The main thread serves PostgreSQL (latch, signals, configuration, the server log, the postmaster's death) and
//! runs no SQL; the actor thread serves NATS and the control channel. The worker always ends with exit code 1, so
//! that the postmaster starts it again, except when another one is there already.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgrx::{pg_guard, pg_sys};
use tokio::sync::{mpsc, oneshot};

use super::memory::Trimmer;
use super::workers::{self, Workers};
use super::{herald, logging, threads};
use crate::actors::system::{self, Config, End};
use crate::channel::SOCKET_PATH;
use crate::error::{Error, Kind, Result};
use crate::pg::catalog;
use crate::pg::transaction::transaction;
use crate::pg::wait::{Event, LatchWait};
use crate::pg::worker::{self, Process};
use crate::sql::settings;

const NAME: &str = "litmus_pgnats runtime";
const MAIN: &str = "litmus_pgnats_runtime_main";
/// Held locked while a runtime lives. Beside the socket, and left out of base backups as that is.
const LOCK_PATH: &str = "pg_stat_tmp/litmus_pgnats.lock";
/// What was told of the server's role since it started.
const MEMORY_PATH: &str = "pg_stat_tmp/litmus_pgnats.notified";
/// The actor thread's time to end in order.
const STOP_LIMIT: Duration = Duration::from_millis(1500);

/// Has the worker start with the server, if the library is preloaded; called when the library is loaded.
pub fn register() {
    if worker::is_preloading() && !worker::is_binary_upgrade() {
        worker::register_static(NAME, MAIN);
        PRELOADED.set(true);
    }
}

thread_local! {
    /// Set in the postmaster and inherited by its children.
    static PRELOADED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the library is preloaded.
pub fn is_preloaded() -> bool {
    PRELOADED.get()
}

/// Starts the runtime for a session that finds none.
#[derive(Default)]
pub struct Starter {
    asked: bool,
}

impl Starter {
    /// Asks the postmaster once for a worker, unless one comes with the server anyway.
    pub fn ensure(&mut self) -> Result<()> {
        if self.asked || is_preloaded() {
            return Ok(());
        }
        if worker::is_binary_upgrade() {
            return Err(Error::new(
                Kind::RuntimeUnavailable,
                "litmus_pgnats does not run during a binary upgrade",
            ));
        }
        if !worker::register_dynamic(NAME, MAIN) {
            return Err(Error::new(
                Kind::WorkerSlots,
                "could not start the litmus_pgnats runtime worker",
            )
            .detail("All slots for background workers are taken."));
        }
        self.asked = true;
        Ok(())
    }
}

/// The worker's main function, called by the postmaster's child.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn litmus_pgnats_runtime_main(_arg: pg_sys::Datum) {
    worker::attach();
    // Two sessions may have asked for a worker at the same time.
    let Some(_lock) = lock() else { worker::exit(0) };
    if let Err(error) = run() {
        let text = format!("the runtime worker ends: {error}");
        logging::write(log::Level::Error, &text, "", "");
    }
    worker::exit(1)
}

fn lock() -> Option<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(LOCK_PATH)
        .ok()?;
    file.try_lock().ok()?;
    Some(file)
}

fn run() -> std::io::Result<()> {
    let (mut records, alive) = logging::install()?;
    logging::set_level(settings::log_level());
    let (notices, noticed) = mpsc::unbounded_channel();
    let (mut workers, remote) = workers::hire(notices);
    let bounds = settings::Bounds::default();
    let role = worker::role();
    let config = Config {
        socket: PathBuf::from(SOCKET_PATH),
        cluster: worker::cluster_label(),
        host: std::sync::Arc::new(remote),
        notices: noticed,
        limits: bounds.limits.clone(),
        sizes: bounds.sizes.clone(),
        fencing: bounds.fencing.clone(),
        identity: worker::identity(),
        role,
        databases: transaction(catalog::databases).unwrap_or_default(),
        memory: PathBuf::from(MEMORY_PATH),
    };
    let (stop, stopped) = oneshot::channel();
    let actors = threads::spawn("actors", move || {
        let _alive = alive;
        system::run(config, stopped)
    })?;
    let herald = if role.is_primary { None } else { herald::send() };
    if herald.is_none() && !role.is_primary {
        logging::write(
            log::Level::Warn,
            "no background worker slot is free, so subscriptions and responders will not run after a promotion",
            "",
            "You might need to increase max_worker_processes.",
        );
    }
    let ended = serve(&mut records, &mut workers, &bounds, stop, actors);
    workers.dismiss();
    // It may still wait for the end of recovery; the next runtime has its own.
    herald.into_iter().for_each(Process::terminate);
    ended
}

fn serve(
    records: &mut logging::Records,
    workers: &mut Workers,
    bounds: &settings::Bounds,
    stop: oneshot::Sender<()>,
    actors: JoinHandle<End>,
) -> std::io::Result<()> {
    let mut stop = Some(stop);
    let mut set = LatchWait::new(Event::RuntimeMain);
    let mut deadline = None;
    let mut trimmer = Trimmer::new();
    loop {
        let due = deadline.map_or(trimmer.due(), |deadline: Instant| deadline.min(trimmer.due()));
        let time = due.saturating_duration_since(Instant::now());
        let woken = worker::wait(&mut set, records.socket(), time);
        let alive = records.take_wakes();
        logging::set_level(settings::log_level());
        bounds.update();
        workers.serve();
        records.write();
        trimmer.serve();
        if !alive {
            return ended(actors);
        }
        if woken.terminate
            && let Some(stop) = stop.take()
        {
            let _ = stop.send(());
            deadline = Some(Instant::now() + STOP_LIMIT);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(std::io::Error::other("the actors did not end in time"));
        }
    }
}

fn ended(actors: JoinHandle<End>) -> std::io::Result<()> {
    match actors.join() {
        Ok(End::Stopped) => Ok(()),
        Ok(End::ActorDied) => Err(std::io::Error::other("an actor has died")),
        Ok(End::Failed(why)) => Err(std::io::Error::other(why)),
        Err(_) => Err(std::io::Error::other("the actor thread has died")),
    }
}
