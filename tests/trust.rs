//! What one role may not do to the others, and one transaction not to the next.

mod stage;
mod support;

use stage::*;
use support::*;

/// The port that a session's NATS connection is on.
async fn port(session: &Session) -> i32 {
    value(session, "SELECT port FROM nats_get_server_info()").await
}

/// A role that may use the server, and no more; with a session as it.
async fn guest(stage: &Stage, admin: &Session) -> Session {
    run(
        admin,
        "CREATE ROLE guest LOGIN; GRANT USAGE ON FOREIGN SERVER nats TO guest",
    )
    .await;
    stage.pg.connect_as("guest", "postgres").await
}

// Whoever connects first must not leave options that were never committed to all who come later.
#[tokio::test]
async fn uncommitted_options_stay_with_their_transaction() {
    let stage = Stage::start().await;
    let other = NatsServer::start().await;
    let session = stage.pg.connect().await;
    let here = i32::from(stage.nats.port());
    run(
        &session,
        &format!("BEGIN; ALTER SERVER nats OPTIONS (SET port '{}')", other.port()),
    )
    .await;
    assert_eq!(
        port(&session).await,
        i32::from(other.port()),
        "the transaction sees what it did"
    );
    let witness = stage.pg.connect().await;
    assert_eq!(port(&witness).await, here);
    run(&session, "ROLLBACK").await;
    assert_eq!(port(&session).await, here);
    assert_eq!(port(&stage.pg.connect().await).await, here);
    // The private connection is not kept.
    eventually(SOON, async || {
        other.monitor("/connz").await["num_connections"] == 0
    })
    .await;
}

// A later transaction, or a later state of the same one, has its own options; the end gives the connection up at once.
#[tokio::test]
async fn uncommitted_options_are_those_of_the_moment() {
    let stage = Stage::start().await;
    let (one, two) = (NatsServer::start().await, NatsServer::start().await);
    let [here, first, second] = [&stage.nats, &one, &two].map(|nats| i32::from(nats.port()));
    let session = stage.pg.connect().await;
    let alter = async |port: i32| {
        let sql = format!("ALTER SERVER nats OPTIONS (SET port '{port}')");
        run(&session, &sql).await;
    };
    let until_left = async |nats: &NatsServer| {
        eventually(SOON, async || {
            nats.monitor("/connz").await["num_connections"] == 0
        })
        .await;
    };
    // So that the session does not look for a connection again.
    assert_eq!(port(&session).await, here);
    for end in ["ROLLBACK", "COMMIT"] {
        run(&session, "BEGIN").await;
        alter(first).await;
        assert_eq!(port(&session).await, first);
        run(&session, end).await;
        until_left(&one).await;
        assert_eq!(port(&session).await, here, "not reloaded after {end}");
    }
    run(&session, "BEGIN").await;
    alter(second).await;
    assert_eq!(port(&session).await, second);
    // What others change in the catalogue is no reason to connect anew.
    let client = "SELECT client_id::int FROM nats_get_server_info()";
    let before: i32 = value(&session, client).await;
    run(&stage.pg.connect().await, "CREATE ROLE another").await;
    assert_eq!(value::<i32>(&session, client).await, before);
    run(&session, "SAVEPOINT s").await;
    alter(first).await;
    assert_eq!(port(&session).await, first);
    run(&session, "ROLLBACK TO s").await;
    assert_eq!(port(&session).await, second);
    run(&session, "ROLLBACK").await;
    until_left(&one).await;
    until_left(&two).await;
}

// A mapping that is dropped gives up its connection in the end, and there is a bound before that.
#[tokio::test]
async fn dropped_mappings_do_not_pile_up() {
    let stage = Stage::start().await;
    let admin = stage.pg.connect().await;
    let guest = guest(&stage, &admin).await;
    for round in 0..250 {
        let sql = format!(
            "CREATE USER MAPPING FOR guest SERVER nats OPTIONS (token 't{round}'); \
             SELECT nats_publish_text('a', 'b'); DROP USER MAPPING FOR guest SERVER nats"
        );
        for statement in sql.split("; ") {
            run(&guest, statement).await;
        }
    }
    let connections = stage.nats.monitor("/connz").await["num_connections"].as_i64();
    assert!(connections.is_some_and(|count| count <= 201), "{connections:?}");
    run(&admin, "SELECT nats_publish_text('a', 'b')").await;
}

// What a role does to its own mapping is its own affair.
#[tokio::test]
async fn a_broken_mapping_of_another_role_does_not_stop_a_reload() {
    let stage = Stage::start().await;
    let admin = stage.pg.connect().await;
    let guest = guest(&stage, &admin).await;
    run(
        &guest,
        "CREATE USER MAPPING FOR guest SERVER nats OPTIONS (username 'u', password 'p')",
    )
    .await;
    run(&guest, "SELECT nats_publish_text('a', 'b')").await;
    run(
        &guest,
        "ALTER USER MAPPING FOR guest SERVER nats OPTIONS (DROP password)",
    )
    .await;
    run(&admin, "SELECT nats_publish_text('a', 'b')").await;
    run(&admin, "SELECT litmus_pgnats_reload_conf()").await;
    run(
        &admin,
        "BEGIN; ALTER SERVER nats OPTIONS (ADD capacity '500'); SELECT litmus_pgnats_reload_conf(); COMMIT",
    )
    .await;
    let options: Vec<String> = value(
        &admin,
        "SELECT srvoptions FROM pg_foreign_server WHERE srvname = 'nats'",
    )
    .await;
    assert!(options.contains(&"capacity=500".to_string()), "{options:?}");
}

// A device has no end, and its size says nothing.
#[tokio::test]
async fn a_secret_file_is_a_small_regular_file() {
    let stage = Stage::start().await;
    let session = stage.pg.connect().await;
    for path in ["/dev/zero", "/proc/self/environ", "/"] {
        let sql = format!("ALTER SERVER nats OPTIONS (token_path '{path}')");
        if session.batch_execute(&sql).await.is_err() {
            continue;
        }
        let error = session.batch_execute("SELECT nats_publish_text('a', 'b')").await;
        assert_eq!(sqlstate(&error.expect_err(path)), "58030", "{path}");
        run(&session, "ALTER SERVER nats OPTIONS (DROP token_path)").await;
    }
}
