//! A cluster of NATS servers: the one in use stops in every way there is, under load in both directions.

mod nats_cluster;
mod patroni;
mod scene;
mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use nats_cluster::NatsCluster;
use patroni::*;
use scene::*;
use support::*;

/// Between two calls.
const BEAT: Duration = Duration::from_millis(5);
/// Longest silence in seconds; a connection that breaks is noticed at once.
const LONGEST: f64 = 30.0;

/// PostgreSQL before a NATS cluster.
struct Clustered {
    nats: NatsCluster,
    pg: Postgres,
    session: Session,
}

impl Clustered {
    /// The foreign server names these hosts, and the first server listens on `port`.
    async fn start(hosts: impl Fn(&NatsCluster) -> String) -> Self {
        let nats = NatsCluster::start().await;
        let pg = Postgres::start().await;
        let session = pg.connect().await;
        let sql = format!(
            "CREATE EXTENSION litmus_pgnats; CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw \
             OPTIONS (host '{}', capacity '100000')",
            hosts(&nats)
        );
        run(&session, &sql).await;
        run(&session, NUMBERS).await;
        until_state(&session, "ha.load", "live").await;
        Self { nats, pg, session }
    }

    /// Which server the extension is connected to.
    async fn in_use(&self) -> usize {
        let row = self
            .session
            .query_one("SELECT port FROM nats_get_server_info()", &[])
            .await;
        let port: i32 = row.expect("ask for the server").get(0);
        self.nats.on_port(u16::try_from(port).expect("a port"))
    }

    async fn until_elsewhere(&self, server: usize) {
        eventually(LONG, async || self.in_use().await != server).await;
    }

    /// Has messages published from outside and from SQL, does `what` to the server in use, and waits until the
    /// extension uses another one; what became of the messages. The outside clients are on that other server.
    async fn under_load(&mut self, what: &str, how: impl AsyncFnOnce(&mut NatsServer)) -> [Account; 2] {
        run(&self.session, "TRUNCATE numbers").await;
        let used = self.in_use().await;
        let outside = self.nats.servers[(used + 1) % 3].client().await;
        let listener = self.nats.servers[(used + 2) % 3].client().await;
        let mut messages = listener.subscribe("ha.out").await.expect("subscribe");
        round_trip(&listener).await;
        let got = Arc::<Mutex<Vec<usize>>>::default();
        let sink = Arc::clone(&got);
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let number = std::str::from_utf8(&message.payload)
                    .ok()
                    .and_then(|text| text.parse().ok());
                sink.lock()
                    .expect("no panic while counting")
                    .push(number.expect("a number"));
            }
        });
        let (publisher, load) = (self.pg.connect().await, Load::start(outside));
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let publishes = tokio::spawn(async move {
            let mut sent = Vec::new();
            while stopped.try_recv().is_err() {
                sent.push(now());
                let sql = format!("SELECT nats_publish_text('ha.out', '{}')", sent.len());
                run(&publisher, &sql).await;
                tokio::time::sleep(BEAT).await;
            }
            sent
        });
        until_flowing(&self.session, self.pg.port(), 50).await;
        how(&mut self.nats.servers[used]).await;
        self.until_elsewhere(used).await;
        until_flowing(&self.session, self.pg.port(), 100).await;
        stop.send(()).expect("tell the publisher to stop");
        let (sent, published) = (load.stop().await, publishes.await.expect("the publisher"));
        let inward = Account::of(&sent, &self.session).await;
        inward.check(&format!("{what}, into the subscription"), LONGEST);
        let last = published.len();
        let got = || got.lock().expect("no panic while counting").clone();
        eventually(LONG, async || got().last() == Some(&last)).await;
        let outward = Account::between(&published, got().into_iter());
        outward.check(&format!("{what}, published from SQL"), LONGEST);
        [inward, outward]
    }

    async fn start_again(&mut self, server: usize) {
        self.nats.servers[server].restart().await;
        self.nats.until_whole(3).await;
    }
}

/// All three are named in the option.
#[tokio::test]
async fn the_server_in_use_stops() {
    let mut clustered = Clustered::start(NatsCluster::hosts).await;
    let used = clustered.in_use().await;
    clustered
        .under_load("SIGKILL", async |server| server.kill9())
        .await;
    clustered.start_again(used).await;
    let used = clustered.in_use().await;
    clustered
        .under_load("SIGTERM", async |server| server.stop().await)
        .await;
    clustered.start_again(used).await;
    // Its clients are told, and served for some seconds: who leaves in time loses nothing on the way out.
    let used = clustered.in_use().await;
    let [_, outward] = clustered
        .under_load("lame duck", async |server| server.lame_duck())
        .await;
    assert_eq!(outward.missed, 0, "the old server served still");
    assert!(
        clustered.nats.servers[used].is_up(),
        "left when it had stopped already"
    );
    eventually(LONG, async || {
        let connections = clustered.nats.servers[used].monitor("/connz").await;
        let names = connections["connections"].to_string();
        (!names.contains("litmus")).then_some(()).ok_or(names)
    })
    .await;
}

/// One server is named, and the others are learned from it, also after they have been the way to learn.
#[tokio::test]
async fn servers_are_learned() {
    let mut clustered = Clustered::start(|nats| format!("127.0.0.1:{}", nats.servers[0].port())).await;
    assert_eq!(clustered.in_use().await, 0);
    clustered
        .under_load("one is named, SIGKILL", async |server| server.kill9())
        .await;
    let second = clustered.in_use().await;
    let third = 3 - second;
    // The named one is away still, and so is now the one that was learned first.
    clustered.nats.servers[second].kill9();
    eventually_eq(LONG, third, async || {
        let row = clustered
            .session
            .query_one("SELECT port FROM nats_get_server_info()", &[])
            .await;
        let port = row.map_or(0, |row| row.get::<_, i32>(0));
        let mut ports = clustered.nats.servers.iter().map(NatsServer::port);
        ports.position(|other| i32::from(other) == port).unwrap_or(9)
    })
    .await;
    until_state(&clustered.session, "ha.load", "live").await;
    // A forced reload while the named server is away must not lose the way.
    run(&clustered.session, "SELECT litmus_pgnats_reload_conf_force()").await;
    assert_eq!(clustered.in_use().await, third);
}

/// The one server that is named becomes a lame duck.
#[tokio::test]
async fn a_lame_duck_is_left_for_a_learned_server() {
    let mut clustered = Clustered::start(|nats| format!("127.0.0.1:{}", nats.servers[0].port())).await;
    let [_, outward] = clustered
        .under_load("one is named, lame duck", async |server| server.lame_duck())
        .await;
    assert_eq!(outward.missed, 0, "the old server served still");
    assert!(
        clustered.nats.servers[0].is_up(),
        "left when it had stopped already"
    );
}
