//! Follows Patroni: tells who this node is in its cluster, and fences a primary that has lost the leader lock. While
//! Patroni is away, nothing changes. An actor; in the actor thread.

use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix::prelude::*;
use reqwest::redirect::Policy;

use super::interface::{Fence, Follow, WhoAmI};
use crate::actors::base::server_role::{Fencing, Roles};
use crate::actors::base::tasks::Vital;
use crate::patroni::{self, Member};

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_millis(1500);
/// Time between two requests to Patroni; after failures up to ten times as long.
const INTERVAL: Duration = Duration::from_secs(2);
const MOST_FAILURES: u32 = 10;
/// Error for an answer that is not Patroni's.
const NOT_PATRONI: &str = "its answer is not that of Patroni";
/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// What Patroni has answered.
struct Seen {
    member: Member,
    holds_lock: bool,
    /// Seconds that a leader lock lives; `None` if Patroni did not say.
    ttl: Option<u64>,
}

/// An address that is followed.
struct Followed {
    timer: SpawnHandle,
    failures: u32,
    /// Seconds that a leader lock lives, as Patroni has said last: while its configuration store is away, it cannot.
    ttl: u64,
    /// What was last logged.
    last: Option<String>,
    fence: Option<String>,
}

/// HTTP clients, each made when an address first needs it. Only the client for `https` loads the system's certificates,
/// of which a machine may have none.
#[derive(Default)]
struct Clients {
    plain: OnceCell<reqwest::Client>,
    encrypted: OnceCell<reqwest::Client>,
}

impl Clients {
    fn of(&self, url: &str) -> Result<reqwest::Client, String> {
        let builder = reqwest::Client::builder().timeout(TIMEOUT).no_proxy();
        let is_encrypted = url.to_ascii_lowercase().starts_with("https:");
        let (client, builder) = if is_encrypted {
            (&self.encrypted, builder)
        } else {
            // Without certificates, the client can follow redirects to plain addresses only.
            let plain_only = Policy::custom(|attempt| match attempt.url().scheme() {
                "http" => Policy::default().redirect(attempt),
                _ => attempt.stop(),
            });
            (&self.plain, builder.tls_certs_only([]).redirect(plain_only))
        };
        if let Some(client) = client.get() {
            return Ok(client.clone());
        }
        let made = builder
            .build()
            .map_err(|error| format!("could not set up TLS: {}", explain(error)))?;
        Ok(client.get_or_init(|| made).clone())
    }
}

/// The actor that follows Patroni.
pub struct PatroniWatcher {
    clients: Clients,
    roles: Roles,
    fencing: Arc<Fencing>,
    /// The actor that is told of a fence.
    fenced_actor: Recipient<Fence>,
    /// The addresses that each database names.
    wanted: HashMap<u32, BTreeSet<String>>,
    followed: HashMap<String, Followed>,
    /// Why the node is fenced; `None` if it is not.
    fenced: Option<String>,
    _vital: Vital,
}

impl PatroniWatcher {
    pub fn new(roles: Roles, fencing: Arc<Fencing>, fenced_actor: Recipient<Fence>) -> Self {
        // Fails if another library of this process has installed a provider, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        PatroniWatcher {
            clients: Clients::default(),
            roles,
            fencing,
            fenced_actor,
            wanted: HashMap::new(),
            followed: HashMap::new(),
            fenced: None,
            _vital: Vital::new("watcher of Patroni"),
        }
    }

    fn ask_later(&self, url: String, after: Duration, ctx: &mut Context<Self>) -> SpawnHandle {
        ctx.run_later(after, move |actor, ctx| {
            let question = ask(actor.clients.of(&url), url.clone());
            ctx.spawn(
                question
                    .into_actor(actor)
                    .map(move |seen, actor, ctx| actor.seen(url, seen, ctx)),
            );
        })
    }

    fn seen(&mut self, url: String, seen: Result<Seen, String>, ctx: &mut Context<Self>) {
        let Some(followed) = self.followed.get_mut(&url) else {
            return;
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        let what = match &seen {
            Ok(Seen {
                member, holds_lock, ..
            }) => {
                let role = member.role.as_deref().unwrap_or("unknown");
                let lock = if *holds_lock { "holds" } else { "does not hold" };
                format!("role {role}, {lock} the leader lock")
            }
            // The error is left out, because it varies from one attempt to the next.
            Err(_) => "cannot be asked".into(),
        };
        if followed.last.as_ref() != Some(&what) {
            let shown = patroni::without_password(&url);
            match &seen {
                Ok(_) => log::info!("Patroni at {shown}: {what}"),
                Err(why) => log::warn!("Patroni at {shown} {what}: {why}"),
            }
            followed.last = Some(what);
        }
        match seen {
            Ok(seen) => {
                followed.failures = 0;
                followed.ttl = seen.ttl.unwrap_or(followed.ttl);
                followed.fence = patroni::fence(&seen.member, seen.holds_lock, followed.ttl, now);
            }
            // Without an answer, no fence is raised or lifted.
            Err(_) => followed.failures = (followed.failures + 1).min(MOST_FAILURES),
        }
        let after = INTERVAL * followed.failures.max(1);
        let timer = self.ask_later(url.clone(), after, ctx);
        if let Some(followed) = self.followed.get_mut(&url) {
            // Another timer may run if the address was dropped and followed again meanwhile.
            ctx.cancel_future(std::mem::replace(&mut followed.timer, timer));
        }
        self.judge();
    }

    fn judge(&mut self) {
        let applies = self.fencing.0.load(Ordering::Relaxed) && self.roles.borrow().is_primary;
        let fence = self.followed.values().find_map(|followed| followed.fence.clone());
        let fence = fence.filter(|_| applies);
        if fence.is_some() == self.fenced.is_some() {
            return;
        }
        match &fence {
            Some(why) => log::warn!("paused subscriptions and responders: {why}"),
            None => log::info!("resumed subscriptions and responders"),
        }
        self.fenced = fence.clone();
        self.fenced_actor.do_send(Fence(fence));
    }
}

