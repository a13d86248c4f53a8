//! Secrets change and credentials are wrong: sessions go on, or say why not and can be repaired.

mod foreign_server;
mod support;

use std::sync::atomic::Ordering;

use foreign_server::*;
use futures::StreamExt;
use support::{NatsServer, Port, Session, WireStub, eventually, round_trip};

// What operators do to rotate a secret: change it at the NATS server, write the file. No SQL.
#[tokio::test]
async fn a_changed_password_file_is_read_at_the_reconnect() {
    let (pg, session) = ready().await;
    let mut nats = NatsServer::builder().user("alice", "old").start().await;
    let path = file(&pg, "password", "old\n");
    create_for(
        &session,
        nats.port(),
        &[("username", "alice"), ("password_path", &path)],
    )
    .await;
    message_arrives(&session, &nats).await;
    for (round, password) in ["new", "newer"].into_iter().enumerate() {
        let before = client_id(&session).await;
        file(&pg, "password", &format!("{password}\n"));
        let config = NatsServer::builder().user("alice", password);
        // A reload throws out those who authenticated with the old password; a restart everybody.
        if round == 0 {
            nats.reload(config).await;
        } else {
            nats.restart_with(config).await;
        }
        // A restarted server counts its clients anew.
        eventually(SOON, async || round > 0 || client_id(&session).await != before).await;
        message_arrives(&session, &nats).await;
    }
}

// The same with a seed, where the new secret comes late: the runtime tries until it fits.
#[tokio::test]
async fn a_seed_file_that_changes_late_is_found() {
    let (pg, session) = ready().await;
    let (old, new) = (seed(), seed());
    let mut nats = NatsServer::builder().nkey(&old).start().await;
    let path = file(&pg, "seed", &old);
    create_for(&session, nats.port(), &[("nkey_seed_path", &path)]).await;
    message_arrives(&session, &nats).await;
    let mark = pg.log().len();
    nats.restart_with(NatsServer::builder().nkey(&new)).await;
    pg.wait_log_after(mark, "refused the authentication", SOON).await;
    file(&pg, "seed", &new);
    message_arrives(&session, &nats).await;
}

// Nothing that was published while the secret did not fit is lost, as far as the buffer goes.
#[tokio::test]
async fn messages_wait_for_the_new_secret() {
    let (pg, session) = ready().await;
    let mut nats = NatsServer::builder().token("old").start().await;
    let path = file(&pg, "token", "old");
    create_for(&session, nats.port(), &[("token_path", &path)]).await;
    run(&session, INFO).await;
    let client = nats.client().await;
    let mark = pg.log().len();
    nats.reload(NatsServer::builder().token("new")).await;
    pg.wait_log_after(mark, "refused the authentication", SOON).await;
    drop(client);
    let client = nats.client().await;
    let mut inbox = client.subscribe("kept").await.expect("subscribe");
    round_trip(&client).await;
    run(
        &session,
        "SELECT nats_publish_text('kept', n::text) FROM generate_series(1, 100) n",
    )
    .await;
    file(&pg, "token", "new");
    for expected in 1..=100 {
        let message = tokio::time::timeout(SOON, inbox.next()).await;
        let message = message.expect("a message in time").expect("an open subscription");
        assert_eq!(message.payload, expected.to_string());
    }
    assert_eq!(client.statistics().connects.load(Ordering::Relaxed), 1);
}

/// The first call fails with this SQLSTATE and tells no secret; after the repair the same session works.
async fn refused_then_repaired(
    session: &Session,
    nats: &NatsServer,
    code: &str,
    wrong: &[(&str, &str)],
    repair: &[(&str, &str)],
) {
    create_for(session, nats.port(), wrong).await;
    for call in [INFO, "SELECT nats_publish_text('proof', 'not sent')", INFO] {
        let report = refused(session, call).await;
        assert_eq!(report.code, code, "{report:?}");
        assert!(report.hint.is_some(), "{report:?}");
        assert!(!all_text(&report).contains("wrong secret"), "{report:?}");
    }
    run(session, "SELECT 1").await;
    run(session, &alter(repair)).await;
    run(session, RELOAD).await;
    message_arrives(session, nats).await;
    run(session, "DROP SERVER nats").await;
}

// A wrong password, token or key has one SQLSTATE, and the session can be repaired with ALTER SERVER and a reload.
#[tokio::test]
async fn a_refused_credential_can_be_repaired() {
    let (_pg, session) = ready().await;
    let nats = NatsServer::builder().user("alice", "right").start().await;
    let repair = [("SET password", "right")];
    let wrong = [("username", "alice"), ("password", "wrong secret")];
    refused_then_repaired(&session, &nats, code::REFUSED, &wrong, &repair).await;
    let repair = [
        ("DROP token", ""),
        ("ADD username", "alice"),
        ("ADD password", "right"),
    ];
    refused_then_repaired(
        &session,
        &nats,
        code::REFUSED,
        &[("token", "wrong secret")],
        &repair,
    )
    .await;
    let repair = [("ADD username", "alice"), ("ADD password", "right")];
    refused_then_repaired(&session, &nats, code::REFUSED, &[], &repair).await;

    let (right, other) = (seed(), seed());
    let nats = NatsServer::builder().nkey(&right).start().await;
    let repair = [("SET nkey_seed", right.as_str())];
    refused_then_repaired(&session, &nats, code::REFUSED, &[("nkey_seed", &other)], &repair).await;
}

