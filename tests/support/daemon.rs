//! A server process: a child with a log file, which never outlives its test.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::proc::{self, Process};

/// How often a wait looks again.
const TICK: Duration = Duration::from_millis(5);
/// How long a server may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How many lines of a log a failure shows.
const TAIL: usize = 60;

/// A server that may run, be stopped and be started again, always with the same log file.
///
/// Dropping it sends `stop_signal`, waits, kills what is left of it and its children, and prints the end of the log
/// when the test is failing.
pub struct Daemon {
    name: &'static str,
    stop_signal: i32,
    log: PathBuf,
    child: Option<Child>,
    orphans: Vec<Process>,
}

impl Daemon {
    pub fn new(name: &'static str, stop_signal: i32, log: PathBuf) -> Self {
        Self {
            name,
            stop_signal,
            log,
            child: None,
            orphans: Vec::new(),
        }
    }

    /// Starts the process; its output is appended to the log.
    pub fn spawn(&mut self, mut command: Command) {
        assert!(!self.is_running(), "{} runs already\n{}", self.name, self.tail());
        let open = || File::options().create(true).append(true).open(&self.log);
        let log = open()
            .and_then(|log| Ok((log.try_clone()?, log)))
            .unwrap_or_else(|e| panic!("cannot open {}: {e}", self.log.display()));
        command.stdin(Stdio::null()).stdout(log.0).stderr(log.1);
        let shown = format!("{command:?}");
        let child = spawn_with_lifeline(command, self.stop_signal);
        self.child = Some(child.unwrap_or_else(|e| panic!("cannot run {shown}: {e}")));
    }

    /// Waits until `ready` holds; panics when the process ends first or takes longer than `timeout`.
    pub async fn wait_ready(&mut self, timeout: Duration, mut ready: impl FnMut() -> bool) {
        let deadline = Instant::now() + timeout;
        while !ready() {
            assert!(
                self.is_running(),
                "{} ended while starting\n{}",
                self.name,
                self.tail()
            );
            assert!(
                Instant::now() < deadline,
                "{} is not ready after {timeout:?}\n{}",
                self.name,
                self.tail()
            );
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until the process has ended and says how; panics when it takes longer than `timeout`.
    pub async fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        let child = self.child.as_mut().expect("a server that was started");
        loop {
            if let Some(status) = child.try_wait().expect("wait for a child") {
                self.child = None;
                return status;
            }
            if Instant::now() >= deadline {
                panic!("{} has not ended after {timeout:?}\n{}", self.name, self.tail());
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Kills the process with SIGKILL. Its children are left alone, they are expected to end by themselves.
    pub fn kill9(&mut self) {
        self.orphans.extend(processes_below(self.pid()));
        let child = self.child.as_mut().expect("a server that runs");
        child.kill().expect("send SIGKILL to a child");
        child.wait().expect("wait for a killed child");
        self.child = None;
    }

    /// Waits until the children that a killed process left behind are gone; panics when they stay.
    pub async fn wait_orphans(&mut self) {
        let deadline = Instant::now() + GRACE;
        self.orphans.retain(|orphan| orphan.alive());
        while let Some(orphan) = self.orphans.first() {
            assert!(
                Instant::now() < deadline,
                "process {} ({}) outlived {} by {GRACE:?}\n{}",
                orphan.pid,
                proc::command_line(orphan.pid),
                self.name,
                self.tail()
            );
            tokio::time::sleep(TICK).await;
            self.orphans.retain(|orphan| orphan.alive());
        }
    }

    pub fn is_running(&mut self) -> bool {
        let Some(child) = self.child.as_mut() else {
            return false;
        };
        if child.try_wait().expect("wait for a child").is_some() {
            self.child = None;
        }
        self.child.is_some()
    }

    /// The same without waiting for what has ended.
    pub fn is_up(&self) -> bool {
        let pid = self.child.as_ref().map(|child| child.id().cast_signed());
        pid.is_some_and(proc::alive)
    }

    pub fn pid(&self) -> i32 {
        let child = self
            .child
            .as_ref()
            .unwrap_or_else(|| panic!("{} does not run\n{}", self.name, self.tail()));
        i32::try_from(child.id()).expect("a process id")
    }

    pub fn signal(&self, signal: i32) {
        proc::signal(self.pid(), signal);
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything that the server wrote so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of the log with a heading, for the message of a panic.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(TAIL)..];
        format!("--- end of the log of {}:\n{}\n---", self.name, end.join("\n"))
    }

    /// Ends the process and all its children, for certain; blocks.
    fn end(&mut self) {
        if self.is_running() {
            self.orphans.extend(processes_below(self.pid()));
            self.signal(self.stop_signal);
            self.signal(libc::SIGCONT); // it may be stopped
        }
        let deadline = Instant::now() + GRACE;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
        if let Some(mut child) = self.child.take() {
            eprintln!("{} did not end within {GRACE:?}: killed", self.name);
            self.orphans.extend(processes_below(child.id().cast_signed()));
            let _ = child.kill();
            let _ = child.wait();
        }
        while self.orphans.iter().any(|p| p.alive()) && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
        self.orphans
            .iter()
            .for_each(|orphan| orphan.signal(libc::SIGKILL));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

fn processes_below(pid: i32) -> Vec<Process> {
    let children = proc::children(pid);
    children.into_iter().filter_map(Process::find).collect()
}

/// Spawns a child that gets `signal` when the test process dies, however that happens.
///
/// The kernel ties that promise to the thread that spawned the child, and the threads of tests come and go. So one
/// thread, which lives as long as the process, spawns them all.
fn spawn_with_lifeline(mut command: Command, signal: i32) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Request>>> = LazyLock::new(|| {
        let (requests, inbox) = mpsc::channel::<Request>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("start the thread that spawns servers");
        Mutex::new(requests)
    });
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let (answer, child) = mpsc::channel();
    let requests = SPAWNER.lock().expect("no panic while spawning");
    requests
        .send((command, answer))
        .expect("the spawner lives as long as the process");
    child.recv().expect("an answer of the spawner")
}
