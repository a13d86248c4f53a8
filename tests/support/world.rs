//! The world that tests run in: usually one where everything is allowed, or with `WORLD=narrow` one where the extension's
//! NATS user has the rights of docs/nats-permissions.md, a private prefix for replies, and modest limits.

/// API requests of JetStream that the page does not name.
const UNNEEDED: [&str; 18] = [
    "$SYS.>",
    "$JS.API.ACCOUNT.>",
    "$JS.API.META.>",
    "$JS.API.SERVER.>",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.UPDATE.>",
    "$JS.API.STREAM.SNAPSHOT.>",
    "$JS.API.STREAM.RESTORE.>",
    "$JS.API.STREAM.MSG.DELETE.>",
    "$JS.API.STREAM.PEER.>",
    "$JS.API.STREAM.LEADER.>",
    "$JS.API.CONSUMER.NAMES.>",
    "$JS.API.CONSUMER.DURABLE.>",
    "$JS.API.CONSUMER.PAUSE.>",
    "$JS.API.CONSUMER.UNPIN.>",
    "$JS.API.CONSUMER.LEADER.>",
    "$JS.API.DIRECT.GET.OBJ_>",
];

/// Whether the world is narrow.
pub fn is_narrow() -> bool {
    match std::env::var("WORLD").as_deref() {
        Ok("narrow") => true,
        Ok("") | Err(_) => false,
        Ok(other) => panic!("WORLD is {other:?}, and only \"narrow\" is known"),
    }
}

/// Further options of a foreign server, beginning with a comma.
pub fn server_options() -> &'static str {
    if is_narrow() {
        ", inbox_prefix '_INBOX_narrow'"
    } else {
        ""
    }
}

/// The part of nats-server's configuration with the users: whoever names none is the extension's.
pub(super) fn users() -> String {
    let denied: Vec<String> = UNNEEDED.iter().map(|subject| format!("{subject:?}")).collect();
    format!(
        "authorization {{ users: [
           {{ user: admin, password: admin }},
           {{ user: narrow, password: narrow, permissions: {{
                publish: {{ deny: [{}] }}, subscribe: {{ deny: [\"_INBOX.>\", \"$JS.>\", \"$SYS.>\"] }} }} }} ] }}
         no_auth_user: narrow
         max_subscriptions: 500\n",
        denied.join(", ")
    )
}
