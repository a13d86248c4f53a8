//! The servers of a soak, and what is in them: two databases with an outbox, subscriptions and responders in the one,
//! durable subscriptions in the other, and streams between them.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::{self, kv, object_store, stream};
use async_nats::{Client, ConnectOptions};

use super::proxy::Proxy;
use crate::scene::*;
use crate::support::*;

/// How long servers may take to be there again after a fault.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The password of the test's own client, and of the role with a user mapping.
const ADMIN: &str = "secret-of-admin";
const GUEST: &str = "secret-of-guest";

pub struct World {
    pub pg: Postgres,
    pub nats: NatsServer,
    pub proxy: Proxy,
    /// How often the secret was changed.
    pub rotations: u64,
}

impl World {
    pub async fn start() -> Self {
        let nats = config(&secret(0)).start().await;
        let proxy = Proxy::to(nats.port());
        let pg = Postgres::builder()
            .conf("log_line_prefix", "%m [%p] %b %e %q%u@%d ")
            .conf("max_connections", "100")
            .conf("litmus_pgnats.executor_idle_timeout", "5s")
            // What glibc would keep of a large file for the next one says nothing of leaks.
            .env("MALLOC_TRIM_THRESHOLD_", "131072")
            .env("MALLOC_MMAP_THRESHOLD_", "131072")
            .start()
            .await;
        let world = Self {
            pg,
            nats,
            proxy,
            rotations: 0,
        };
        world.write_secret();
        world.write_file("guest", GUEST);
        world.make_streams().await;
        let source = world.pg.connect().await;
        run(&source, &world.server_sql()).await;
        run(&source, SOURCE).await;
        let guest = world.pg.connect_as("guest", "postgres").await;
        run(
            &guest,
            "SELECT nats_subscribe('core.>', 'hear_many', batch_size => 100)",
        )
        .await;
        run(&source, "CREATE DATABASE sink").await;
        let sink = world.pg.connect_as("postgres", "sink").await;
        run(&sink, &world.server_sql()).await;
        run(&sink, SINK).await;
        world
    }

    /// The extension and its foreign server, which reaches NATS through the proxy.
    pub fn server_sql(&self) -> String {
        format!(
            "CREATE EXTENSION litmus_pgnats;
             CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}',
               username 'soak', password_path '{}', capacity '1000')",
            self.proxy.port(),
            self.path("soak").display()
        )
    }

    /// A user mapping, which makes a connection of its own.
    pub fn mapping_sql(&self) -> String {
        format!(
            "CREATE USER MAPPING IF NOT EXISTS FOR guest SERVER nats OPTIONS (username 'guest', password_path '{}')",
            self.path("guest").display()
        )
    }

    fn path(&self, user: &str) -> PathBuf {
        self.pg.data_dir().with_file_name(user)
    }

    fn write_file(&self, user: &str, text: &str) {
        // In one step, so that nobody reads half a secret.
        let (path, new) = (self.path(user), self.path("new"));
        std::fs::write(&new, text).unwrap_or_else(|e| panic!("write {}: {e}", new.display()));
        give_to_server(&new);
        std::fs::rename(&new, &path).unwrap_or_else(|e| panic!("rename {}: {e}", new.display()));
    }

    /// Writes the secret to the file that the foreign server names.
    pub fn write_secret(&self) {
        self.write_file("soak", &secret(self.rotations));
    }

    /// What nats-server is configured with now.
    pub fn config(&self) -> NatsConfig {
        config(&secret(self.rotations))
    }

    /// Everything that nobody may ever read in a log.
    pub fn secrets(&self) -> Vec<String> {
        (0..=self.rotations)
            .map(secret)
            .chain([ADMIN.into(), GUEST.into()])
            .collect()
    }

    async fn make_streams(&self) {
        let context = jetstream::new(self.client().await);
        for name in ["moves", "facts"] {
            let config = stream::Config {
                name: name.into(),
                subjects: vec![format!("{name}.>")],
                duplicate_window: Duration::from_secs(600),
                ..Default::default()
            };
            context.create_stream(config).await.expect("create a stream");
        }
        let config = kv::Config {
            bucket: super::stores::BUCKET.into(),
            history: 5,
            ..Default::default()
        };
        context.create_key_value(config).await.expect("create a bucket");
        let config = object_store::Config {
            bucket: super::stores::STORE.into(),
            ..Default::default()
        };
        let created = context.create_object_store(config).await;
        created.expect("create an object store");
    }

    /// A client of NATS beside the proxy.
    pub async fn client(&self) -> Client {
        let options = ConnectOptions::with_user_and_password("admin".into(), ADMIN.into());
        self.nats.connect(options).await.expect("a client of NATS")
    }

    /// A session of the superuser, as soon as PostgreSQL lets one in.
    pub async fn admin(&self, database: &str) -> Session {
        eventually(PATIENCE, async || {
            self.pg.try_connect_as("postgres", database).await
        })
        .await
    }
}

/// The secret after so many changes.
fn secret(rotation: u64) -> String {
    format!("secret-of-soak-{rotation}-end")
}

fn config(soak: &str) -> NatsConfig {
    NatsServer::builder().domain("soak").config(&format!(
        "authorization {{ users: [ {{ user: admin, password: {ADMIN:?} }}, {{ user: soak, password: {soak:?} }},
           {{ user: guest, password: {GUEST:?} }} ] }}"
    ))
}

/// What sessions write to, and the subscriptions and responders beside them. A handler's rows can be counted: `heard`
/// has which subscription heard what.
const SOURCE: &str = r#"
CREATE ROLE guest LOGIN IN ROLE pg_monitor;
GRANT USAGE ON FOREIGN SERVER nats TO guest;
CREATE TABLE sent (id text PRIMARY KEY);
CREATE TABLE heard (way text, id text);
GRANT SELECT, INSERT ON sent, heard TO guest;
CREATE FUNCTION hear_one(msg text) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO public.heard VALUES ('one', trim(both '"' from msg)) $$;
CREATE FUNCTION hear_again(msg text) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO public.heard VALUES ('again', trim(both '"' from msg)) $$;
CREATE FUNCTION hear_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO public.heard SELECT 'many', trim(both '"' from convert_from(payload, 'utf8')) FROM unnest(messages) $$;
CREATE FUNCTION ignore(msg text) RETURNS void LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION ignore_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION echo(q bytea) RETURNS bytea LANGUAGE sql AS 'SELECT q';
CREATE FUNCTION answer_text(q text) RETURNS text LANGUAGE sql AS $$ SELECT 'no json' $$;
CREATE FUNCTION fail(q text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'as asked'; END $$;
SELECT nats_subscribe('core.>', 'hear_one');
SELECT nats_subscribe('core.>', 'hear_again');
SELECT litmus_pgnats_register_responder('rpc.echo', 'echo');
SELECT litmus_pgnats_register_responder('rpc.text', 'answer_text');
SELECT litmus_pgnats_register_responder('rpc.fail', 'fail');
"#;

/// Two durable subscriptions of one stream, one by batches and one by messages.
const SINK: &str = r#"
CREATE TABLE moved (way text, id text);
CREATE FUNCTION move(msg text) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO public.moved VALUES ('one', trim(both '"' from msg)) $$;
CREATE FUNCTION move_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS
  $$ INSERT INTO public.moved SELECT 'many', trim(both '"' from convert_from(payload, 'utf8')) FROM unnest(messages) $$;
SELECT nats_subscribe_stream('moves', 'move', ack_wait => '5 s', max_deliveries => 0);
SELECT nats_subscribe_stream('moves', 'move_many', ack_wait => '5 s', max_deliveries => 0);
"#;
