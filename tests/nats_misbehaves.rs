//! Servers that send what no server should, stall, or flood: the connection is lost and made anew, others go on, and
//! neither memory nor the log grows with them.

mod gate;
mod handlers;
mod scene;
mod support;

use std::time::{Duration, Instant};

use gate::*;
use handlers::*;
use scene::*;
use support::*;

const ECHO: &str = "SELECT nats_request_text('echo', 'x', 5000)";
const HOST_OF: &str = "SELECT coalesce(last_error, '') FROM litmus_pgnats.connections WHERE server = 'gated'";

/// Makes a foreign server of this port, and has the session use it.
async fn use_server(session: &Session, name: &str, port: u16) {
    let sql = format!(
        "CREATE SERVER {name} FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{port}');
         SET litmus_pgnats.server = '{name}'"
    );
    run(session, &sql).await;
}

/// A scene with a second foreign server that leads through a gate.
async fn gated() -> (Scene, Session, Session, Gate) {
    let scene = Scene::start().await;
    scene.echo().await;
    let gate = Gate::to(scene.nats.port(), Duration::ZERO).await;
    let session = scene.pg.connect().await;
    use_server(&session, "gated", gate.port()).await;
    run(&session, ECHO).await;
    let other = scene.pg.connect().await;
    run(&other, "SET litmus_pgnats.server = 'nats'").await;
    run(&other, ECHO).await;
    (scene, session, other, gate)
}

/// Memory of a process that is its own, in bytes.
fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .expect("RssAnon");
    let kilobytes: u64 = line
        .split_whitespace()
        .nth(1)
        .expect("a number")
        .parse()
        .expect("a number");
    kilobytes * 1024
}

