//! An executor serves one role for life, and no role has the pool to itself.

mod handlers;
mod scene;
mod support;

use std::collections::HashSet;

use handlers::*;
use scene::*;
use support::*;

/// Two roles, each with a callback that notes whose it is and in which process it ran.
const TWO_ROLES: &str = "CREATE TABLE runs (id bigint GENERATED ALWAYS AS IDENTITY, who text, pid text);
     CREATE FUNCTION note(msg text) RETURNS void LANGUAGE sql AS
       $$ INSERT INTO public.runs (who, pid) VALUES (current_user, pg_backend_pid()::text) $$;
     CREATE ROLE red LOGIN; CREATE ROLE blue LOGIN;
     GRANT USAGE ON FOREIGN SERVER nats TO red, blue;
     GRANT INSERT ON runs TO red, blue";

async fn two_roles(max_executors: &str) -> (Scene, Session, async_nats::Client) {
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", max_executors);
    let (scene, session) = Scene::keeping_with(pg).await;
    run(&session, TWO_ROLES).await;
    for role in ["red", "blue"] {
        let sql = format!("SET ROLE {role}; SELECT nats_subscribe('{role}', 'note'); RESET ROLE");
        run(&session, &sql).await;
        until_live(&session, role).await;
    }
    let client = scene.nats.client().await;
    (scene, session, client)
}

/// Role red has five callbacks that never end, each with a message.
async fn stuck(session: &Session, client: &async_nats::Client) {
    run(
        session,
        "CREATE FUNCTION stuck(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(600)';
         SET ROLE red; SELECT nats_subscribe('stuck.' || n, 'stuck') FROM generate_series(1, 5) n; RESET ROLE",
    )
    .await;
    until_live(session, "stuck.5").await;
    for n in 1..=5 {
        say(client, &format!("stuck.{n}"), "x").await;
    }
}

/// Messages for role blue are executed, one after another, while two executors are stuck.
async fn blue_goes_on(scene: &Scene, session: &Session, client: &async_nats::Client) {
    for n in 1..=20 {
        say(client, "blue", "x").await;
        until_number(session, n, "SELECT count(*) FROM runs WHERE who = 'blue'").await;
    }
    assert_eq!(scene.sleeping().await.len(), 2);
}

async fn processes(session: &Session, role: &str) -> HashSet<String> {
    let sql = format!("SELECT DISTINCT pid FROM runs WHERE who = '{role}'");
    texts(session, &sql).await.into_iter().collect()
}

/// What a role's functions leave in a process is never met by another role's.
#[tokio::test]
async fn no_process_serves_two_roles() {
    let (_scene, session, client) = two_roles("4").await;
    for _ in 0..200 {
        for role in ["red", "blue"] {
            publish(&client, role, b"x".to_vec()).await;
        }
    }
    round_trip(&client).await;
    until_number(&session, 400, "SELECT count(*) FROM runs").await;
    let (red, blue) = (
        processes(&session, "red").await,
        processes(&session, "blue").await,
    );
    println!("processes of red {red:?}, of blue {blue:?}");
    assert!(!red.is_empty() && !blue.is_empty());
    assert!(red.is_disjoint(&blue), "{red:?} and {blue:?}");
}

/// With room for one executor the roles take turns, each with a process of its own.
#[tokio::test]
async fn one_executor_at_a_time() {
    let (scene, session, client) = two_roles("1").await;
    for _ in 0..3 {
        for role in ["red", "blue"] {
            say(&client, role, "x").await;
            let sql = format!("SELECT count(*) FROM runs WHERE who = '{role}'");
            let before = number(&session, &sql).await;
            if before == 0 {
                until_number(&session, 1, &sql).await;
            }
        }
    }
    until_number(&session, 6, "SELECT count(*) FROM runs").await;
    let (red, blue) = (
        processes(&session, "red").await,
        processes(&session, "blue").await,
    );
    assert!(red.is_disjoint(&blue), "{red:?} and {blue:?}");
    assert!(scene.executors().await.len() <= 1);
}

/// One role has messages without end, the other gets its turn nevertheless.
#[tokio::test]
async fn a_busy_role_makes_way() {
    let (_scene, session, client) = two_roles("1").await;
    run(
        &session,
        "CREATE FUNCTION plod(msg text) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(0.01)';
         SET ROLE red; SELECT nats_subscribe('plod', 'plod'); RESET ROLE",
    )
    .await;
    until_live(&session, "plod").await;
    count_off(&client, "plod", 1..=3000).await;
    say(&client, "blue", "x").await;
    until_number(&session, 1, "SELECT count(*) FROM runs WHERE who = 'blue'").await;
    let waiting = counts(&session, "plod").await.queued;
    println!("{waiting} of 3000 messages of the busy role still wait");
    assert!(waiting > 500, "{waiting}");
}

/// However many functions of one role are stuck, one executor is left for the others.
#[tokio::test]
async fn a_role_of_stuck_functions_holds_up_its_own_alone() {
    let (scene, session, client) = two_roles("3").await;
    stuck(&session, &client).await;
    eventually_eq(SOON, 2, async || scene.sleeping().await.len()).await;
    blue_goes_on(&scene, &session, &client).await;
}

/// The same when they were stuck before another role had handlers.
#[tokio::test]
async fn a_role_that_came_first() {
    let pg = Postgres::builder().conf("litmus_pgnats.max_executors", "2");
    let (scene, session) = Scene::keeping_with(pg).await;
    run(&session, TWO_ROLES).await;
    let client = scene.nats.client().await;
    stuck(&session, &client).await;
    eventually_eq(SOON, 2, async || scene.sleeping().await.len()).await;
    run(
        &session,
        "SET ROLE blue; SELECT nats_subscribe('blue', 'note'); RESET ROLE",
    )
    .await;
    until_live(&session, "blue").await;
    blue_goes_on(&scene, &session, &client).await;
}

/// Roles whose requests come one after another, with room for one executor: each is answered, and soon.
#[tokio::test]
async fn requests_of_roles_in_turns() {
    let (scene, session, client) = two_roles("1").await;
    run(
        &session,
        "CREATE FUNCTION answer(q text) RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
         SET ROLE red; SELECT litmus_pgnats_register_responder('rpc.red', 'answer'); RESET ROLE;
         SET ROLE blue; SELECT litmus_pgnats_register_responder('rpc.blue', 'answer'); RESET ROLE",
    )
    .await;
    until_live(&session, "rpc.blue").await;
    let mut longest = std::time::Duration::ZERO;
    for _ in 0..100 {
        for role in ["red", "blue"] {
            let began = std::time::Instant::now();
            let reply = ask(&client, &format!("rpc.{role}"), "who").await;
            longest = longest.max(began.elapsed());
            assert_eq!(reply_text(&reply), role);
        }
    }
    println!("the longest of 200 requests took {longest:?}");
    assert!(longest < 3 * PROMPT, "{longest:?}");
    drop(scene);
}
