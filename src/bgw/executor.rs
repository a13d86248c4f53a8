//! Executors and outbox relays: workers of a database that carry out orders of the runtime worker. Runs in these
//! workers, on the main thread; between two orders a worker holds no snapshot and no lock. [`start`] runs in the
//! runtime worker, and the promotion notifier uses [`join`] too.

use std::os::fd::RawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use pgrx::{pg_guard, pg_sys};

use super::outbox_relay::OutboxReader;
use super::work::Worker;
use super::{definitions, logging, outbox_relay};
use crate::channel::SOCKET_PATH;
use crate::channel::client::{Client, Interest, Wait, connect};
use crate::channel::message::{PROTOCOL, Peer, Reply, Request};
use crate::channel::work::{FromWorker, ToWorker};
use crate::channel::worker_id::WorkerId;
use crate::error::{Error, Kind, Result};
use crate::flood::Flood;
use crate::pg::wait::{Event, LatchWait};
use crate::pg::worker;
use crate::pg::worker::{Process, WorkerStart};

const NAME: &str = "litmus_pgnats executor";
const OUTBOX_RELAY: &str = "litmus_pgnats outbox relay";
const MAIN: &str = "litmus_pgnats_executor_main";
/// Largest report of a database's handlers, in bytes: bounds the memory that an ordinary role can take by registering
/// handlers.
const MAX_REPORT: usize = 16 * 1024 * 1024;
/// Longest wait for the runtime worker to read what a worker says.
const SAY_LIMIT: Duration = Duration::from_secs(30);
/// How long a new worker tries to reach the runtime worker.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
/// Longest single wait for an order. Nothing happens when the time has passed, so it is long.
const IDLE: Duration = Duration::from_secs(24 * 60 * 60);

/// Starts an executor or an outbox relay, as the id says; `None` if no slot for a background worker is free.
pub fn start(id: WorkerId, database: u32) -> Option<Process> {
    // Workers start on a standby too, where an executor only reads what the database defines.
    let name = if id.is_outbox_relay() { OUTBOX_RELAY } else { NAME };
    Process::start(name, MAIN, id.with_database(database), WorkerStart::Now)
}

/// Waits for the channel of a worker and serves interrupts, which do no harm between two orders.
pub struct IdleWait(LatchWait);

impl Wait for IdleWait {
    fn wait(&mut self, socket: RawFd, interest: Interest, deadline: Instant) -> Result<()> {
        let time = deadline.saturating_duration_since(Instant::now());
        self.0.wait_idle(socket, interest, time);
        worker::serve_interrupts();
        Ok(())
    }

    fn interrupted(&self) -> bool {
        self.0.interrupted()
    }
}

/// Connects a worker to the runtime worker; fails if that takes longer than `JOIN_LIMIT`.
pub fn join(peer: Peer) -> Result<Client<IdleWait>> {
    let deadline = Instant::now() + JOIN_LIMIT;
    let lost = |error: std::io::Error| Error::new(Kind::RuntimeUnavailable, error.to_string());
    let socket = loop {
        match connect(Path::new(SOCKET_PATH)) {
            Ok(socket) => break socket,
            Err(error) if Instant::now() >= deadline => return Err(lost(error)),
            Err(_) => crate::pg::wait::sleep(Duration::from_millis(5))?,
        }
    };
    let mut client = Client::new(socket, IdleWait(LatchWait::new(Event::WorkerMain))).map_err(lost)?;
    let hello = Request::Hello {
        protocol: PROTOCOL,
        pid: std::process::id(),
        peer,
    };
    client.call(&hello, b"", deadline, Duration::ZERO)?;
    Ok(client)
}

/// The worker's main function, called by the postmaster's child.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn litmus_pgnats_executor_main(arg: pg_sys::Datum) {
    let (id, database) = WorkerId::and_database(arg.value() as u64);
    let name = if id.is_outbox_relay() {
        c"litmus_pgnats outbox relay"
    } else {
        c"litmus_pgnats executor"
    };
    worker::attach_as_session(Some(database), name);
    if id.is_outbox_relay() {
        outbox_relay::settle_in();
    }
    // Whatever ends the connection ends the worker. The end of the runtime worker is not logged here.
    if let Err(error) = join(Peer::Worker { id }).and_then(serve)
        && !matches!(error.kind, Kind::RuntimeUnavailable | Kind::RuntimeLost)
    {
        let who = if id.is_outbox_relay() {
            "an outbox relay"
        } else {
            "an executor"
        };
        let text = format!("{who} ends: {}", error.message);
        let detail = error.detail.as_deref().unwrap_or_default();
        logging::write(log::Level::Warn, &text, detail, "");
    }
    worker::exit(0)
}

/// Carries out orders until told to leave.
fn serve(mut client: Client<IdleWait>) -> Result<()> {
    let (mut worker, mut outbox, mut complaints) =
        (Worker::default(), OutboxReader::default(), Flood::default());
    loop {
        let frame = client.receive(IDLE)?;
        match frame.message {
            Reply::Worker(ToWorker::Refresh { removed }) => {
                let said = definitions::read_definitions(&removed).map_or_else(FromWorker::ReadFailed, |mut report| {
                    let left_out = report.fit(MAX_REPORT);
                    if left_out > 0
                        && let Some(suppressed) = complaints.pass()
                    {
                        let text = format!(
                            "{left_out} subscriptions and responders are too many for the runtime worker{suppressed}"
                        );
                        logging::write(log::Level::Warn, &text, "", "");
                    }
                    FromWorker::Report(report)
                });
                say(&mut client, said, b"")?;
            }
            Reply::Worker(ToWorker::Work(work)) => {
                worker.run(&work, frame.body, |said, body| say(&mut client, said, body))?;
            }
            Reply::Worker(ToWorker::Fetch(order)) => {
                let (batch, body) = outbox
                    .fetch(&order)
                    .map_err(|error| Error::new(Kind::Protocol, error.message))?;
                say(&mut client, FromWorker::Fetched(batch.map(Box::new)), &body)?;
            }
            Reply::Worker(ToWorker::End) => {
                worker.farewell();
                return Ok(());
            }
            _ => return Err(Error::new(Kind::Protocol, "unexpected order")),
        }
        worker::tidy_up();
        worker::report_idle();
    }
}

fn say(client: &mut Client<IdleWait>, said: FromWorker, body: &[u8]) -> Result<()> {
    client.push(&Request::Worker(said), body)?;
    client.flush(Instant::now() + SAY_LIMIT)
}
