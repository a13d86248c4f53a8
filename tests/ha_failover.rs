//! The primary and its Patroni are killed: the standby takes over, and the old primary comes back as a standby.

mod patroni;
mod scene;
mod support;

use patroni::*;
use scene::*;
use support::*;

/// Longest silence in seconds: the leader lock lives for 20 of them.
const LONGEST: f64 = 80.0;

#[tokio::test]
async fn a_failover_under_load_moves_the_subscription() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let news = News::listen(&client, "ha.news").await;
    let mut cluster = Patroni::start(false).await;
    let old = cluster.until_healthy().await;
    let new = 1 - old;
    let [old_port, new_port] = [old, new].map(|member| cluster.members[member].port());
    let session = cluster.members[old].connect().await;
    run(&session, &create_server(nats.port(), &cluster.options())).await;
    run(&session, NUMBERS).await;
    news.until(old_port, &["Master"]).await;

    let load = Load::start(nats.client().await);
    until_flowing(&session, old_port, 100).await;
    let began = now();
    cluster.members[old].kill9();
    cluster.until_leads(new).await;
    println!("the failover took {:.3} s", now() - began);
    let session = cluster.members[new].connect().await;
    until_flowing(&session, new_port, 100).await;
    let sent = load.stop().await;
    Account::of(&sent, &session).await.check("failover", LONGEST);
    news.until(new_port, &["Master"]).await;
    cluster.check_news(new, &news.of(new_port)[0], &[2]).await;

    news.forget();
    let starts = cluster.members[old].starts();
    cluster.members[old].start();
    assert_eq!(cluster.until_healthy().await, new);
    let started = cluster.members[old].starts() - starts;
    println!("the old primary was started {started} times on its way back");
    // Each start is told once; one that Patroni ends at once may not be.
    let told = eventually(SOON, async || {
        Some(news.of(old_port)).filter(|told| !told.is_empty())
    })
    .await;
    assert!(told.len() <= started, "{told:?}");
    assert!(told.iter().all(|told| told["status"] == "Replica"), "{told:?}");
    news.until(new_port, &[]).await;
    // It starts on the old timeline, as a rule, and replays the change to the new one.
    cluster.check_news(old, &news.of(old_port)[0], &[1, 2]).await;
}
