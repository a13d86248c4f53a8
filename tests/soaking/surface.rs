//! The rest of the surface: the connection, reloads, views, handlers of a session's own, dead letters.

use super::caller::{Caller, Failure};
use super::explained::DENIED;

impl Caller {
    pub async fn server_info(&mut self) -> Result<(), Failure> {
        self.ask("SELECT server_id, client_id FROM nats_get_server_info()")
            .await
            .map(drop)
    }

    pub async fn reload(&mut self, force: &str) -> Result<(), Failure> {
        self.ask(&format!("SELECT litmus_pgnats_reload_conf{force}()"))
            .await
            .map(drop)
    }

    pub async fn version(&mut self) -> Result<(), Failure> {
        self.ask("SELECT * FROM litmus_pgnats_version()").await.map(drop)
    }

    pub async fn view(&mut self) -> Result<(), Failure> {
        let number = self.random.below(self.views.len() as u64) as usize;
        let sql = self.views[number].clone();
        self.ask(&sql).await.map(drop)
    }

    pub async fn subscription(&mut self) -> Result<(), Failure> {
        let own = format!("own.{}", self.who);
        let batch = self.random.pick(&["NULL", "10"]);
        let function = if batch == "NULL" { "ignore" } else { "ignore_many" };
        self.ask(&format!(
            "SELECT nats_subscribe('{own}', '{function}', batch_size => {batch})"
        ))
        .await?;
        self.ask(&format!("SELECT nats_publish_text('{own}', '1')"))
            .await?;
        self.ask(&format!("SELECT nats_unsubscribe('{own}', '{function}')"))
            .await
            .map(drop)
    }

    pub async fn durable_subscription(&mut self) -> Result<(), Failure> {
        // One name for all sessions and consumers: they wait for each other. The guest may find it to be the superuser's.
        let others: &[_] = if self.guest { &[DENIED] } else { &[] };
        for sql in [
            "SELECT nats_subscribe_stream('facts', 'ignore_many', deliver => 'new', batch_size => 50)",
            "SELECT nats_unsubscribe_stream('facts', 'ignore_many')",
        ] {
            self.ask(sql).await.map_err(|failure| failure.unless(others))?;
        }
        Ok(())
    }

    pub async fn responder(&mut self) -> Result<(), Failure> {
        let own = format!("own.rpc.{}", self.who);
        self.ask(&format!(
            "SELECT litmus_pgnats_register_responder('{own}', 'echo')"
        ))
        .await?;
        self.ask(&format!("SELECT nats_request_text('{own}', '1', 1000)"))
            .await?;
        self.ask(&format!("SELECT litmus_pgnats_unregister_responder('{own}')"))
            .await
            .map(drop)
    }

    /// There are none; what they hold would be lost.
    pub async fn dead_letters(&mut self) -> Result<(), Failure> {
        self.ask(
            "SELECT count(id), litmus_pgnats.purge_dead_letters('1 day') FROM litmus_pgnats.redrive_all()",
        )
        .await
        .map(drop)
    }

    /// What is wrong is refused with its SQLSTATE, and the session goes on.
    pub async fn bad_input(&mut self) -> Result<(), Failure> {
        let (expected, sql) = self.random.pick(BAD);
        match self.ask(sql).await {
            Ok(_) => self.board.finding(format!("not refused: {sql}")),
            Err(failure) => {
                // Who does not own the server is refused before its options are looked at.
                let owner = self.guest && sql.starts_with("ALTER");
                let failure = failure.unless(&[if owner { DENIED } else { expected }]);
                if !failure.expected {
                    return Err(failure);
                }
            }
        }
        Ok(())
    }
}

/// The SQLSTATE that each of these has.
pub const BAD: &[(&str, &str)] = &[
    ("22004", "SELECT nats_publish_text('core.0', NULL)"),
    ("22004", "SELECT nats_request_text('rpc.echo', 'x', NULL)"),
    ("42602", "SELECT nats_publish_text('core..0', 'x')"),
    ("42602", "SELECT nats_publish_text('core.*', 'x')"),
    ("42602", "SELECT nats_publish_text_stream('', 'x')"),
    ("42602", "SELECT nats_publish_text_outbox('a b', 'x')"),
    ("22023", "SELECT nats_publish_text('core.0', 'x', NULL, '[1]')"),
    (
        "22023",
        "SELECT nats_publish_text_stream('facts.0', 'x', '{\"a\": {}}')",
    ),
    ("22003", "SELECT nats_request_text('rpc.echo', 'x', 0)"),
    ("22003", "SELECT nats_update_text('soak', 'bad', 'x', 0)"),
    ("22003", "SELECT nats_create_bucket('bad', history => 1000)"),
    ("42602", "SELECT nats_put_text('so ak', 'k', 'x')"),
    ("42602", "SELECT nats_put_text('soak', 'a b', 'x')"),
    ("42602", "SELECT nats_put_file('files', '', 'x')"),
    (
        "54000",
        "SELECT nats_publish_binary('core.0', decode(repeat('00', 2000000), 'hex'))",
    ),
    (
        "54000",
        "SELECT nats_put_text('soak', 'large', repeat('x', 2000000))",
    ),
    ("HV00M", "SELECT nats_request_text('rpc.nobody', 'x')"),
    ("HV00R", "SELECT nats_publish_text_stream('nowhere', 'x')"),
    (
        "40001",
        "SELECT nats_publish_text_stream('facts.0', 'x', '{\"Nats-Expected-Last-Sequence\": \"1\"}')",
    ),
    ("HV00Q", "SELECT nats_get_file_info('no-store', 'x')"),
    ("58P01", "SELECT nats_get_file('files', 'no such file')"),
    ("38000", "SELECT nats_request_text('rpc.fail', 'x')"),
    ("22P02", "SELECT nats_request_json('rpc.echo', '{]', 1000)"),
    ("22P02", "SELECT nats_request_jsonb('rpc.text', '1', 1000)"),
    ("42602", "SELECT litmus_pgnats.redrive(0)"),
    ("42602", "SELECT nats_subscribe('a..b', 'ignore')"),
    ("42P13", "SELECT nats_subscribe('own.bad', 'pg_backend_pid')"),
    ("42883", "SELECT nats_subscribe('own.bad', 'no_such_function')"),
    (
        "22003",
        "SELECT nats_subscribe('own.bad', 'ignore_many', batch_size => 0)",
    ),
    ("HV024", "ALTER SERVER nats OPTIONS (SET port 'x')"),
    ("HV00D", "ALTER SERVER nats OPTIONS (ADD prot '1')"),
    (
        "22012",
        "SELECT nats_publish_text('bad.0', 'x'), 1 / (random() * 0)::int",
    ),
];
