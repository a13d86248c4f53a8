//! How sessions authenticate: each way against a nats-server that lets in nobody else, which way wins, and whose
//! credential counts.

mod foreign_server;
mod support;

use foreign_server::*;
use serde_json::json;
use support::{NatsServer, WireStub};

// A nats-server without authentication must not be bothered with a credential.
#[tokio::test]
async fn without_a_credential() {
    let (_pg, session) = ready().await;
    let nats = NatsServer::start().await;
    create_for(&session, nats.port(), &[]).await;
    message_arrives(&session, &nats).await;
}

// User name and password, inline and from a file whose white space does not count.
#[tokio::test]
async fn by_user_and_password() {
    let (pg, session) = ready().await;
    let nats = NatsServer::builder().user("alice", "open sesame").start().await;
    let path = file(&pg, "password", "\n  open sesame \r\n");
    create_for(
        &session,
        nats.port(),
        &[("username", "alice"), ("password", "open sesame")],
    )
    .await;
    message_arrives(&session, &nats).await;
    run(&session, "DROP SERVER nats").await;
    create_for(
        &session,
        nats.port(),
        &[("username", "alice"), ("password_path", &path)],
    )
    .await;
    message_arrives(&session, &nats).await;
}

// A token without a user name, inline and from a file.
#[tokio::test]
async fn by_token() {
    let (pg, session) = ready().await;
    let nats = NatsServer::builder().token("t0ken").start().await;
    let path = file(&pg, "token", "t0ken\n");
    for option in [("token", "t0ken"), ("token_path", &path)] {
        create_for(&session, nats.port(), &[option]).await;
        message_arrives(&session, &nats).await;
        run(&session, "DROP SERVER nats").await;
    }
}

// An NKey signs the server's nonce; its seed is given inline or in a file.
#[tokio::test]
async fn by_nkey() {
    let (pg, session) = ready().await;
    let seed = seed();
    let nats = NatsServer::builder().nkey(&seed).start().await;
    let path = file(&pg, "seed", &format!("{seed}\n"));
    for option in [("nkey_seed", seed.as_str()), ("nkey_seed_path", &path)] {
        create_for(&session, nats.port(), &[option]).await;
        message_arrives(&session, &nats).await;
        run(&session, "DROP SERVER nats").await;
    }
}

// The documented order decides when several are given: each step takes the winner away and looks who is next.
#[tokio::test]
async fn the_first_credential_in_the_documented_order_wins() {
    let (pg, session) = ready().await;
    let (by_path, inline) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let seed = |pair: &nkeys::KeyPair| pair.seed().expect("the seed of a new key");
    let seed_path = file(&pg, "seed", &seed(&by_path));
    let token_path = file(&pg, "token", "token in file");
    let password_path = file(&pg, "password", "password in file");
    let stub = WireStub::start_with(json!({"auth_required": true, "nonce": "abcdefghijklmnop"}));
    let inline_seed = seed(&inline);
    let all = [
        ("nkey_seed_path", seed_path.as_str()),
        ("nkey_seed", &inline_seed),
        ("token_path", &token_path),
        ("token", "inline token"),
        ("password_path", &password_path),
        ("password", "inline password"),
        ("username", "alice"),
    ];
    create_for(&session, stub.port(), &all).await;
    let winners = [
        ("nkey", by_path.public_key()),
        ("nkey", inline.public_key()),
        ("auth_token", "token in file".into()),
        ("auth_token", "inline token".into()),
        ("pass", "password in file".into()),
        ("pass", "inline password".into()),
    ];
    run(&session, INFO).await;
    for (step, (field, value)) in winners.iter().enumerate() {
        let connects = stub.connects();
        assert_eq!(connects.len(), step + 1, "{connects:?}");
        let connect = &connects[step];
        assert_eq!(connect[field], value.as_str(), "step {step}: {connect}");
        for other in ["nkey", "auth_token", "pass"]
            .iter()
            .filter(|other| *other != field)
        {
            assert!(connect[other].is_null(), "step {step}: {connect}");
        }
        if step + 1 < winners.len() {
            run(&session, &alter(&[(&format!("DROP {}", all[step].0), "")])).await;
            run(&session, RELOAD).await;
        }
    }
}

