//! Changes of the catalogue beside the calls: databases, functions, rights and user mappings come and go.

use std::time::Duration;

use super::board::Board;
use super::random::Random;
use super::world::{PATIENCE, World};
use crate::scene::*;
use crate::support::*;

/// A database that comes and goes.
const EXTRA: &str = "extra";

pub async fn apply(world: &World, random: &mut Random, board: &Board) -> &'static str {
    match random.below(7) {
        0 => extra_database(world, random, board).await,
        1 => {
            let admin = world.admin("postgres").await;
            // The subscription goes with its function.
            run(
                &admin,
                "DROP FUNCTION hear_again;
                 CREATE FUNCTION hear_again(msg text) RETURNS void LANGUAGE sql AS
                   $$ INSERT INTO public.heard VALUES ('again', trim(both '\"' from msg)) $$",
            )
            .await;
            run(&admin, "SELECT nats_subscribe('core.>', 'hear_again')").await;
            "function dropped, made anew"
        }
        2 => {
            let sink = world.admin("sink").await;
            run(
                &sink,
                "CREATE OR REPLACE FUNCTION move(msg text) RETURNS void LANGUAGE sql AS
                   $$ INSERT INTO public.moved VALUES ('one', trim(both '\"' from msg)) $$",
            )
            .await;
            "function replaced"
        }
        3 => {
            let sink = world.admin("sink").await;
            run(&sink, "ALTER FUNCTION move_many RENAME TO move_all").await;
            tokio::time::sleep(Duration::from_millis(random.below(500))).await;
            run(&sink, "ALTER FUNCTION move_all RENAME TO move_many").await;
            "function renamed"
        }
        4 => {
            let admin = world.admin("postgres").await;
            run(&admin, "REVOKE USAGE ON FOREIGN SERVER nats FROM guest").await;
            tokio::time::sleep(Duration::from_millis(random.below(1000))).await;
            run(&admin, "GRANT USAGE ON FOREIGN SERVER nats TO guest").await;
            "rights revoked, granted"
        }
        5 => {
            run(&world.admin("postgres").await, &world.mapping_sql()).await;
            "user mapping made"
        }
        _ => {
            let admin = world.admin("postgres").await;
            run(&admin, "DROP USER MAPPING IF EXISTS FOR guest SERVER nats").await;
            "user mapping dropped"
        }
    }
}

/// A database with a subscription comes and goes. Executors make way for its end.
async fn extra_database(world: &World, random: &mut Random, board: &Board) -> &'static str {
    let admin = world.admin("postgres").await;
    run(&admin, &format!("CREATE DATABASE {EXTRA}")).await;
    let extra = world.admin(EXTRA).await;
    run(&extra, &world.server_sql()).await;
    run(
        &extra,
        "CREATE FUNCTION ignore(msg text) RETURNS void LANGUAGE sql AS 'SELECT 1';
         SELECT nats_subscribe('core.>', 'ignore')",
    )
    .await;
    tokio::time::sleep(Duration::from_millis(random.below(1000))).await;
    extra.close().await;
    // The backend of the session above takes a moment to end.
    let began = std::time::Instant::now();
    eventually(PATIENCE, async || {
        admin.batch_execute(&format!("DROP DATABASE {EXTRA}")).await
    })
    .await;
    if began.elapsed() > Duration::from_secs(10) {
        board.finding(format!("DROP DATABASE took {:?}", began.elapsed()));
    }
    "database made, dropped"
}
