//! Whose a consumer is, in the consumer's metadata, which NATS servers keep from 2.10 on. In the actor thread.

use std::collections::HashMap;
use std::sync::LazyLock;

use async_nats::jetstream::consumer::Info;

use super::Seeker;
use crate::error::{Error, Kind};

const OWNER: &str = "litmus_pgnats_owner";
const SUBSCRIPTION: &str = "litmus_pgnats_subscription";
const INCARNATION: &str = "litmus_pgnats_incarnation";

/// Who uses a consumer: this runtime worker, for a database. A server that was started from a base backup has the same
/// subscriptions, and nothing but this tells it from a standby that was promoted.
fn owner(database: u32) -> String {
    static RUNTIME: LazyLock<String> = LazyLock::new(|| nuid::next().to_string());
    format!("{}.{database}", *RUNTIME)
}

/// The metadata of a subscription's consumer. `token` is that of the stream's incarnation.
pub fn metadata(seeker: &Seeker<'_>, token: &str) -> HashMap<String, String> {
    let pairs = [
        (OWNER, owner(seeker.database)),
        (SUBSCRIPTION, seeker.consumer.id.clone()),
        (INCARNATION, token.to_string()),
        ("litmus_pgnats_cluster", seeker.consumer.cluster.to_string()),
        ("litmus_pgnats_database", seeker.database_name.to_string()),
        ("litmus_pgnats_function", seeker.function.to_string()),
    ];
    pairs.map(|(name, value)| (name.to_string(), value)).into()
}

/// What to say of a consumer that another server has taken; `None` if it is still the database's own, or if the NATS
/// server (before 2.10) does not keep who uses it.
pub fn taken(info: &Info, database: u32) -> Option<Error> {
    let theirs = info.config.metadata.get(OWNER)?;
    (*theirs != owner(database)).then(|| {
        let message = format!("another server has taken consumer \"{}\"", info.name);
        Error::new(Kind::Stopped, message).detail(
            "It has the same subscription: a standby that was promoted, or a server that was started from a base backup. \
             If this server is the one to go on, call litmus_pgnats.resume() here.",
        )
    })
}

/// Whether the consumer was made in this incarnation of the stream. Without metadata, that is believed.
pub fn is_of_incarnation(info: &Info, token: Option<&str>) -> bool {
    let made_in = info.config.metadata.get(INCARNATION).map(String::as_str);
    made_in.is_none() || made_in == token
}

/// Whether the consumer is this subscription's. One without metadata is not known to be.
pub fn is_of(info: &Info, id: &str) -> bool {
    info.config
        .metadata
        .get(SUBSCRIPTION)
        .is_some_and(|subscription| subscription == id)
}

/// Whether the consumer is another subscription's. One without metadata is not.
pub fn is_of_other(info: &Info, id: &str) -> bool {
    info.config
        .metadata
        .get(SUBSCRIPTION)
        .is_some_and(|subscription| subscription != id)
}

/// Whether somebody else may use the consumer of a subscription that has ended in this database: another subscription
/// has it, or another server, which pulls from it.
pub fn is_in_use(info: &Info, id: &str, database: u32) -> bool {
    is_of_other(info, id) || (taken(info, database).is_some() && info.num_waiting > 0)
}