// Litmus Edge's NATS proxy takes its token as the password of a user without a name.
#[tokio::test]
async fn an_empty_user_name_goes_over_the_wire() {
    let (pg, session) = ready().await;
    let stub = WireStub::start_with(json!({"auth_required": true}));
    create_for(
        &session,
        stub.port(),
        &[("username", ""), ("password", "the access token")],
    )
    .await;
    run(&session, INFO).await;
    let path = file(&pg, "token", "the next token");
    let change = alter(&[("DROP password", ""), ("ADD password_path", &path)]);
    run(&session, &change).await;
    run(&session, RELOAD).await;
    let connects = stub.connects();
    assert_eq!(connects.len(), 2);
    for (connect, token) in connects.iter().zip(["the access token", "the next token"]) {
        assert_eq!(connect["user"], "", "{connect}");
        assert_eq!(connect["pass"], token, "{connect}");
        assert!(connect["auth_token"].is_null(), "{connect}");
    }
}

// A role with a mapping is that mapping for NATS, whatever the server says; others are what the server says.
#[tokio::test]
async fn a_mapping_overrides_the_server() {
    let (pg, superuser) = ready().await;
    let nats = NatsServer::builder()
        .config("authorization { users: [ {user: shared, password: s}, {user: alice, password: a}, {user: all, password: p} ] }")
        .start()
        .await;
    let known_as = async |session: &support::Session| {
        let id = client_id(session).await;
        let connections = nats.monitor(&format!("/connz?auth=1&cid={id}")).await;
        connections["connections"][0]["authorized_user"].clone()
    };
    create_for(
        &superuser,
        nats.port(),
        &[("username", "shared"), ("password", "s")],
    )
    .await;
    run(
        &superuser,
        "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; GRANT USAGE ON FOREIGN SERVER nats TO PUBLIC",
    )
    .await;
    let alice = pg.connect_as("alice", "postgres").await;
    let bob = pg.connect_as("bob", "postgres").await;
    assert_eq!(known_as(&alice).await, "shared");
    run(&alice, &map("alice", &[("username", "alice"), ("password", "a")])).await;
    assert_eq!(known_as(&alice).await, "alice");
    assert_eq!(known_as(&bob).await, "shared");
    // PUBLIC is for those without a mapping of their own.
    run(
        &superuser,
        &map("PUBLIC", &[("username", "all"), ("password", "p")]),
    )
    .await;
    assert_eq!(known_as(&bob).await, "all");
    assert_eq!(known_as(&alice).await, "alice");
    // The role that counts is the one whose rights count.
    run(&superuser, "SET ROLE alice").await;
    assert_eq!(known_as(&superuser).await, "alice");
    run(&superuser, "RESET ROLE").await;
    assert_eq!(known_as(&superuser).await, "all");
}

// A mapping may complete what the server has, and bring another way to authenticate than the server's.
#[tokio::test]
async fn a_mapping_completes_or_replaces_the_server() {
    let (_pg, session) = ready().await;
    let stub = WireStub::start_with(json!({"auth_required": true}));
    create_for(&session, stub.port(), &[("username", "alice")]).await;
    let incomplete = refused(&session, INFO).await;
    assert_eq!(incomplete.code, code::INCOMPLETE, "{incomplete:?}");
    run(&session, &map("PUBLIC", &[("password", "hers")])).await;
    run(&session, INFO).await;
    run(&session, &map("CURRENT_USER", &[("token", "t")])).await;
    run(&session, INFO).await;
    let [by_password, by_token] = &stub.connects()[..] else {
        panic!("not two connections: {:?}", stub.lines());
    };
    assert_eq!(by_password["user"], "alice", "{by_password}");
    assert_eq!(by_password["pass"], "hers", "{by_password}");
    assert_eq!(by_token["auth_token"], "t", "{by_token}");
    assert!(by_token["user"].is_null(), "{by_token}");
}

// A role whose mapping is dropped is what the server says again, in the same session.
#[tokio::test]
async fn a_dropped_mapping_no_longer_counts() {
    let (_pg, session) = ready().await;
    let stub = WireStub::start_with(json!({"auth_required": true}));
    create_for(&session, stub.port(), &[("token", "of all")]).await;
    run(&session, &map("CURRENT_USER", &[("token", "mine")])).await;
    run(&session, INFO).await;
    run(&session, "DROP USER MAPPING FOR CURRENT_USER SERVER nats").await;
    run(&session, INFO).await;
    run(&session, RELOAD).await;
    run(&session, INFO).await;
    let tokens: Vec<_> = stub.connects().iter().map(|c| c["auth_token"].clone()).collect();
    assert_eq!(tokens, ["mine", "of all"]);
}
