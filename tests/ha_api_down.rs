//! Patroni's API does not answer, or Patroni is dead: the messaging goes on, though fencing is on.

mod patroni;
mod scene;
mod support;

use std::time::Duration;

use patroni::*;
use scene::*;
use support::*;

/// Longer than the watcher waits for an answer.
const OUTAGE: Duration = Duration::from_secs(6);

#[tokio::test]
async fn messages_are_taken_while_patroni_is_away() {
    let nats = NatsServer::start().await;
    let mut cluster = Patroni::start(true).await;
    let leader = cluster.until_healthy().await;
    let session = cluster.members[leader].connect().await;
    run(&session, &create_server(nats.port(), &cluster.options())).await;
    run(&session, NUMBERS).await;
    until_state(&session, "ha.load", "live").await;
    let told = async |cluster: &Patroni, text: &str, count: usize| {
        let member = &cluster.members[leader];
        eventually(LONG, async || {
            let seen = member.log().matches(text).count();
            (seen == count)
                .then_some(())
                .ok_or_else(|| format!("{seen} times {text:?}"))
        })
        .await;
    };
    told(&cluster, "holds the leader lock", 1).await;
    let load = Load::start(nats.client().await);
    until_flowing(&session, cluster.members[leader].port(), 100).await;

    // The API hangs.
    cluster.freeze_localhost();
    told(&cluster, "cannot be asked", 1).await;
    tokio::time::sleep(OUTAGE).await;
    assert_eq!(state_of(&session, "ha.load").await, Ok(("live".into(), None)));
    cluster.thaw_localhost();
    told(&cluster, "holds the leader lock", 2).await;

    // Patroni is dead; in maintenance mode the other member leaves it at that.
    cluster.pause(true).await;
    cluster.members[leader].kill9_patroni();
    told(&cluster, "cannot be asked", 2).await;
    tokio::time::sleep(OUTAGE).await;
    assert_eq!(state_of(&session, "ha.load").await, Ok(("live".into(), None)));
    cluster.members[leader].start();
    eventually(LONG, async || cluster.members[leader].leads().await).await;
    told(&cluster, "holds the leader lock", 3).await;
    cluster.pause(false).await;
    assert_eq!(cluster.until_healthy().await, leader);

    until_flowing(&session, cluster.members[leader].port(), 100).await;
    let sent = load.stop().await;
    let account = Account::of(&sent, &session).await;
    account.check("Patroni away", 5.0);
    assert_eq!(account.missed, 0);
    told(&cluster, "cannot be asked", 2).await; // one line for each change
    assert!(!cluster.members[leader].log().contains("paused subscriptions"));
}
