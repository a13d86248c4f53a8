//! Looking at processes through /proc, and sending them signals.

use std::fs;
use std::time::Duration;

/// A process, told from a later one that was given the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    started: u64,
}

impl Process {
    /// The process that has this id now, if there is one.
    pub fn find(pid: i32) -> Option<Self> {
        let started = stat_field(pid, 22)?.parse().ok()?;
        alive(pid).then_some(Self { pid, started })
    }

    /// Whether it still runs. A dead process that nobody has waited for does not.
    pub fn alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Sends a signal unless the process is gone.
    pub fn signal(self, signal: i32) {
        if self.alive() {
            self::signal(self.pid, signal);
        }
    }
}

/// Whether a process with this id runs (zombies do not count).
pub fn alive(pid: i32) -> bool {
    stat_field(pid, 3).is_some_and(|state| state != "Z" && state != "X")
}

/// Whether SIGSTOP has taken hold of every thread.
pub fn stopped(pid: i32) -> bool {
    let path = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&path).unwrap_or_else(|e| panic!("cannot list {path}: {e}"));
    tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .all(|id| stat_field(id, 3).as_deref() == Some("T"))
}

/// The number of threads.
pub fn threads(pid: i32) -> usize {
    let path = format!("/proc/{pid}/task");
    fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("cannot list {path}: {e}"))
        .count()
}

/// The names of the threads, the main thread's first.
pub fn thread_names(pid: i32) -> Vec<String> {
    let path = format!("/proc/{pid}/task");
    let mut ids: Vec<i32> = fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("cannot list {path}: {e}"))
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    ids.iter()
        .filter_map(|id| fs::read_to_string(format!("{path}/{id}/comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// Resident memory in bytes, PostgreSQL's shared buffers that the process touched included.
pub fn rss(pid: i32) -> u64 {
    memory(pid, "VmRSS:").unwrap_or_else(|| panic!("process {pid} is gone or about to be"))
}

/// Memory that is the process's own, in bytes: the number to watch for growth. Shared buffers are none of it, though no
/// other process may have touched them.
pub fn private_bytes(pid: i32) -> u64 {
    try_private_bytes(pid).unwrap_or_else(|| panic!("process {pid} is gone or about to be"))
}

/// The same; `None` if the process is gone, or has given its memory back because it is ending.
pub fn try_private_bytes(pid: i32) -> Option<u64> {
    memory(pid, "RssAnon:")
}

/// Processor time used so far, in user and system mode.
pub fn cpu_time(pid: i32) -> Duration {
    let ticks: u64 = [14, 15]
        .iter()
        .map(|&field| {
            stat_field(pid, field)
                .and_then(|text| text.parse::<u64>().ok())
                .unwrap_or_else(|| panic!("cannot read the processor time of process {pid}"))
        })
        .sum();
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let per_second = u64::try_from(per_second).expect("the kernel's ticks per second");
    Duration::from_millis(ticks * 1000 / per_second)
}

/// The number of open file descriptors.
pub fn open_files(pid: i32) -> usize {
    let path = format!("/proc/{pid}/fd");
    fs::read_dir(&path)
        .unwrap_or_else(|e| panic!("cannot list {path}: {e}"))
        .count()
}

/// The children that run, in the order of their ids.
pub fn children(pid: i32) -> Vec<i32> {
    let parent = pid.to_string();
    let mut found: Vec<i32> = fs::read_dir("/proc")
        .expect("list /proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&child| alive(child) && stat_field(child, 4).as_ref() == Some(&parent))
        .collect();
    found.sort_unstable();
    found
}

/// All processes that run.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("list /proc").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Process::find)
        .collect()
}

/// The command line; for PostgreSQL's processes the title they gave themselves. Empty when the process is gone.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}

/// Sends a signal; panics when there is no such process.
pub fn signal(pid: i32, signal: i32) {
    assert!(pid > 1, "refusing to signal process {pid}");
    // SAFETY: kill has no memory-safety preconditions.
    let failed = unsafe { libc::kill(pid, signal) } != 0;
    assert!(
        !failed,
        "cannot send signal {signal} to process {pid}: {}",
        std::io::Error::last_os_error()
    );
}

/// A field of /proc/pid/stat by its number in proc(5); 3 and up.
fn stat_field(pid: i32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name in parentheses, may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3).map(str::to_owned)
}

fn read(pid: i32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
}

/// A line of the process's status, in bytes; `None` if there is no such process or line.
fn memory(pid: i32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}
