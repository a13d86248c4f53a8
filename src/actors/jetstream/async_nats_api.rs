//! async-nats's own JetStream API, for rare requests, and its values as text. In the actor thread.

use async_nats::datetime::DateTime;
use async_nats::jetstream;

use super::api::Api;

/// async-nats's own JetStream context, for rare requests.
pub fn context(api: &Api) -> jetstream::Context {
    let mut context = jetstream::with_prefix(api.client.client().clone(), &api.prefix);
    context.set_timeout(api.timeout);
    context
}

/// The text of an error with its causes.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

/// A time as text that PostgreSQL's type timestamptz reads.
pub fn timestamp(time: DateTime) -> String {
    time.to_string()
}
