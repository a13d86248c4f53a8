//! Where things are: programs, directories, and the user that servers run as.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Once};

/// The directory that holds the private PostgreSQL installs, nats-server and everything that tests write.
pub fn state() -> PathBuf {
    std::env::var_os("LITMUS_PGNATS_STATE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/state"),
        PathBuf::from,
    )
}

/// What pg_config of the PostgreSQL under test answers to `option`, say `--bindir`.
pub fn pg_config(option: &str) -> String {
    let program = std::env::var_os("PG_CONFIG").map_or_else(
        || {
            let major = std::env::var("PG").unwrap_or_else(|_| "15".into());
            state().join(format!("pg{major}/bin/pg_config"))
        },
        PathBuf::from,
    );
    require(&program, "PG_CONFIG");
    let output = run(Command::new(&program).arg(option));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The version of the PostgreSQL under test as pg_config prints it, say `PostgreSQL 15.20`.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| pg_config("--version"));
    &VERSION
}

/// The major version of the PostgreSQL under test.
pub fn major() -> u32 {
    let digits: String = version()
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("pg_config --version printed {:?}", version()))
}

/// The directory of PostgreSQL's own programs.
pub fn bindir() -> &'static Path {
    static BINDIR: LazyLock<PathBuf> = LazyLock::new(|| pg_config("--bindir").into());
    &BINDIR
}

/// The nats-server program.
pub fn nats_server() -> PathBuf {
    let program =
        std::env::var_os("NATS_SERVER").map_or_else(|| state().join("nats/bin/nats-server"), PathBuf::from);
    require(&program, "NATS_SERVER");
    program
}

/// The oldest nats-server that is supported.
pub fn old_nats_server() -> PathBuf {
    let program = std::env::var_os("NATS_SERVER_OLD")
        .map_or_else(|| state().join("nats29/bin/nats-server"), PathBuf::from);
    require(&program, "NATS_SERVER_OLD");
    program
}

fn require(program: &Path, variable: &str) {
    assert!(
        program.exists(),
        "there is no {}: `make test` installs it, or set {variable} or LITMUS_PGNATS_STATE",
        program.display()
    );
}

/// User and group id of the account that servers run as; `None` when that is the current user.
pub fn server_user() -> Option<(u32, u32)> {
    static USER: LazyLock<Option<(u32, u32)>> = LazyLock::new(|| {
        // SAFETY: geteuid has no preconditions and cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
        let line = passwd
            .lines()
            .find(|line| line.starts_with("postgres:"))
            .expect("tests that run as root need a user postgres in /etc/passwd");
        let ids: Vec<u32> = line
            .split(':')
            .skip(2)
            .take(2)
            .map_while(|id| id.parse().ok())
            .collect();
        assert_eq!(ids.len(), 2, "cannot read the ids in {line:?}");
        Some((ids[0], ids[1]))
    });
    *USER
}

/// Makes `command` run as the servers' user, without variables that would change what PostgreSQL's programs do.
pub fn as_server_user(command: &mut Command) -> &mut Command {
    if let Some((uid, gid)) = server_user() {
        // Command drops the supplementary groups itself when root gives it a uid.
        command.uid(uid).gid(gid);
    }
    clean_environment(command)
}

/// Removes every `PG...` variable and the user's locale.
pub fn clean_environment(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") || text.starts_with("LC_") || text.starts_with("LANG") {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C")
}

/// Gives a file or directory to the servers' user.
pub fn give_to_server(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid))
            .unwrap_or_else(|e| panic!("chown {} to postgres: {e}", path.display()));
    }
}

/// Runs a program to its end; panics with what it said when it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} failed, {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Takes the lock `name` in `<state>/locks`, waiting for it. It is free again when the file is dropped.
pub fn lock(name: &str) -> File {
    let path = directory("locks").join(name);
    let file = File::create(&path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
    file.lock()
        .unwrap_or_else(|e| panic!("cannot lock {}: {e}", path.display()));
    file
}

/// `<state>/<name>`, created when missing and open to the servers' user.
pub fn directory(name: &str) -> PathBuf {
    let path = state().join(name);
    fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()));
    if server_user().is_some() {
        let closed = path
            .ancestors()
            .find(|dir| fs::metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.mode() & 0o001 == 0));
        if let Some(dir) = closed {
            panic!(
                "user postgres cannot enter {}: set LITMUS_PGNATS_STATE to another place",
                dir.display()
            );
        }
    }
    path
}

/// A directory of one server: `<state>/<kind>/<unique>`, removed with everything in it when dropped.
///
/// A test process that is killed cannot clean up. So each directory has a lock file beside it, and the next test
/// process removes the directories whose lock nobody holds.
pub struct WorkDir {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl WorkDir {
    pub fn new(kind: &str) -> Self {
        static SWEPT: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let _guard = lock("workdirs");
        let is_new = !state().join(kind).exists();
        let parent = directory(kind);
        if is_new {
            spread(&parent);
        }
        SWEPT.call_once(|| {
            ["clusters", "nats-servers", "fresh-certs"]
                .into_iter()
                .for_each(sweep)
        });
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{}-{number}", std::process::id()));
            let lock_path = path.with_extension("lock");
            let Ok(held) = File::create_new(&lock_path) else {
                continue; // another process has the same id, in a container of its own
            };
            held.try_lock()
                .unwrap_or_else(|e| panic!("lock {}: {e}", lock_path.display()));
            fs::create_dir(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                .unwrap_or_else(|e| panic!("chmod {}: {e}", path.display()));
            give_to_server(&path);
            return Self {
                path,
                lock_path,
                _lock: held,
            };
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a link to a temporary directory that belongs to this one, so that it is swept along.
    pub fn link(&self, name: &str, target: &Path) {
        symlink(target, self.path.join(name)).unwrap_or_else(|e| panic!("link to {}: {e}", target.display()));
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if std::env::var_os("LITMUS_PGNATS_KEEP").is_some() && std::thread::panicking() {
            eprintln!("kept for a look: {}", self.path.display());
        } else if let Err(e) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {e}", self.path.display());
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Asks ext4 to put each directory in `parent` into a part of the disk of its own.
///
/// ext4 does not reuse an inode for some seconds after its file was removed, and looks for others one by one. Where
/// clusters of a thousand files come and go, that made creating one take 1 s instead of 0.1 s.
fn spread(parent: &Path) {
    // Other file systems refuse, and do not need it.
    let _ = Command::new("chattr").arg("+T").arg(parent).output();
}

/// Removes what killed test processes left in `<state>/<kind>`.
fn sweep(kind: &str) {
    let Ok(entries) = fs::read_dir(state().join(kind)) else {
        return;
    };
    for entry in entries.flatten() {
        let lock_path = entry.path();
        if lock_path.extension().is_none_or(|ext| ext != "lock") {
            continue;
        }
        let Ok(file) = File::open(&lock_path) else {
            continue;
        };
        if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            let path = lock_path.with_extension("");
            for link in fs::read_dir(&path).into_iter().flatten().flatten() {
                let _ = fs::read_link(link.path()).map(fs::remove_dir_all);
            }
            let _ = fs::remove_dir_all(&path);
            let _ = fs::remove_file(&lock_path);
        }
    }
}
