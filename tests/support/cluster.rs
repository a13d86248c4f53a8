//! Data directories of PostgreSQL: initdb once for all tests, then copies; and copies of running servers.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::place::{as_server_user, bindir, directory, give_to_server, lock, run, version};

/// What every cluster of the tests is configured with; a builder's own settings come after it and win.
const BASE_CONF: &str = "
fsync = off
full_page_writes = off
shared_buffers = 16MB
max_worker_processes = 32
wal_keep_size = 128MB
listen_addresses = '127.0.0.1'
logging_collector = off
log_line_prefix = '%m [%p] %b %q%u@%d '
";

/// Makes a new data directory.
pub fn create(data: &Path) {
    copy(&template(), data);
    append_conf(data, BASE_CONF);
}

/// The data directory that all others are copied from, made by initdb when it is missing.
fn template() -> PathBuf {
    let mut hash = DefaultHasher::new();
    (bindir(), version()).hash(&mut hash);
    let path = directory("templates").join(format!("{:016x}", hash.finish()));
    let _guard = lock("template");
    if !path.exists() {
        let unfinished = path.with_extension("new");
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir(&unfinished).unwrap_or_else(|e| panic!("cannot create {}: {e}", unfinished.display()));
        give_to_server(&unfinished);
        run(as_server_user(&mut Command::new(bindir().join("initdb")))
            .args(["--username=postgres", "--auth=trust", "--no-sync"])
            .args(["--no-locale", "--encoding=UTF8", "--wal-segsize=1"])
            .arg("-D")
            .arg(&unfinished)
            .current_dir("/"));
        fs::rename(&unfinished, &path)
            .unwrap_or_else(|e| panic!("cannot rename {}: {e}", unfinished.display()));
    }
    path
}

/// Copies a directory with its owners and modes, sharing blocks where the file system can.
fn copy(from: &Path, to: &Path) {
    run(Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(from)
        .arg(to));
}

/// Appends lines to postgresql.conf.
pub fn append_conf(data: &Path, lines: &str) {
    let path = data.join("postgresql.conf");
    fs::File::options()
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(lines.as_bytes()))
        .unwrap_or_else(|e| panic!("cannot append to {}: {e}", path.display()));
}

/// A line of postgresql.conf.
pub fn conf_line(key: &str, value: &str) -> String {
    format!("{key} = '{}'\n", value.replace('\'', "''"))
}

/// Puts lines before the others in pg_hba.conf: the first line that matches decides.
pub fn prepend_hba(data: &Path, lines: &[String]) {
    let path = data.join("pg_hba.conf");
    fs::read_to_string(&path)
        .and_then(|old| fs::write(&path, lines.join("\n") + "\n" + &old))
        .unwrap_or_else(|e| panic!("cannot change {}: {e}", path.display()));
}

/// Copies a running server with pg_basebackup, ready to start as its standby. False when this PostgreSQL lacks the
/// program: some binary distributions do.
pub fn base_backup(socket_dir: &Path, port: u16, to: &Path) -> bool {
    let program = bindir().join("pg_basebackup");
    if !program.exists() {
        return false;
    }
    run(as_server_user(&mut Command::new(program))
        .args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
        .args(["--username=postgres", "--port", &port.to_string()])
        .arg("--host")
        .arg(socket_dir)
        .arg("-D")
        .arg(to)
        .current_dir("/"));
    true
}

/// Copies the files of a server that is in backup mode; `finish_copy` makes a standby of them.
pub fn copy_running(from: &Path, to: &Path) {
    let output = Command::new("cp")
        .arg("-a")
        .args([from, to])
        .output()
        .expect("run cp");
    let errors = String::from_utf8_lossy(&output.stderr);
    let real = errors.lines().find(|line| !line.contains("No such file"));
    // Files may vanish while they are copied: replaying the log makes up for them.
    assert!(real.is_none(), "cannot copy {}: {errors}", from.display());
    for name in ["postmaster.pid", "postmaster.opts"] {
        let _ = fs::remove_file(to.join(name));
    }
    run(Command::new("find").arg(to).args(["-type", "s", "-delete"]));
    run(Command::new("find")
        .arg(to.join("pg_wal"))
        .args(["-type", "f", "-delete"]));
}

/// Makes a standby of copied files: the label that pg_backup_stop returned, and where the primary is.
pub fn finish_copy(data: &Path, label: &str, socket_dir: &Path, port: u16) {
    for (name, text) in [("backup_label", label), ("standby.signal", "")] {
        let path = data.join(name);
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        give_to_server(&path);
    }
    let primary = format!("host={} port={port} user=postgres", socket_dir.display());
    append_conf(data, &conf_line("primary_conninfo", &primary));
}
