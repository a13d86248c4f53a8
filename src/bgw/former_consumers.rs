//! Which consumers durable subscriptions of this database have had, so that those which are used no longer are removed
//! from their streams: whatever has ended the subscription or renamed its consumer, and however long NATS was away. Runs
//! in executors, on the main thread, in the transaction of a refresh.

use super::logging;
use super::sources::source_of;
use crate::channel::work::FormerConsumer;
use crate::pg::query::Argument::{Int8, Oid};
use crate::pg::query::query;
use crate::pg::{databases, rights};
use crate::sql::own_tables::{CONSUMER, consumer_arguments};

/// Whether a durable subscription uses the consumer of a row `c`.
const USED: &str = "EXISTS (SELECT FROM litmus_pgnats.handler_stream d WHERE (d.server, d.subject) = (c.server, c.stream) \
    AND coalesce(d.domain, '') = c.domain AND ";

/// Writes down the consumers of all durable subscriptions, and forgets those with these keys, which are removed. Returns
/// the consumers that no durable subscription uses.
pub fn keep(removed: &[i64]) -> Vec<FormerConsumer> {
    for key in removed {
        query(
            &format!(
                "DELETE FROM litmus_pgnats.stream_consumer c WHERE c.key = $4 AND NOT {USED} {CONSUMER} = c.consumer)"
            ),
            &[consumer_arguments().to_vec(), vec![Int8(*key)]].concat(),
        );
    }
    query(
        &format!(
            "INSERT INTO litmus_pgnats.stream_consumer AS c (server, stream, domain, consumer, subscription, role, database_oid) \
             SELECT d.server, d.subject, coalesce(d.domain, ''), {CONSUMER}, d.id, h.role, $2 \
             FROM litmus_pgnats.handler_stream d JOIN litmus_pgnats.handler h USING (kind, server, subject, signature) \
             ON CONFLICT (server, stream, domain, consumer, database_oid) DO UPDATE SET role = excluded.role, \
             subscription = excluded.subscription WHERE (c.role, c.subscription) <> (excluded.role, excluded.subscription)"
        ),
        &consumer_arguments(),
    );
    // Those of the database that this one was copied from are that database's.
    query(
        "DELETE FROM litmus_pgnats.stream_consumer WHERE database_oid <> $1",
        &[Oid(databases::database_oid())],
    );
    unused()
}

fn unused() -> Vec<FormerConsumer> {
    let rows = query(
        &format!(
            "SELECT c.key, c.subscription, c.stream, c.consumer, nullif(c.domain, ''), s.oid, c.server, c.role::oid \
             FROM litmus_pgnats.stream_consumer c LEFT JOIN pg_foreign_server s ON s.srvname = c.server \
             WHERE c.database_oid = $2 AND NOT {USED} {CONSUMER} = c.consumer) ORDER BY c.key"
        ),
        &consumer_arguments(),
    );
    rows.into_iter()
        .filter_map(|row| former(<[Option<String>; 8]>::try_from(row).ok()?))
        .collect()
}

/// A consumer to remove; `None` if there is no connection to do that with, which is logged once.
fn former(
    [
        key,
        subscription,
        stream,
        durable,
        domain,
        server_oid,
        server,
        role,
    ]: [Option<String>; 8],
) -> Option<FormerConsumer> {
    let (key, stream, durable, server) = (key?.parse().ok()?, stream?, durable?, server?);
    let ends = server_oid
        .and_then(|oid| oid.parse().ok())
        .zip(role?.parse().ok());
    let Some((server_oid, role)) = ends.filter(|(_, role)| rights::role_exists(*role)) else {
        let text = format!(
            "consumer \"{durable}\" of stream \"{stream}\" stays: its role or foreign server \"{server}\" is gone"
        );
        logging::write(
            log::Level::Warn,
            &text,
            "No durable subscription uses it any more.",
            "",
        );
        query(
            "DELETE FROM litmus_pgnats.stream_consumer WHERE key = $1",
            &[Int8(key)],
        );
        return None;
    };
    // Options that cannot be used now may be put right, which causes a refresh.
    let source = source_of(server_oid, &server, role).ok()?;
    Some(FormerConsumer {
        key,
        subscription: subscription?,
        stream,
        durable,
        domain,
        source,
    })
}
