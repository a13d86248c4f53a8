//! litmus_pgnats_reload_conf() and litmus_pgnats_reload_conf_force(): when they reconnect, and whom they reach.

mod foreign_server;
mod support;

use foreign_server::*;
use futures::StreamExt;
use support::{NatsServer, Session, eventually, eventually_eq, round_trip};

/// SET port to that of another NATS server.
fn move_to(nats: &NatsServer) -> String {
    alter(&[("SET port", &nats.port().to_string())])
}

/// The port of the NATS server that the session is on.
async fn port(session: &Session) -> i32 {
    let row = session
        .query_one("SELECT port FROM nats_get_server_info()", &[])
        .await;
    row.unwrap_or_else(|e| panic!("nats_get_server_info: {e:?}"))
        .get(0)
}

/// The ids of the extension's connections, as the NATS server sees them.
async fn connections(nats: &NatsServer) -> Vec<i64> {
    let connz = nats.monitor("/connz?sort=cid").await;
    let all = connz["connections"].as_array().expect("a list").clone();
    let ours = all.iter().filter(|c| {
        c["name"]
            .as_str()
            .is_some_and(|n| n.starts_with("litmus_pgnats/"))
    });
    ours.filter_map(|c| c["cid"].as_i64()).collect()
}

// ALTER SERVER may come in several steps; nothing moves before the reload says so.
#[tokio::test]
async fn options_take_effect_at_the_reload() {
    let (_pg, session) = ready().await;
    let (one, other) = (NatsServer::start().await, NatsServer::start().await);
    create_for(&session, one.port(), &[]).await;
    let id = client_id(&session).await;
    run(&session, &move_to(&other)).await;
    assert_eq!(
        (client_id(&session).await, port(&session).await),
        (id, i32::from(one.port()))
    );
    message_arrives(&session, &one).await;
    run(&session, RELOAD).await;
    assert_eq!(port(&session).await, i32::from(other.port()));
    message_arrives(&session, &other).await;
    eventually_eq(SOON, vec![], async || connections(&one).await).await;
}

// A reload without a change costs nobody a reconnect; a forced one reconnects in any case.
#[tokio::test]
async fn only_force_reconnects_without_a_change() {
    let (_pg, session) = ready().await;
    let nats = NatsServer::start().await;
    create_for(&session, nats.port(), &[]).await;
    let id = client_id(&session).await;
    run(&session, RELOAD).await;
    // Another spelling of the same, and options that the connection is not made from.
    run(
        &session,
        &alter(&[("SET host", " 127.0.0.1 "), ("ADD tls_insecure", "off")]),
    )
    .await;
    run(&session, &alter(&[("ADD capacity", "7"), ("ADD domain", "hub")])).await;
    run(&session, RELOAD).await;
    assert_eq!(client_id(&session).await, id);
    assert_eq!(connections(&nats).await, [id]);
    for _ in 0..3 {
        let before = client_id(&session).await;
        run(&session, FORCE).await;
        let after = client_id(&session).await;
        assert_ne!(before, after);
        eventually_eq(SOON, vec![after], async || connections(&nats).await).await;
    }
}

// A reload is for all who use the server: other sessions, other roles, and those with a credential of their own.
#[tokio::test]
async fn a_reload_reaches_all_sessions() {
    let (pg, superuser) = ready().await;
    let users = "authorization { users: [ {user: shared, password: s}, {user: alice, password: a} ] }";
    let one = NatsServer::builder().config(users).start().await;
    let other = NatsServer::builder().config(users).start().await;
    create_for(
        &superuser,
        one.port(),
        &[("username", "shared"), ("password", "s")],
    )
    .await;
    run(&superuser, "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN").await;
    run(&superuser, "GRANT USAGE ON FOREIGN SERVER nats TO alice, bob").await;
    run(
        &superuser,
        &map("alice", &[("username", "alice"), ("password", "a")]),
    )
    .await;
    let mut sessions = vec![pg.connect().await];
    for role in ["alice", "alice", "bob"] {
        sessions.push(pg.connect_as(role, "postgres").await);
    }
    for session in &sessions {
        assert_eq!(port(session).await, i32::from(one.port()));
    }
    // The superuser's own session has not called anything before: it reloads for others.
    run(&superuser, &move_to(&other)).await;
    run(&superuser, RELOAD).await;
    for session in &sessions {
        assert_eq!(port(session).await, i32::from(other.port()));
    }
    assert_eq!(connections(&other).await.len(), 2);

    let mut before = connections(&other).await;
    run(&superuser, FORCE).await;
    let after = eventually(SOON, async || {
        let now = connections(&other).await;
        (now.len() == 2).then_some(now)
    })
    .await;
    before.retain(|id| after.contains(id));
    assert!(before.is_empty(), "not reconnected: {before:?}");
}

