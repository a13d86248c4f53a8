//! The runtime worker: one per cluster, PostgreSQL's shell around the actor system.
//!
//! The main thread serves PostgreSQL (latch, signals, configuration, the server log, the postmaster's death) and runs
//! no SQL; the actor thread serves NATS and the control channel. The worker always ends with exit code 1, so that the
//! postmaster restarts it, except when another runtime worker runs already.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pgrx::{pg_guard, pg_sys};
use tokio::sync::{mpsc, oneshot};

use super::memory::Trimmer;
use super::workers::Workers;
use super::{allocator, limits, logging, promotion_notifier, threads, workers};
use crate::actors::system;
use crate::actors::system::{Config, SystemEnd};
use crate::channel::SOCKET_PATH;
use crate::pg::transaction::transaction;
use crate::pg::wait::{Event, LatchWait};
use crate::pg::worker::Process;
use crate::pg::{databases, worker};
use crate::sql::parameters;

/// The file that is locked as long as a runtime worker lives. Base backups leave it out, like the socket beside it.
const LOCK_PATH: &str = "pg_stat_tmp/litmus_pgnats.lock";
/// The file that remembers which notifications of the server's role were sent since the server started.
const MEMORY_PATH: &str = "pg_stat_tmp/litmus_pgnats.notified";
/// How long the actor thread may take to end in order.
const STOP_LIMIT: Duration = Duration::from_millis(1500);

/// The worker's main function, called by the postmaster's child.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn litmus_pgnats_runtime_main(_arg: pg_sys::Datum) {
    worker::attach();
    allocator::guard();
    // Two sessions may have asked for a runtime worker at the same time.
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
    logging::set_level(parameters::log_level());
    let (notices, noticed) = mpsc::unbounded_channel();
    let (mut workers, remote) = workers::hire(notices);
    let bounds = limits::Bounds::default();
    let role = worker::role();
    let config = Config {
        socket: PathBuf::from(SOCKET_PATH),
        cluster: worker::cluster_label(),
        launcher: std::sync::Arc::new(remote),
        notices: noticed,
        limits: bounds.limits.clone(),
        sizes: bounds.sizes.clone(),
        fencing: bounds.fencing.clone(),
        identity: worker::identity(),
        role,
        databases: transaction(databases::databases).map_err(|error| std::io::Error::other(error.message))?,
        memory: PathBuf::from(MEMORY_PATH),
    };
    let (stop, stopped) = oneshot::channel();
    let actors = threads::spawn("actors", move || {
        let _alive = alive;
        system::run(config, stopped)
    })?;
    let notifier = if role.is_primary {
        None
    } else {
        promotion_notifier::send()
    };
    if notifier.is_none() && !role.is_primary {
        logging::write(
            log::Level::Warn,
            "no background worker slot is free, so subscriptions and responders will not run after a promotion",
            "",
            "You might need to increase max_worker_processes.",
        );
    }
    let ended = serve(&mut records, &mut workers, &bounds, stop, actors);
    workers.dismiss();
    // The promotion notifier may still wait for the end of recovery; the next runtime worker has its own.
    notifier.into_iter().for_each(Process::terminate);
    ended
}

fn serve(
    records: &mut logging::Records,
    workers: &mut Workers,
    bounds: &limits::Bounds,
    stop: oneshot::Sender<()>,
    actors: JoinHandle<SystemEnd>,
) -> std::io::Result<()> {
    let mut stop = Some(stop);
    let mut set = LatchWait::new(Event::RuntimeMain);
    let mut deadline = None;
    let mut trimmer = Trimmer::new();
    loop {
        let due = deadline.map_or(trimmer.due(), |deadline: Instant| deadline.min(trimmer.due()));
        let time = due.saturating_duration_since(Instant::now());
        let woken = worker::wait(&mut set, records.socket(), time);
        if allocator::is_exhausted() {
            out_of_memory();
        }
        let alive = records.take_wakes();
        logging::set_level(parameters::log_level());
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
            // Actors that have ended need not be told.
            let _ = stop.send(());
            deadline = Some(Instant::now() + STOP_LIMIT);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(std::io::Error::other("the actors did not end in time"));
        }
    }
}

/// Ends the worker at once. Nothing here waits for a lock.
fn out_of_memory() -> ! {
    logging::write(
        log::Level::Error,
        "the runtime worker ends: it is out of memory",
        "",
        "litmus_pgnats.runtime_memory_limit sets how much the worker may take.",
    );
    worker::exit(1)
}

fn ended(actors: JoinHandle<SystemEnd>) -> std::io::Result<()> {
    match actors.join() {
        Ok(SystemEnd::Stopped) => Ok(()),
        Ok(SystemEnd::Died(name)) => {
            let why = format!("an actor has died: \"{name}\" has panicked");
            Err(std::io::Error::other(why))
        }
        Ok(SystemEnd::Failed(why)) => Err(std::io::Error::other(why)),
        Err(_) => Err(std::io::Error::other("the actor thread has died")),
    }
}