/// What cannot be understood ends the connection, which is there again soon; the reason is shown.
#[tokio::test]
async fn what_no_server_sends() {
    let (_scene, session, other, gate) = gated().await;
    for (lie, reason) in [
        (
            &b"HMSG a 1 12 18446744073709551613\r\n"[..],
            "a size that no message has",
        ),
        (b"MSG a 1 99999999999999999999\r\n", "a size that no message has"),
        (b"MSG a x 1\r\n", "subscription is no number"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not of NATS's protocol"),
        (b"INFO nothing\r\n", "no JSON of an INFO"),
        (b"MSG a 1 1\r\nxyz\r\n", "does not end where it should"),
    ] {
        let before = gate.connections();
        gate.lie(Lie::Once(lie.to_vec()));
        let began = Instant::now();
        eventually(SOON, async || gate.connections() > before).await;
        run(&session, ECHO).await;
        println!("{reason}: back after {:?}", began.elapsed());
        assert!(text(&session, HOST_OF).await.contains(reason), "{reason}");
        run(&other, ECHO).await;
    }
    // An error without a text is an error.
    let before = gate.connections();
    gate.lie(Lie::Once(b"-ERR\r\n".to_vec()));
    run(&session, ECHO).await;
    assert_eq!(gate.connections(), before);
}

/// A request that waits when the connection ends hears of that at once.
#[tokio::test]
async fn a_request_hears_of_the_end() {
    let (scene, session, _other, gate) = gated().await;
    let requests = scene.silent_responder("silent").await;
    let waits =
        tokio::spawn(
            async move { refused(&session, "SELECT nats_request_text('silent', 'x', 20000)").await },
        );
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.lie(Lie::Once(b"HMSG a 1 12 18446744073709551613\r\n".to_vec()));
    let (report, took) = waits.await.expect("an error");
    assert_eq!(report.code, "08006", "{report:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(requests);
}

/// A connection that passes nothing any more, and ends nothing, is lost within three PINGs.
#[tokio::test]
async fn a_connection_that_stalls() {
    let (_scene, session, other, gate) = gated().await;
    gate.stall(true);
    let began = Instant::now();
    eventually(Duration::from_secs(60), async || {
        text(&session, HOST_OF).await.contains("has not answered")
    })
    .await;
    println!("noticed after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    run(&other, ECHO).await;
    gate.stall(false);
    eventually(SOON, async || session.batch_execute(ECHO).await).await;
}

/// Lines without end, PINGs and INFOs without number: the connection is given up, others go on, and memory stays.
#[tokio::test]
async fn floods() {
    let (scene, _session, other, gate) = gated().await;
    let pid = scene.runtime().await;
    for lie in [
        vec![b'x'; 65536],
        b"PING\r\n".repeat(10_000),
        b"+OK\r\n".repeat(10_000),
        b"INFO {\"server_id\":\"A\"}\r\n".repeat(3_000),
        [&b"INFO {\"server_id\":\""[..], &[b'x'; 65536]].concat(),
    ] {
        let before = memory(pid);
        gate.lie(Lie::ForEver(lie));
        let began = Instant::now();
        let mut slowest = Duration::ZERO;
        while began.elapsed() < Duration::from_secs(2) {
            let one = Instant::now();
            run(&other, ECHO).await;
            slowest = slowest.max(one.elapsed());
        }
        let grown = memory(pid).saturating_sub(before);
        println!("grown by {grown} bytes, the slowest request of another server took {slowest:?}");
        assert!(grown < 40_000_000, "{grown}");
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    }
    assert_eq!(scene.runtime().await, pid);
}

/// An INFO with hundreds of thousands of servers is refused, and costs neither time nor memory.
#[tokio::test]
async fn an_info_with_too_many_servers() {
    let scene = Scene::start().await;
    scene.echo().await;
    let session = scene.pg.connect().await;
    run(&session, ECHO).await;
    let pid = scene.runtime().await;
    let before = memory(pid);
    let urls: Vec<String> = (0..400_000).map(|n| format!("\"10.1.1.1:{n}\"")).collect();
    let info = format!(
        "INFO {{\"server_id\":\"A\",\"connect_urls\":[{}]}}\r\n",
        urls.join(",")
    );
    let port = says(info.into_bytes()).await;
    use_server(&session, "wide", port).await;
    let (report, took) = refused(&session, ECHO).await;
    assert_eq!(report.code, "08001", "{report:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    let grown = memory(pid).saturating_sub(before);
    assert!(grown < 60_000_000, "{grown}");
    run(&session, "SET litmus_pgnats.server = 'nats'").await;
    run(&session, ECHO).await;
}

/// Memory runs out in the runtime worker: it ends alone, calls fail, and it is back soon.
#[tokio::test]
async fn memory_that_runs_out() {
    let pg = Postgres::builder().conf("litmus_pgnats.runtime_memory_limit", "300MB");
    let scene = Scene::with(pg, NatsServer::start().await, "").await;
    scene.echo().await;
    let session = scene.pg.connect().await;
    run(&session, "SET litmus_pgnats.server = 'nats'").await;
    run(&session, ECHO).await;
    let pid = scene.runtime().await;
    let mark = scene.pg.log().len();
    let port = begins_a_message(60_000_000).await;
    for n in 0..8 {
        run(
            &session,
            &format!(
                "CREATE SERVER large{n} FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{port}')"
            ),
        )
        .await;
        let one = scene.pg.connect().await;
        // Fails when the worker ends, or for want of an answer.
        let _ = one
            .batch_execute(&format!(
                "SET litmus_pgnats.server = 'large{n}'; SET litmus_pgnats.connect_timeout = '1s'; SELECT nats_get_server_info()"
            ))
            .await;
    }
    scene.pg.wait_log_after(mark, "out of memory", SOON).await;
    let began = Instant::now();
    for n in 0..8 {
        run(&session, &format!("DROP SERVER large{n} CASCADE")).await;
    }
    eventually(SOON, async || session.batch_execute(ECHO).await).await;
    println!("back after {:?}", began.elapsed());
    assert_ne!(scene.runtime().await, pid);
    let log = scene.pg.log();
    assert!(!log[mark..].contains("all server processes terminated"), "{log}");
}

/// Whoever may use a server may ask for a new connection as often as he likes: others hardly notice.
#[tokio::test]
async fn forced_reloads_without_end() {
    let (scene, session, _other, gate) = gated().await;
    run(
        &session,
        "CREATE ROLE pest LOGIN; GRANT USAGE ON FOREIGN SERVER gated TO pest;
         CREATE TABLE got (payload text);
         CREATE FUNCTION keep(msg text) RETURNS void LANGUAGE sql AS $$ INSERT INTO public.got VALUES (msg) $$;
         SELECT nats_subscribe('core', 'keep')",
    )
    .await;
    until_live(&session, "core").await;
    let before = gate.connections();
    let mut pests = Vec::new();
    for _ in 0..4 {
        let pest = scene.pg.connect().await;
        run(&pest, "SET ROLE pest; SET litmus_pgnats.server = 'gated'").await;
        pests.push(tokio::spawn(async move {
            let end = Instant::now() + Duration::from_secs(6);
            while Instant::now() < end {
                let _ = pest
                    .batch_execute("SELECT litmus_pgnats_reload_conf_force()")
                    .await;
            }
        }));
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        let one = Instant::now();
        run(&session, ECHO).await;
        slowest = slowest.max(one.elapsed());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    for pest in pests {
        pest.await.expect("a pest");
    }
    let made = gate.connections() - before;
    println!("{made} connections, the slowest request took {slowest:?}");
    assert!(made <= 8, "{made}");
}

/// The end of a connection's task, or of an attempt to connect, by a panic is a lost connection, and nothing else.
#[tokio::test]
async fn a_task_that_panics() {
    let (scene, session, other, gate) = gated().await;
    let pid = scene.runtime().await;
    run(
        &session,
        "CREATE FUNCTION panic(task text) RETURNS void LANGUAGE c AS '$libdir/litmus_pgnats', 'litmus_pgnats_fault_panic_task'",
    )
    .await;
    for n in 0..2 {
        // The oldest such task is the one of server nats, then the gate's.
        let before = gate.connections();
        run(&session, "SELECT panic('NATS connection')").await;
        eventually(SOON, async || session.batch_execute(ECHO).await).await;
        eventually(SOON, async || other.batch_execute(ECHO).await).await;
        println!(
            "{n}: {} connections through the gate",
            gate.connections() - before
        );
    }
    let port = says(Vec::new()).await;
    use_server(&session, "silent", port).await;
    let asked = tokio::spawn(async move { refused(&session, ECHO).await });
    let tell = scene.pg.connect().await;
    eventually(SOON, async || {
        tell.batch_execute("SELECT panic('attempt to connect')").await
    })
    .await;
    let (report, _) = asked.await.expect("an error");
    println!("{report:?}");
    run(&other, ECHO).await;
    assert_eq!(scene.runtime().await, pid);
}

/// A file that is none holds nobody up.
#[tokio::test]
async fn files_that_are_none() {
    let (scene, session, other, _gate) = gated().await;
    let fifo = scene.pg.data_dir().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(status.expect("mkfifo").success());
    let large = scene.pg.data_dir().join("large");
    std::fs::write(&large, vec![b'x'; 10_000_000]).expect("a large file");
    for path in [
        "/dev/zero",
        "/dev/tty",
        "/proc/self/mem",
        "/proc/kmsg",
        &fifo.display().to_string(),
        &large.display().to_string(),
    ] {
        for option in ["credentials_path", "token_path", "tls_ca_path"] {
            let sql = format!(
                "CREATE SERVER odd FOREIGN DATA WRAPPER litmus_pgnats_fdw
                   OPTIONS (host '127.0.0.1', port '{}', {option} '{path}'); SET litmus_pgnats.server = 'odd'",
                scene.nats.port()
            );
            run(&session, &sql).await;
            let (report, took) = refused(&session, ECHO).await;
            assert!(
                ["58030", "08004"].contains(&report.code.as_str()),
                "{path}: {report:?}"
            );
            assert!(took < Duration::from_secs(4), "{path}: {took:?}");
            run(&other, ECHO).await;
            run(&session, "DROP SERVER odd").await;
        }
    }
}
