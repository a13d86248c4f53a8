//! Patroni changes the roles by request: the subscription moves along, and everybody is told.

mod patroni;
mod scene;
mod support;

use patroni::*;
use scene::*;
use serde_json::json;
use support::*;

/// Within how many seconds of the end of recovery the subscription takes messages; it should be one.
const LIVE_WITHIN: f64 = 5.0;
/// Longest silence in seconds; it takes three on an idle machine.
const LONGEST: f64 = 60.0;

#[tokio::test]
async fn a_switchover_under_load_moves_the_subscription() {
    let nats = NatsServer::start().await;
    let client = nats.client().await;
    let news = News::listen(&client, "ha.news").await;
    let cluster = Patroni::start(false).await;
    let old = cluster.until_healthy().await;
    let new = 1 - old;
    let [old_port, new_port] = [old, new].map(|member| cluster.members[member].port());
    let session = cluster.members[old].connect().await;
    run(&session, &create_server(nats.port(), &cluster.options())).await;
    run(&session, NUMBERS).await;
    until_state(&session, "ha.load", "live").await;
    // On the standby handlers are off, and core calls work.
    let standby = cluster.members[new].connect().await;
    eventually(SOON, async || state_of(&standby, "ha.load").await).await;
    assert_eq!(
        state_of(&standby, "ha.load").await,
        Ok(("off".into(), Some("this server is a standby".into())))
    );
    run(&standby, "SELECT nats_publish_text('ha.hello', 'from a standby')").await;
    news.until(old_port, &["Master"]).await; // there was no foreign server before
    news.forget();

    let load = Load::start(nats.client().await);
    until_flowing(&session, old_port, 100).await;
    let (began, starts) = (now(), cluster.members[old].starts());
    cluster.switchover(old).await;
    println!("the switchover took {:.3} s", now() - began);
    cluster.until_leads(new).await;
    let session = cluster.members[new].connect().await;
    until_flowing(&session, new_port, 100).await;
    let sent = load.stop().await;
    Account::of(&sent, &session).await.check("switchover", LONGEST);
    live_after_recovery(&cluster.members[new], &session).await;
    cluster.until_healthy().await;

    // The one was promoted, the other one was started as a standby.
    news.until(new_port, &["Master"]).await;
    news.until(old_port, &["Replica"]).await;
    assert_eq!(cluster.members[old].starts() - starts, 1);
    cluster.check_news(new, &news.of(new_port)[0], &[2]).await;
    // It starts on the old timeline, as a rule, and replays the change to the new one.
    cluster.check_news(old, &news.of(old_port)[0], &[1, 2]).await;
    let standby = cluster.members[old].connect().await;
    assert_eq!(
        state_of(&standby, "ha.load").await,
        Ok(("off".into(), Some("this server is a standby".into())))
    );

    // A start of the server is told, whatever its role.
    news.forget();
    for member in [new, old] {
        let member = &cluster.members[member];
        member.order("POST", "/restart", &json!({})).await;
    }
    news.until(new_port, &["Master"]).await;
    news.until(old_port, &["Replica"]).await;
    assert_eq!(cluster.until_healthy().await, new);
}

/// How long after the end of recovery the first message was taken.
async fn live_after_recovery(member: &Member, session: &Session) {
    let ended = member.logged_at("database system is ready to accept connections");
    let ended = ended.expect("the end of recovery in the log");
    let records = records(session).await;
    let first = records.iter().find(|record| record.port == member.port());
    let after = first.expect("a message that the new primary took").at - ended;
    println!("the new primary took its first message {after:.3} s after the end of recovery");
    assert!(after < LIVE_WITHIN, "{after:.3} s after the end of recovery");
}