// A changed mapping is applied by a reload too, to that mapping alone.
#[tokio::test]
async fn a_reload_applies_a_changed_mapping() {
    let (pg, superuser) = ready().await;
    let users = "authorization { users: [ {user: shared, password: s}, {user: alice, password: a}, {user: al, password: x} ] }";
    let nats = NatsServer::builder().config(users).start().await;
    create_for(
        &superuser,
        nats.port(),
        &[("username", "shared"), ("password", "s")],
    )
    .await;
    run(
        &superuser,
        "CREATE ROLE alice LOGIN; GRANT USAGE ON FOREIGN SERVER nats TO alice",
    )
    .await;
    run(
        &superuser,
        &map("alice", &[("username", "alice"), ("password", "a")]),
    )
    .await;
    let alice = pg.connect_as("alice", "postgres").await;
    let (hers, shared) = (client_id(&alice).await, client_id(&superuser).await);
    let change = "ALTER USER MAPPING FOR alice SERVER nats OPTIONS (SET username 'al', SET password 'x')";
    run(&superuser, change).await;
    assert_eq!(client_id(&alice).await, hers);
    run(&superuser, RELOAD).await;
    assert_ne!(client_id(&alice).await, hers);
    assert_eq!(client_id(&superuser).await, shared);
}

// A mistake in the new options is an error, and costs nobody the connection that works.
#[tokio::test]
async fn a_failed_reload_leaves_the_old_connection() {
    let (pg, session) = ready().await;
    let nats = NatsServer::start().await;
    let closed = support::Port::take();
    create_for(&session, nats.port(), &[]).await;
    let id = client_id(&session).await;
    let wrong_port = alter(&[("SET port", &closed.number().to_string())]);
    run(&session, &wrong_port).await;
    for reload in [RELOAD, FORCE] {
        let report = refused(&session, reload).await;
        assert_eq!(report.code, code::UNREACHABLE, "{report:?}");
        assert!(
            report.message.contains(&closed.number().to_string()),
            "{report:?}"
        );
    }
    assert_eq!(client_id(&session).await, id);
    message_arrives(&session, &nats).await;
    let other = pg.connect().await;
    assert_eq!(client_id(&other).await, id);
    run(&session, &move_to(&nats)).await;
    run(&session, RELOAD).await;
    assert_eq!(client_id(&session).await, id);
}

// While NATS is away, the options of the last reload count, also when an earlier one takes longer to fail.
#[tokio::test]
async fn the_later_of_two_failed_reloads() {
    let (pg, session) = ready().await;
    let (mut before, mut after) = (NatsServer::start().await, NatsServer::start().await);
    create_for(&session, before.port(), &[]).await;
    message_arrives(&session, &before).await;
    before.stop().await;
    after.stop().await;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("listen");
    let port = mute.local_addr().expect("the address").port().to_string();
    run(&session, &alter(&[("SET port", &port)])).await;
    let second = pg.connect().await;
    let (slow, ()) = tokio::join!(session.batch_execute(RELOAD), async {
        let _attempt = mute.accept().await.expect("the reload's attempt");
        run(&second, &move_to(&after)).await;
        second.batch_execute(RELOAD).await.expect_err("nobody listens");
    });
    slow.expect_err("nobody answers");
    after.restart().await;
    message_arrives(&session, &after).await;
}

// A secret that is refused at the reload is told as such.
#[tokio::test]
async fn a_reload_tells_what_was_refused() {
    let (_pg, session) = ready().await;
    let nats = NatsServer::builder().token("right").start().await;
    create_for(&session, nats.port(), &[("token", "right")]).await;
    let id = client_id(&session).await;
    run(&session, &alter(&[("SET token", "wrong")])).await;
    assert_eq!(refused(&session, RELOAD).await.code, code::REFUSED);
    run(&session, &alter(&[("DROP token", ""), ("ADD username", "u")])).await;
    assert_eq!(refused(&session, RELOAD).await.code, code::INCOMPLETE);
    assert_eq!(client_id(&session).await, id);
}

