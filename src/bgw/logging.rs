//! Writes the workers' messages to the server log, in one format: `litmus_pgnats: text`. A text that begins with the
//! name of a connection begins with `litmus_pgnats` already. `litmus_pgnats.log_level` says what is written.
//!
//! Runs in every worker, on the main thread, which alone may write to the server log. In the runtime worker, records of
//! the actor thread therefore wait for the main thread in a bounded queue. Each place in the code may queue a few
//! records in ten seconds; the others are counted. A byte on a socket wakes the main thread, and the end of the socket
//! tells it that the actor thread is gone.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;

use crate::findings;
use crate::flood::Burst;
use crate::pg::report;
use crate::sql::parameters;

/// Most records that may wait; further ones are only counted.
const QUEUE: usize = 1024;

type LogRecord = (log::Level, String);

struct Logger {
    queue: SyncSender<LogRecord>,
    wake: UnixStream,
    dropped: Arc<AtomicUsize>,
    /// Limits records by the place in the code that they come from.
    bursts: DashMap<LogSite, Burst>,
}

/// The file and the line that a record comes from.
type LogSite = (Option<&'static str>, Option<u32>);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// The main thread's end of the queue and of the socket.
pub struct Records {
    queue: Receiver<LogRecord>,
    wake: UnixStream,
    dropped: Arc<AtomicUsize>,
}

/// Held by the actor thread; when it is dropped, [`Records::take_wakes`] tells that the thread is gone.
pub struct Alive {
    wake: UnixStream,
}

impl Drop for Alive {
    fn drop(&mut self) {
        // The logger keeps a copy of the socket, so the main thread would not notice that this one is closed. If the
        // socket cannot be shut down, its other end is gone.
        let _ = self.wake.shutdown(std::net::Shutdown::Both);
    }
}

/// Installs the logger of this process; fails if there is one already.
pub fn install() -> std::io::Result<(Records, Alive)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let (sender, queue) = sync_channel(QUEUE);
    let dropped = Arc::new(AtomicUsize::new(0));
    let logger = Logger {
        queue: sender,
        wake: theirs.try_clone()?,
        dropped: dropped.clone(),
        bursts: DashMap::new(),
    };
    if log::set_logger(LOGGER.get_or_init(|| logger)).is_err() {
        return Err(std::io::Error::other("a logger is installed already"));
    }
    Ok((
        Records {
            queue,
            wake: ours,
            dropped,
        },
        Alive { wake: theirs },
    ))
}

/// Wakes the main thread.
pub fn wake() {
    if let Some(logger) = LOGGER.get() {
        // An error needs no handling: a full socket wakes the main thread as well, and a closed one has no main thread
        // to wake.
        let _ = (&logger.wake).write(&[0]);
    }
}

/// Sets which records are kept.
pub fn set_level(level: log::LevelFilter) {
    log::set_max_level(level);
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Records of other libraries are left out: the actors report what matters of them.
        metadata.target().starts_with("litmus_pgnats")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let site = (record.file_static(), record.line());
        let suppressed = self.bursts.entry(site).or_default().pass();
        let Some(suppressed) = suppressed else {
            return;
        };
        let text = format!("{}{suppressed}", findings::line(&record.args().to_string()));
        if self.queue.try_send((record.level(), text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        wake();
    }

    fn flush(&self) {}
}

impl Records {
    /// The socket that the main thread waits for.
    pub fn socket(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Takes the bytes off the socket. Called before the main thread looks for what they announce, because news that
    /// came in between would wake nobody. `false` when the actor thread is gone.
    pub fn take_wakes(&mut self) -> bool {
        let mut bytes = [0; 256];
        loop {
            match self.wake.read(&mut bytes) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(_) => return true,
            }
        }
    }

    /// Writes the records that wait to the server log.
    pub fn write(&mut self) {
        for (level, text) in self.queue.try_iter() {
            write(level, &text, "", "");
        }
        match self.dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => write(
                log::Level::Warn,
                &format!("{count} log messages were dropped"),
                "",
                "",
            ),
        }
    }
}

/// Writes a message to the server log if `litmus_pgnats.log_level` allows it; an empty `detail` or `hint` is left out.
/// For the main thread alone.
pub fn write(level: log::Level, text: &str, detail: &str, hint: &str) {
    if level > parameters::log_level() {
        return;
    }
    let level = match level {
        log::Level::Warn => report::Level::Warning,
        // PostgreSQL's ERROR would end the worker; LOG is written in any case.
        log::Level::Error | log::Level::Info => report::Level::Log,
        log::Level::Debug | log::Level::Trace => report::Level::Debug,
    };
    if text.starts_with("litmus_pgnats") {
        report::message(level, text, detail, hint);
    } else {
        report::message(level, &format!("litmus_pgnats: {text}"), detail, hint);
    }
}