// A secret file that is missing, unreadable, empty or not a seed is told by its option's name.
#[tokio::test]
async fn an_unusable_secret_file_is_told_by_name() {
    let (pg, session) = ready().await;
    let nats = NatsServer::builder().token("right").start().await;
    let empty = file(&pg, "empty", " \n");
    let no_seed = file(&pg, "no-seed", "wrong secret");
    let directory = text(pg.data_dir());
    let repair = |option: &'static str| [(option, ""), ("ADD token", "right")];
    for (option, path, drop) in [
        ("token_path", "/nonexistent/token", "DROP token_path"),
        ("token_path", &empty, "DROP token_path"),
        ("token_path", &directory, "DROP token_path"),
        ("nkey_seed_path", &no_seed, "DROP nkey_seed_path"),
    ] {
        let wrong = [(option, path)];
        refused_then_repaired(&session, &nats, code::FILE, &wrong, &repair(drop)).await;
    }
    create_for(&session, nats.port(), &[("token_path", "/nonexistent/token")]).await;
    let report = refused(&session, INFO).await;
    assert!(report.message.contains("\"token_path\"") && report.message.contains("/nonexistent/token"));
}

// NATS throws the user out while the session is idle: the next calls say so, and the session recovers by itself.
#[tokio::test]
async fn a_user_who_is_thrown_out_comes_back() {
    let (pg, session) = ready().await;
    let mut nats = NatsServer::builder().user("alice", "pw").start().await;
    create_for(
        &session,
        nats.port(),
        &[("username", "alice"), ("password", "pw")],
    )
    .await;
    run(&session, INFO).await;
    nats.reload(NatsServer::builder().user("bob", "pw")).await;
    pg.wait_log("refused the authentication", SOON).await;
    run(&session, "SET litmus_pgnats.connect_timeout = '300ms'").await;
    assert_eq!(refused(&session, INFO).await.code, code::REFUSED);
    run(&session, "RESET litmus_pgnats.connect_timeout").await;
    nats.reload(NatsServer::builder().user("alice", "pw")).await;
    message_arrives(&session, &nats).await;
}

// Servers that a NATS cluster has told of are that cluster's: what is meant for another one does not go there.
#[tokio::test]
async fn a_new_password_does_not_go_to_the_former_cluster() {
    let (_pg, session) = ready().await;
    let member = WireStub::start_with(serde_json::json!({"auth_required": true}));
    // Two servers of one cluster, of which the second has its clients come by way of the stub.
    let route = Port::take();
    let cluster = |listen: &str, routes: &str| {
        let config =
            format!("cluster {{ name: former, listen: \"127.0.0.1:{listen}\", routes: [{routes}] }}");
        NatsServer::builder().user("alice", "old").config(&config)
    };
    let mut former = cluster(&route.number().to_string(), "").start().await;
    let other = cluster("-1", &format!("nats-route://127.0.0.1:{}", route.number()));
    let advertised = format!("client_advertise: \"127.0.0.1:{}\"", member.port());
    let _other = other.config(&advertised).start().await;
    eventually(SOON, async || {
        let routes = former.monitor("/routez").await;
        (routes["num_routes"].as_u64() > Some(0))
            .then_some(())
            .ok_or(routes)
    })
    .await;
    create_for(
        &session,
        former.port(),
        &[("username", "alice"), ("password", "old")],
    )
    .await;
    message_arrives(&session, &former).await;
    // Nobody listens there.
    let nowhere = Port::take();
    let changed = [
        ("SET port", nowhere.number().to_string()),
        ("SET password", "sesame".to_string()),
    ];
    let changed: Vec<(&str, &str)> = changed
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    run(&session, &alter(&changed)).await;
    let report = refused(&session, RELOAD).await;
    assert_eq!(report.code, code::UNREACHABLE, "{report:?}");
    assert_eq!(member.connects(), Vec::<serde_json::Value>::new());
    // As long as the old options hold, the member is one that a lost connection moves to.
    former.stop().await;
    let connect = member.connect().await;
    assert_eq!(connect["pass"], "old", "{connect}");
    let report = refused(&session, RELOAD).await;
    assert_eq!(report.code, code::UNREACHABLE, "{report:?}");
    let passwords: Vec<_> = member
        .connects()
        .iter()
        .map(|connect| connect["pass"].clone())
        .collect();
    assert_eq!(passwords, ["old"]);
}
