//! The runtime worker as a guest in PostgreSQL: threads, signals, its socket, idleness, and the administrator's work.

mod scene;
mod support;

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use scene::*;
use support::proc;
use support::*;

/// The socket by a path that is short enough for a Unix socket.
struct Socket {
    path: PathBuf,
    owner: u32,
    _short: tempfile::TempDir,
}

impl Socket {
    fn of(pg: &Postgres) -> Self {
        let short = tempfile::tempdir_in("/tmp").expect("a directory");
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(short.path(), everybody).expect("open the directory");
        std::os::unix::fs::symlink(pg.data_dir(), short.path().join("data")).expect("a link");
        let path = short.path().join("data/pg_stat_tmp/litmus_pgnats.sock");
        let owner = std::fs::metadata(pg.data_dir())
            .expect("the data directory")
            .uid();
        Self {
            path,
            owner,
            _short: short,
        }
    }

    /// Connects as the user who runs PostgreSQL.
    fn connect_as_owner(&self) -> UnixStream {
        let (path, owner) = (self.path.clone(), self.owner);
        // The kernel keeps user ids by thread, libc by process: the system call changes this thread's alone.
        let connecting = std::thread::spawn(move || {
            // SAFETY: changes the effective user id of this thread, which ends here.
            unsafe { libc::syscall(libc::SYS_setresuid, -1, owner, -1) };
            UnixStream::connect(path)
        });
        let stream = connecting.join().expect("no panic").expect("connect");
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).expect("a time limit");
        stream.set_write_timeout(patience).expect("a time limit");
        stream
    }
}

/// Whether the other end closes the connection without a word.
fn is_closed(mut stream: &UnixStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// PostgreSQL's handlers may run on the main thread alone, so all other threads block every signal.
#[tokio::test]
async fn its_threads_take_no_signals() {
    let scene = Scene::start().await;
    // Names are resolved in a thread of their own: it is looked at too.
    scene
        .pg
        .sql("ALTER SERVER nats OPTIONS (SET host 'localhost')")
        .await;
    scene.warm_session().await;
    let runtime = scene.runtime().await;
    let names = proc::thread_names(runtime);
    assert!(names.iter().any(|name| name == "actors"), "{names:?}");
    assert!(names.len() > 2, "{names:?}");
    for task in std::fs::read_dir(format!("/proc/{runtime}/task"))
        .expect("the threads")
        .flatten()
    {
        if task.file_name().to_str() == Some(&runtime.to_string()) {
            continue;
        }
        let status = std::fs::read_to_string(task.path().join("status")).expect("a thread's status");
        let blocked = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:\t"))
            .expect("a mask");
        let blocked = u64::from_str_radix(blocked, 16).expect("a number");
        let blockable = (1..32).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal));
        let open: Vec<i32> = blockable
            .filter(|signal| blocked & (1 << (signal - 1)) == 0)
            .collect();
        assert!(open.is_empty(), "signals {open:?} reach a thread: {status}");
    }
}

/// PostgreSQL code runs on one thread only; so nobody but the runtime worker has a second one.
#[tokio::test]
async fn nobody_else_has_a_second_thread() {
    let scene = Scene::start().await;
    scene.echo().await;
    let session = scene.warm_session().await;
    works(&session, "x").await;
    let runtime = scene.runtime().await;
    let others = proc::children(scene.pg.postmaster_pid());
    assert!(others.contains(&session.pid()) && others.contains(&runtime));
    for pid in others.into_iter().filter(|&pid| pid != runtime) {
        assert_eq!(proc::threads(pid), 1, "{}", proc::command_line(pid));
    }
    assert_eq!(proc::threads(scene.pg.postmaster_pid()), 1);
}

/// Without anything to do it uses no processor time.
#[tokio::test]
async fn idle_it_uses_no_time() {
    let scene = Scene::start().await;
    let session = scene.warm_session().await;
    let runtime = scene.runtime().await;
    let before = proc::cpu_time(runtime);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let used = proc::cpu_time(runtime) - before;
    println!("idle for 4 s: {used:?}");
    assert!(used <= Duration::from_millis(20), "{used:?}");
    drop(session);
}

/// The channel is for processes of PostgreSQL's own user. Root gets past the mode, but not past the check.
#[tokio::test]
async fn its_socket_is_for_its_own_user() {
    let scene = Scene::start().await;
    scene.echo().await;
    scene.warm_session().await;
    let socket = Socket::of(&scene.pg);
    let mode = std::fs::metadata(&socket.path)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != socket.owner {
        let stream = UnixStream::connect(&socket.path).expect("root may connect");
        stream.set_read_timeout(Some(SOON)).expect("a time limit");
        assert!(is_closed(&stream), "another user was let in");
        scene.pg.wait_log("refused", SOON).await;
    }
    works(&scene.pg.connect().await, "x").await;
}

