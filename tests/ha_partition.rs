//! A primary that is cut off from etcd, with fencing on.

mod patroni;
mod scene;
mod support;

use patroni::*;
use scene::*;
use support::*;

/// Longest silence in seconds: the leader lock lives for 20 of them.
const LONGEST: f64 = 80.0;

/// A cluster under load whose subscription runs on the member with the returned number.
async fn under_load(nats: &NatsServer) -> (Patroni, usize, Session, Load) {
    let cluster = Patroni::start(true).await;
    let leader = cluster.until_healthy().await;
    let session = cluster.members[leader].connect().await;
    run(&session, &create_server(nats.port(), &cluster.options())).await;
    run(&session, NUMBERS).await;
    until_state(&session, "ha.load", "live").await;
    let load = Load::start(nats.client().await);
    until_flowing(&session, cluster.members[leader].port(), 100).await;
    (cluster, leader, session, load)
}

/// Patroni demotes it, and the other one takes over when the lock has expired: never do both take messages.
#[tokio::test]
async fn a_partitioned_primary_stops_before_the_other_one_starts() {
    let nats = NatsServer::start().await;
    let (cluster, old, session, load) = under_load(&nats).await;
    let new = 1 - old;
    let [old_port, new_port] = [old, new].map(|member| cluster.members[member].port());
    let began = now();
    cluster.members[old].link.cut();
    // Paused, demoted or, while PostgreSQL is started as a standby, not to be asked.
    eventually(
        LONG,
        async || !matches!(state_of(&session, "ha.load").await, Ok((state, _)) if state == "live"),
    )
    .await;
    println!(
        "the cut-off primary's subscription ended {:.3} s after the cut",
        now() - began
    );
    cluster.until_leads(new).await;
    println!(
        "the other member was primary {:.3} s after the cut",
        now() - began
    );
    let session = cluster.members[new].connect().await;
    until_flowing(&session, new_port, 100).await;
    let sent = load.stop().await;
    Account::of(&sent, &session).await.check("partition", LONGEST);
    let records = records(&session).await;
    let last = records.iter().rfind(|record| record.port == old_port);
    let first = records.iter().find(|record| record.port == new_port);
    let (last, first) = (last.expect("the old one's").at, first.expect("the new one's").at);
    assert!(
        last < first,
        "the old primary took a message {:.3} s after the new one",
        last - first
    );

    cluster.members[old].link.mend();
    assert_eq!(cluster.until_healthy().await, new);
    let standby = cluster.members[old].connect().await;
    assert_eq!(
        state_of(&standby, "ha.load").await,
        Ok(("off".into(), Some("this server is a standby".into())))
    );
}

/// In maintenance mode Patroni demotes nobody: fencing alone tells a primary that its lock is gone.
#[tokio::test]
async fn a_primary_that_nobody_demotes_is_fenced() {
    let nats = NatsServer::start().await;
    let (cluster, leader, session, load) = under_load(&nats).await;
    let member = &cluster.members[leader];
    cluster.pause(true).await;
    let began = now();
    member.link.cut();
    let problem = until_state(&session, "ha.load", "fenced").await;
    let fenced = now();
    println!(
        "fenced {:.3} s after the cut: {}",
        fenced - began,
        problem.as_deref().unwrap_or("no problem")
    );
    // The cluster's own ttl, which nobody can tell while etcd is away.
    assert!(problem.is_some_and(|why| why.contains("ttl: 20")));
    assert!(member.log().contains("paused subscriptions and responders"));
    let primary = "SELECT (NOT pg_is_in_recovery())::text";
    assert_eq!(text(&session, primary).await, "true");
    // What the executors had begun may still end.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let count = "SELECT count(*)::text FROM numbers";
    let before = text(&session, count).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(text(&session, count).await, before, "taken while fenced");
    run(
        &session,
        "SELECT nats_publish_text('ha.hello', 'from a fenced primary')",
    )
    .await;

    member.link.mend();
    let mended = now();
    until_state(&session, "ha.load", "live").await;
    println!("resumed {:.3} s after the way to etcd was mended", now() - mended);
    until_flowing(&session, member.port(), 100).await;
    assert!(member.log().contains("resumed subscriptions and responders"));
    let sent = load.stop().await;
    Account::of(&sent, &session).await.check("fencing", LONGEST);
    cluster.pause(false).await;
    assert_eq!(cluster.until_healthy().await, leader);
}
