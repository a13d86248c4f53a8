//! What the workers write to the server log, in one format: `litmus_pgnats: text`, or before the text the name of the
//! connection that it concerns, which begins in that way too. `litmus_pgnats.log_level` says what is written.
//!
//! Only a process's main thread may write there. So records of the actor thread wait for it in a bounded queue; of each
//! place in the code some get there in ten seconds, and the others are counted. A byte on a socket wakes the main thread;
//! the socket's end tells it that the actor thread is gone.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::findings;
use crate::flood::Burst;
use crate::pg::report;
use crate::sql::parameters;

/// Records that may wait; what comes on top is counted only.
const QUEUE: usize = 1024;

type LogRecord = (log::Level, String);

struct Logger {
    queue: SyncSender<LogRecord>,
    wake: UnixStream,
    dropped: Arc<AtomicUsize>,
    /// By the place in the code that a record is from.
    bursts: Mutex<HashMap<LogSite, Burst>>,
}

/// File and line.
type LogSite = (Option<&'static str>, Option<u32>);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// The main thread's end.
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
        // The logger keeps a copy of the socket, so closing this one would not be seen.
        let _ = self.wake.shutdown(std::net::Shutdown::Both);
    }
}

/// Installs the logger of this process.
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
        bursts: Mutex::default(),
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
        // A full socket wakes it as well.
        let _ = (&logger.wake).write(&[0]);
    }
}

/// Sets which records are kept.
pub fn set_level(level: log::LevelFilter) {
    log::set_max_level(level);
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Libraries speak of their own matters; the actors say what counts.
        metadata.target().starts_with("litmus_pgnats")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let place = (record.file_static(), record.line());
        let mut bursts = self.bursts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(suppressed) = bursts.entry(place).or_default().pass() else {
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
    /// What the main thread waits for.
    pub fn socket(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Takes the bytes off the socket: before what they announce is looked for, or news that come in between would wake
    /// nobody. `false` when the actor thread is gone.
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

/// Writes a line, unless the parameter says otherwise. On the main thread.
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