/// Whatever a process of PostgreSQL's user writes to the socket, it loses its own connection and nothing else.
#[tokio::test]
async fn garbage_hurts_nobody_else() {
    let scene = Scene::start().await;
    scene.echo().await;
    let session = scene.warm_session().await;
    let (runtime, socket) = (scene.runtime().await, Socket::of(&scene.pg));
    let size = |bytes: u32| bytes.to_le_bytes().to_vec();
    let cases: [(&str, Vec<u8>); 5] = [
        ("a frame beyond the limit", size(u32::MAX)),
        ("a frame without room for its header", size(0)),
        ("noise", [7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 250].to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        (
            "a first frame that is no greeting",
            [7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3].to_vec(),
        ),
    ];
    for (what, bytes) in cases {
        let mut stream = socket.connect_as_owner();
        stream.write_all(&bytes).expect("write");
        assert!(is_closed(&stream), "{what}: still open");
        works(&session, "meanwhile").await;
    }
    // Announced and not sent, or sent in part and left: costs the runtime nothing.
    let before = proc::private_bytes(runtime);
    let announcers: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = socket.connect_as_owner();
            stream.write_all(&size(60 << 20)).expect("write");
            stream.write_all(&[0; 100]).expect("write");
            stream
        })
        .collect();
    works(&session, "meanwhile").await;
    let grown = proc::private_bytes(runtime).saturating_sub(before);
    println!("fifty announced frames of 60 MiB: {grown} bytes");
    assert!(grown < 64 << 20, "{grown} bytes");
    drop(announcers);
    works(&session, "after").await;
    assert_eq!(scene.runtime().await, runtime);
}

/// A base backup leaves the socket out and does not complain about it.
#[tokio::test]
async fn a_base_backup_does_not_mind_it() {
    let scene = Scene::start().await;
    scene.warm_session().await;
    let program = PathBuf::from(pg_config("--bindir")).join("pg_basebackup");
    if !program.exists() {
        println!("this PostgreSQL has no pg_basebackup");
        return;
    }
    let copy = tempfile::tempdir_in("/tmp").expect("a directory");
    let mark = scene.pg.log().len();
    let mut backup = std::process::Command::new(program);
    backup.args(["--checkpoint=fast", "--no-sync", "--username=postgres", "--port"]);
    backup
        .arg(scene.pg.port().to_string())
        .arg("--host")
        .arg(scene.pg.socket_dir());
    let output = backup
        .arg("-D")
        .arg(copy.path())
        .output()
        .expect("run pg_basebackup");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let log = scene.pg.log();
    assert!(!log[mark..].contains("WARNING"), "{}", &log[mark..]);
    assert!(!copy.path().join("pg_stat_tmp/litmus_pgnats.sock").exists());
    assert!(!copy.path().join("pg_stat_tmp/litmus_pgnats.lock").exists());
}

/// The worker is in no database, so it blocks nothing that needs a database for itself.
#[tokio::test]
async fn databases_can_be_copied_renamed_and_dropped() {
    let scene = Scene::start().await;
    scene.pg.sql("CREATE DATABASE used").await;
    let session = scene.pg.connect_as("postgres", "used").await;
    run(&session, &create_server(scene.nats.port(), "")).await;
    run(&session, "SELECT nats_publish_text('a', 'x')").await;
    session.close().await;
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'used'";
    eventually_eq(SOON, "0".to_owned(), async || scene.pg.sql(sessions).await).await;
    let admin = scene.pg.connect().await;
    for sql in [
        "CREATE DATABASE copy TEMPLATE used",
        "ALTER DATABASE used RENAME TO renamed",
        "DROP DATABASE renamed",
    ] {
        let began = std::time::Instant::now();
        run(&admin, sql).await;
        println!("{sql}: {:?}", began.elapsed());
    }
    // The copy has the server too, and a connection of its own.
    let session = scene.pg.connect_as("postgres", "copy").await;
    scene.echo().await;
    works(&session, "x").await;
}

/// litmus_pgnats.log_level is taken over while the worker runs.
#[tokio::test]
async fn sighup_changes_the_log_level() {
    const LINE: &str = "connected to NATS server";
    let pg = Postgres::builder().conf("litmus_pgnats.log_level", "error");
    let scene = Scene::with(pg, NatsServer::start().await, "").await;
    let session = scene.warm_session().await;
    run(&session, "SELECT litmus_pgnats_reload_conf_force()").await;
    scene.pg.append_conf("litmus_pgnats.log_level", "info");
    scene.pg.reload();
    eventually_eq(SOON, "info".to_owned(), async || {
        text(&session, "SHOW litmus_pgnats.log_level").await
    })
    .await;
    assert!(
        !scene.pg.log().contains(LINE),
        "logged in spite of log_level = error"
    );
    eventually(SOON, async || {
        run(&session, "SELECT litmus_pgnats_reload_conf_force()").await;
        scene.pg.log().contains(LINE)
    })
    .await;
}