// More capacity is room for those who wait; less is less, without a reconnect in either case.
#[tokio::test]
async fn capacity_changes_in_place() {
    let (pg, session) = ready().await;
    let mut nats = NatsServer::start().await;
    create_for(&session, nats.port(), &[("capacity", "3")]).await;
    let id = client_id(&session).await;
    run(&session, &alter(&[("SET capacity", "10")])).await;
    run(&session, RELOAD).await;
    assert_eq!(client_id(&session).await, id);
    let mark = pg.log().len();
    nats.stop().await;
    pg.wait_log_after(mark, "could not connect to NATS server", SOON)
        .await;
    run(&session, "SET litmus_pgnats.connect_timeout = '300ms'").await;
    let publish =
        |count: i32| format!("SELECT nats_publish_text('held', n::text) FROM generate_series(1, {count}) n");
    run(&session, &publish(10)).await;
    assert_eq!(refused(&session, &publish(1)).await.code, "53400");
    // Raised while the messages are held, before NATS is back.
    let waiting = pg.connect().await;
    let more = async { run(&waiting, &publish(5)).await };
    let raise = async {
        run(&session, "SET litmus_pgnats.connect_timeout = '5s'").await;
        run(&session, &alter(&[("SET capacity", "15")])).await;
        run(&session, RELOAD).await;
    };
    tokio::join!(more, raise);
    nats.restart().await;
    message_arrives(&session, &nats).await;
    assert!(!pg.log().contains("given up"));
}

// A dropped server and its successor of the same name are two: the session goes to the new one.
#[tokio::test]
async fn a_server_can_be_dropped_and_created_anew() {
    let (_pg, session) = ready().await;
    let (one, other) = (
        NatsServer::start().await,
        NatsServer::builder().token("t").start().await,
    );
    create_for(&session, one.port(), &[]).await;
    message_arrives(&session, &one).await;
    run(&session, "DROP SERVER nats").await;
    assert_eq!(refused(&session, INFO).await.code, "42704");
    create_for(&session, other.port(), &[("token", "t")]).await;
    message_arrives(&session, &other).await;
    run(&session, RELOAD).await;
    message_arrives(&session, &other).await;
}

// A connection of a mapping that is gone is closed by the reload; its role goes on with the server's credential.
#[tokio::test]
async fn a_reload_closes_the_connections_of_dropped_mappings() {
    let (_pg, session) = ready().await;
    let users = "authorization { users: [ {user: shared, password: s}, {user: mine, password: m} ] }";
    let nats = NatsServer::builder().config(users).start().await;
    create_for(
        &session,
        nats.port(),
        &[("username", "shared"), ("password", "s")],
    )
    .await;
    run(
        &session,
        &map("CURRENT_USER", &[("username", "mine"), ("password", "m")]),
    )
    .await;
    let mine = client_id(&session).await;
    run(&session, "DROP USER MAPPING FOR CURRENT_USER SERVER nats").await;
    let shared = client_id(&session).await;
    assert_ne!(mine, shared);
    run(&session, RELOAD).await;
    eventually_eq(SOON, vec![shared], async || connections(&nats).await).await;
    assert_eq!(client_id(&session).await, shared);
}

// A request that is under way when the connection is replaced still gets its reply.
#[tokio::test]
async fn a_request_under_way_survives() {
    let (pg, session) = ready().await;
    let nats = NatsServer::start().await;
    create_for(&session, nats.port(), &[]).await;
    let client = nats.client().await;
    let mut asked = client.subscribe("slow").await.expect("subscribe");
    round_trip(&client).await;
    let asking = pg.connect().await;
    let answer = tokio::spawn(async move {
        let row = asking
            .query_one("SELECT nats_request_text('slow', '?')", &[])
            .await;
        row.expect("a reply").get::<_, String>(0)
    });
    let request = asked.next().await.expect("a request");
    let before = client_id(&session).await;
    run(&session, FORCE).await;
    assert_ne!(client_id(&session).await, before);
    let reply_to = request.reply.expect("a subject for the reply");
    client
        .publish(reply_to, "late but there".into())
        .await
        .expect("reply");
    assert_eq!(answer.await.expect("no panic while asking"), "late but there");
}