/// Asks whether this node holds the leader lock, and for how long a leader lock lives.
async fn ask(client: Result<reqwest::Client, String>, url: String) -> Result<Seen, String> {
    let client = client?;
    let base = patroni::base_url(&url);
    let (mut holds_lock, mut answer) = get(&client, &format!("{base}/primary")).await?;
    if patroni::member(&answer).is_none() {
        (holds_lock, answer) = get(&client, &format!("{base}/master")).await?;
    }
    let member = patroni::member(&answer).ok_or(NOT_PATRONI)?;
    let config = get(&client, &format!("{base}/config")).await;
    let ttl = config.ok().and_then(|(_, config)| patroni::ttl(&config));
    Ok(Seen {
        member,
        holds_lock,
        ttl,
    })
}

async fn who_am_i(client: Result<reqwest::Client, String>, url: String) -> Result<Member, String> {
    let client = client?;
    let base = patroni::base_url(&url);
    let (_, answer) = get(&client, &format!("{base}/patroni")).await?;
    let mut member = patroni::member(&answer).ok_or(NOT_PATRONI)?;
    if let Ok((_, cluster)) = get(&client, &format!("{base}/cluster")).await {
        patroni::complete(&mut member, base, &cluster);
    }
    Ok(member)
}

/// The innermost cause of an error; the outer ones repeat the address, which is in the log line already.
fn explain(error: reqwest::Error) -> String {
    let mut causes = vec![error.to_string()];
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    causes.pop().unwrap_or_default()
}

/// Whether the answer is a success, and the answer's body, which Patroni sends with failures as well.
async fn get(client: &reqwest::Client, url: &str) -> Result<(bool, Vec<u8>), String> {
    let mut response = client.get(url).send().await.map_err(explain)?;
    if response.status().is_redirection() {
        return Err("it redirects to an encrypted address, which patroni_url has to name itself".into());
    }
    let success = response.status().is_success();
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(explain)? {
        body.extend_from_slice(&part);
        if body.len() > MAX_ANSWER {
            return Err("its answer is too long".into());
        }
    }
    Ok((success, body))
}

impl Actor for PatroniWatcher {
    type Context = Context<Self>;
}

impl Handler<Follow> for PatroniWatcher {
    type Result = ();

    fn handle(&mut self, Follow { database, urls }: Follow, ctx: &mut Self::Context) {
        self.wanted.insert(database, urls);
        let wanted: BTreeSet<String> = self.wanted.values().flatten().cloned().collect();
        self.followed.retain(|url, followed| {
            let stays = wanted.contains(url);
            if !stays {
                ctx.cancel_future(followed.timer);
            }
            stays
        });
        for url in wanted {
            if !self.followed.contains_key(&url) {
                let timer = self.ask_later(url.clone(), Duration::ZERO, ctx);
                let followed = Followed {
                    timer,
                    failures: 0,
                    ttl: patroni::DEFAULT_TTL,
                    last: None,
                    fence: None,
                };
                self.followed.insert(url, followed);
            }
        }
        self.judge();
    }
}

impl Handler<WhoAmI> for PatroniWatcher {
    type Result = ResponseFuture<Result<Member, String>>;

    fn handle(&mut self, WhoAmI(url): WhoAmI, _: &mut Self::Context) -> Self::Result {
        Box::pin(who_am_i(self.clients.of(&url), url))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Answers one request after another; `{port}` stands for the server's own port.
    fn serve(answers: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = listener.local_addr().expect("its address").port();
        std::thread::spawn(move || {
            for (answer, stream) in answers.iter().zip(listener.incoming()) {
                let mut stream = stream.expect("a connection");
                let asked = stream.read(&mut [0; 4096]).expect("a request");
                assert!(asked > 0);
                let answer = answer.replace("{port}", &port.to_string());
                let written = stream.write_all(answer.as_bytes());
                written.expect("an answer");
            }
        });
        format!("http://127.0.0.1:{port}")
    }

    fn ask_for_body(url: &str) -> Result<(bool, Vec<u8>), String> {
        // Fails if another test has installed a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Clients::default().of(url).expect("a client");
        System::new().block_on(async { get(&client, url).await })
    }

    #[test]
    fn redirects_are_followed_to_plain_addresses() {
        let moved = serve(&[
            "HTTP/1.1 308 Moved\r\nLocation: http://127.0.0.1:{port}/here\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhere",
        ]);
        assert_eq!(ask_for_body(&moved), Ok((true, b"here".to_vec())));
        let encrypted = serve(&[
            "HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ]);
        let error = ask_for_body(&encrypted).expect_err("no answer of Patroni's");
        assert!(error.contains("redirects"), "{error}");
    }
}
