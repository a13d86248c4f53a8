//! A cluster of three nats-servers, each of which tells its clients of the others. A test file says `mod nats_cluster;`.

#![allow(
    dead_code,
    reason = "every test file compiles this module anew and uses its own part of it"
)]

use std::time::Duration;

use async_nats::Client;

use crate::support::*;

/// The servers, and the ports on which they speak to each other.
pub struct NatsCluster {
    pub servers: Vec<NatsServer>,
    routes: Vec<Port>,
}

impl NatsCluster {
    /// Returns when the three have found each other.
    pub async fn start() -> Self {
        Self::start_with(NatsServer::builder()).await
    }

    /// With what each of them is started with besides.
    pub async fn start_with(each: NatsConfig) -> Self {
        let routes: Vec<Port> = (0..3).map(|_| Port::take()).collect();
        let others: Vec<String> = routes
            .iter()
            .map(|port| format!("nats-route://127.0.0.1:{}", port.number()))
            .collect();
        let mut servers = Vec::new();
        for (n, port) in routes.iter().enumerate() {
            let config = format!(
                "server_name: n{n}\nlame_duck_duration: 30s\nlame_duck_grace_period: 10s\n\
                 cluster {{ name: ha, listen: \"127.0.0.1:{}\", routes: [{}], no_advertise: false }}",
                port.number(),
                others.join(", ")
            );
            servers.push(each.clone().config(&config).start().await);
        }
        let cluster = Self { servers, routes };
        cluster.until_whole(3).await;
        cluster
    }

    /// Waits until each of the servers that run has routes to the others, of which there are this many in all.
    pub async fn until_whole(&self, running: usize) {
        for server in self.servers.iter().filter(|server| server.is_up()) {
            eventually(Duration::from_secs(60), async || {
                let routes = server.monitor("/routez").await;
                let mut names: Vec<String> = routes["routes"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|route| route["remote_name"].to_string())
                    .collect();
                names.sort();
                names.dedup();
                (names.len() == running - 1).then_some(()).ok_or(names)
            })
            .await;
        }
    }

    /// The hosts of all servers, as the option `host` has them.
    pub fn hosts(&self) -> String {
        let hosts = self
            .servers
            .iter()
            .map(|server| format!("127.0.0.1:{}", server.port()));
        hosts.collect::<Vec<_>>().join(",")
    }

    /// A PostgreSQL with the extension, whose foreign server `nats` names all of them.
    pub async fn postgres(&self) -> Postgres {
        let pg = Postgres::start().await;
        let hosts = self.hosts();
        pg.sql(&format!(
            "CREATE EXTENSION litmus_pgnats;
             CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '{hosts}')"
        ))
        .await;
        pg
    }

    /// A client that knows them all.
    pub async fn client(&self) -> Client {
        let urls: Vec<String> = self.servers.iter().map(NatsServer::url).collect();
        let client = async_nats::connect(urls).await;
        client.expect("a client of the NATS cluster")
    }

    /// The server on this port.
    pub fn on_port(&self, port: u16) -> usize {
        let found = self.servers.iter().position(|server| server.port() == port);
        found.unwrap_or_else(|| panic!("no server of the cluster has port {port}"))
    }
}
