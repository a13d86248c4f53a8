//! Examines what `litmus_pgnats.doctor()` shows of a foreign server, with a connection of its own: files, names, TCP,
//! TLS, authentication, limits, JetStream and Patroni. In the actor thread; files are read in tokio's blocking threads.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use actix::Addr;
use async_nats::jetstream::account::Account;
use futures::future::join_all;
use serde_json::Value;
use tokio::time::timeout;

use super::certificate::{self, Validity};
use super::tls_probe::{Probe, Secured, greet};
use crate::actors::client::connect::{self, connect};
use crate::actors::client::interface::{Candidate, InboxState, Observer};
use crate::actors::client::{NatsClient, files, tls};
use crate::actors::connection::delivery::no_inbox;
use crate::actors::ha::PatroniWatcher;
use crate::actors::ha::interface::WhoAmI;
use crate::actors::jetstream::api::Api;
use crate::channel::frame::MAX_FRAME;
use crate::channel::message::EXAMINE_STEPS;
use crate::error::{Kind, Result};
use crate::findings::{CheckStatus, Finding, Findings};
use crate::nats::message::Outbound;
use crate::nats::server_error::ServerError;
use crate::patroni;
use crate::settings::options::Host;
use crate::settings::{Credential, Settings, Verify};

/// The connection's name in NATS's monitoring.
const NAME: &str = "litmus_pgnats/doctor";
/// Advice on a host that cannot be reached.
const CHECK_HOST: &str =
    "Check the options \"host\" and \"port\", the network and the NATS server, from this server's machine.";

/// Examines settings and returns what was found. `running` says whether the connection that is in use has these
/// settings; `None` if there is no such connection. Each step may take `limit`, and all together [`EXAMINE_STEPS`]
/// times that.
pub async fn examine(
    settings: Settings,
    running: impl Future<Output = Option<bool>>,
    watcher: Addr<PatroniWatcher>,
    limit: Duration,
) -> Vec<Finding> {
    let mut findings = Findings::default();
    if running.await == Some(false) {
        let found = "the running connection has other options than the foreign server has now";
        let advice = "SELECT litmus_pgnats_reload_conf() applies them.";
        findings.warn("options", "", found, advice);
    }
    let all = examine_all(&settings, watcher, limit, &mut findings);
    if timeout(limit * EXAMINE_STEPS, all).await.is_err() {
        findings.wrong("connection", "", "the examination took too long", CHECK_HOST);
    }
    findings.into_vec()
}

async fn examine_all(
    settings: &Settings,
    watcher: Addr<PatroniWatcher>,
    limit: Duration,
    findings: &mut Findings,
) {
    option_files(settings, findings).await;
    let hosts = settings.hosts.iter().map(|host| async move {
        let mut findings = Findings::default();
        let client = visit(settings, host, limit, &mut findings).await;
        (findings.into_vec(), client)
    });
    let mut connected = None;
    for (found, client) in join_all(hosts).await {
        findings.extend(found);
        connected = connected.or(client);
    }
    if let Some(client) = connected {
        max_payload(client.info().max_payload, findings);
        replies(&client, limit, findings).await;
        jetstream(settings, client, limit, findings).await;
    }
    if let Some(url) = &settings.patroni_url {
        ask_patroni(url, watcher, limit, findings).await;
    }
}

/// Examines one host; returns a client that is connected to it, if the connection succeeds.
async fn visit(
    settings: &Settings,
    host: &Host,
    limit: Duration,
    findings: &mut Findings,
) -> Option<NatsClient> {
    let object = host.to_string();
    let tls = reach(settings, host, limit, findings).await?;
    let candidate = Candidate::from(host.clone());
    let outcome = connect(settings, std::slice::from_ref(&candidate), NAME, limit, Nobody).await;
    if let Err(error) = &outcome
        && error.kind == Kind::TlsFailed
    {
        let advice = "Check \"tls_ca_path\", the certificate's names and dates, and the client certificate if the server \
                      wants one.";
        let found = format!("{error}; {}", tls.found);
        findings.wrong(
            "TLS",
            &object,
            found,
            if tls.status == CheckStatus::Error {
                tls.advice
            } else {
                advice
            },
        );
        return None;
    }
    findings.add("TLS", &object, tls.status, tls.found, tls.advice);
    match outcome {
        Ok((client, _)) => {
            let found = format!(
                "the NATS server accepts {}",
                credential_name(&settings.credential)
            );
            findings.ok("authentication", &object, found);
            Some(client)
        }
        Err(error) => {
            match error.kind {
                Kind::AuthenticationRefused => {
                    let advice =
                        "Correct the credential: in the foreign server, the user mapping, or the file.";
                    findings.failed("authentication", &object, &error, advice);
                }
                Kind::FileUnreadable => {
                    let found = "not tried, because a file cannot be used";
                    findings.wrong("authentication", &object, found, "See the check of the file.");
                }
                // The connection in use may be what takes the last place.
                Kind::TooManyConnections => {
                    let hint = error.hint.clone().unwrap_or_default();
                    findings.warn("connection", &object, error.to_string(), &hint);
                }
                _ => findings.failed("connection", &object, &error, CHECK_HOST),
            }
            None
        }
    }
}

/// Checks whether the files that options name can be used, and when certificates among them end.
async fn option_files(settings: &Settings, findings: &mut Findings) {
    let tls = &settings.tls;
    let mut certificates = Vec::new();
    if let Verify::Ca(path) = &tls.verify {
        certificates.push(("tls_ca_path", path));
    }
    if let Some((certificate, key)) = &tls.client {
        certificates.push(("tls_cert_path", certificate));
        match files::private_key("tls_key_path", key).await {
            Ok(_) => findings.ok("file", "tls_key_path", format!("\"{key}\" is readable")),
            Err(error) => findings.failed("file", "tls_key_path", &error, READABLE),
        }
    }
    for (option, path) in certificates {
        match files::certificates(option, path).await {
            Ok(chain) => {
                let (status, found, advice) = judge(chain.certificates.first().map(AsRef::as_ref));
                findings.add("file", option, status, format!("\"{path}\": {found}"), advice);
                if chain.malformed > 0 {
                    let found = format!(
                        "\"{path}\": {} entries are no certificates, and left out",
                        chain.malformed
                    );
                    findings.warn("file", option, found, "Write the file anew from its source.");
                }
            }
            Err(error) => findings.failed("file", option, &error, READABLE),
        }
    }
    credential_file(&settings.credential, findings).await;
}

/// Checks the file of a credential, and when its JWT ends, if it has one.
async fn credential_file(credential: &Credential, findings: &mut Findings) {
    let (option, path) = match credential {
        Credential::NkeyFile(path) => ("nkey_seed_path", path),
        Credential::TokenFile(path) => ("token_path", path),
        Credential::PasswordFile(_, path) => ("password_path", path),
        Credential::File(path) => ("credentials_path", path),
        Credential::Inline(_) => ("credentials", &String::new()),
        _ => return,
    };
    match connect::check_credential(credential).await {
        Ok(Some(jwt)) => {
            let (validity, found) = certificate::jwt(&jwt);
            let found = if path.is_empty() {
                found
            } else {
                format!("\"{path}\": {found}")
            };
            let (status, advice) = match validity {
                Validity::Good => (CheckStatus::Ok, ""),
                Validity::EndsSoon => (CheckStatus::Warning, RENEW_JWT),
                Validity::NotYet | Validity::Over => (CheckStatus::Error, RENEW_JWT),
            };
            findings.add("file", option, status, found, advice);
        }
        Ok(None) => findings.ok("file", option, format!("\"{path}\" is readable")),
        Err(error) => findings.failed("file", option, &error, READABLE),
    }
}

const RENEW_JWT: &str = "Issue another JWT; a file that is replaced is read at the next connect.";
const READABLE: &str = "It has to be what the option wants, and readable for the operating system's user that runs \
                        PostgreSQL, on each node.";

/// The outcome of TLS with a host.
struct TlsState {
    status: CheckStatus,
    found: String,
    advice: &'static str,
}

/// Checks whether a host can be reached: its name, TCP, and what answers there. Returns the state of its TLS; `None` if
/// the host cannot be reached.
async fn reach(
    settings: &Settings,
    host: &Host,
    limit: Duration,
    findings: &mut Findings,
) -> Option<TlsState> {
    let object = host.to_string();
    let began = Instant::now();
    let resolved = timeout(limit, tokio::net::lookup_host((host.name.as_str(), host.port))).await;
    let resolved = resolved.map_err(|_| "no answer in time".to_string());
    let addresses: Vec<_> = match resolved.and_then(|found| found.map_err(|error| error.to_string())) {
        Ok(addresses) => addresses.collect(),
        Err(why) => {
            findings.wrong("DNS", &object, why, CHECK_HOST);
            return None;
        }
    };
    let names: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let found = format!("{} in {}", names.join(", "), took(began));
    findings.ok("DNS", &object, found);
    let began = Instant::now();
    let Probe { server, tls } = match greet(&addresses, host, &settings.tls, limit).await {
        Ok(greeting) => greeting,
        Err(error) => {
            findings.failed("TCP", &object, &error, CHECK_HOST);
            return None;
        }
    };
    let found = format!("nats-server {server} answers in {}", took(began));
    findings.ok("TCP", &object, found);
    Some(tls_state(settings, &addresses, tls))
}

/// What is to be said of a connection's TLS; `tls` is `None` without.
fn tls_state(settings: &Settings, addresses: &[SocketAddr], tls: Option<Result<Secured>>) -> TlsState {
    let is_secret = !matches!(settings.credential, Credential::None);
    let state = |status, found: &str, advice| TlsState {
        status,
        found: found.to_string(),
        advice,
    };
    match tls {
        None if is_secret && !is_loopback(addresses) => state(
            CheckStatus::Warning,
            "not used: credentials and messages pass the network unencrypted",
            "Set up TLS in the NATS server, and the option \"tls_ca_path\".",
        ),
        None => state(CheckStatus::Ok, "not used", ""),
        Some(Err(error)) if error.message == tls::NO_TLS_SETUP => state(
            CheckStatus::Error,
            &error.to_string(),
            "Check that the file of \"tls_key_path\" is the key of that of \"tls_cert_path\".",
        ),
        Some(Err(error)) => state(
            CheckStatus::Error,
            &error.to_string(),
            "Look into the NATS server's configuration and log, and check \"tls_ca_path\" and the other options of TLS.",
        ),
        Some(Ok(secured)) => {
            let (mut status, found, mut advice) = judge(secured.certificate.as_deref());
            if settings.tls.verify == Verify::Insecure && status == CheckStatus::Ok {
                status = CheckStatus::Warning;
                advice = "tls_insecure verifies nothing: whoever is between can read all. Set \"tls_ca_path\" instead.";
            }
            state(status, &format!("{}, {found}", secured.version), advice)
        }
    }
}

fn is_loopback(addresses: &[SocketAddr]) -> bool {
    addresses.iter().all(|address| address.ip().is_loopback())
}

/// Status, text and advice for a certificate: whether it is near its end, or past it.
fn judge(certificate: Option<&[u8]>) -> (CheckStatus, String, &'static str) {
    const RENEW: &str = "Renew the certificate; a file that is replaced is read at the next connect.";
    let Some(certificate) = certificate.and_then(certificate::read) else {
        return (CheckStatus::Warning, "no certificate that can be read".into(), "");
    };
    let status = match certificate.validity() {
        Validity::Good => CheckStatus::Ok,
        Validity::EndsSoon => CheckStatus::Warning,
        Validity::NotYet | Validity::Over => CheckStatus::Error,
    };
    let advice = if status == CheckStatus::Ok { "" } else { RENEW };
    (status, certificate.to_string(), advice)
}

/// Says whether replies to requests can arrive.
async fn replies(client: &NatsClient, limit: Duration, findings: &mut Findings) {
    let inbox = client.inbox();
    if inbox == InboxState::Open {
        return;
    }
    let error = no_inbox(client, inbox);
    if inbox == InboxState::Forbidden && may_only_subscribe(client, limit).await {
        let found =
            "the user may subscribe, but not publish, nor get replies: subscriptions work, and nothing else";
        let advice = "If more is wanted, allow it: docs/nats-permissions.md names the subjects.";
        return findings.warn("replies", "", found, advice);
    }
    findings.failed("replies", "", &error, "");
}

/// Whether the user may publish to none of the subjects that others use first.
async fn may_only_subscribe(client: &NatsClient, limit: Duration) -> bool {
    let subjects = [client.new_inbox(), "$JS.API.INFO".to_string()];
    for subject in &subjects {
        let message = Outbound {
            subject: subject.clone(),
            ..Outbound::default()
        };
        if client.publish(&message).await.is_err() {
            return false;
        }
    }
    if !matches!(timeout(limit, client.round_trip()).await, Ok(Ok(_))) {
        return false;
    }
    let errors = client.take_news().errors;
    let is_refused = |subject: &String| {
        let mut refusals = errors.iter().map(|text| ServerError::of(text));
        refusals.any(|refusal| refusal == ServerError::PublishForbidden(subject.clone()))
    };
    subjects.iter().all(is_refused)
}

fn max_payload(bytes: u64, findings: &mut Findings) {
    let found = format!("{bytes} bytes");
    if bytes > MAX_FRAME as u64 {
        let advice = "Messages larger than 64 MiB cannot be received or sent by this extension.";
        findings.warn("max_payload", "", found, advice);
    } else {
        findings.ok("max_payload", "", found);
    }
}

async fn jetstream(settings: &Settings, client: NatsClient, limit: Duration, findings: &mut Findings) {
    let domain = settings.domain.clone();
    let object = domain
        .as_ref()
        .map_or(String::new(), |domain| format!("domain {domain}"));
    let asked = Api::to(client, domain, limit);
    match asked.request::<Account>("INFO", &Value::Null).await {
        Ok(account) => {
            let found = format!(
                "enabled: {} streams, {} consumers, {} bytes in files",
                account.streams, account.consumers, account.storage
            );
            findings.ok("JetStream", &object, found);
        }
        Err(error) => {
            // A domain that is named is wanted, so a missing JetStream is an error there.
            let status = if object.is_empty() {
                CheckStatus::Warning
            } else {
                CheckStatus::Error
            };
            let advice = "Streams, the outbox, key-value buckets and object stores need it: check \"domain\", the NATS \
                          server's configuration, and the user's rights to publish to $JS.API.";
            findings.add("JetStream", &object, status, error.to_string(), advice);
        }
    }
}

async fn ask_patroni(url: &str, watcher: Addr<PatroniWatcher>, limit: Duration, findings: &mut Findings) {
    let object = patroni::without_password(url);
    let asked = timeout(limit, watcher.send(WhoAmI(url.to_string()))).await;
    let answer = match asked {
        Ok(Ok(answer)) => answer,
        _ => Err("no answer in time".into()),
    };
    match answer {
        Ok(member) => {
            let found = format!(
                "member {} of {}, role {}",
                member.name.as_deref().unwrap_or("unknown"),
                member.scope.as_deref().unwrap_or("unknown"),
                member.role.as_deref().unwrap_or("unknown")
            );
            findings.ok("Patroni", &object, found);
        }
        Err(why) => {
            let advice = "Check the option \"patroni_url\" and that Patroni runs on this node.";
            findings.add(
                "Patroni",
                &object,
                CheckStatus::Error,
                format!("cannot be asked: {why}"),
                advice,
            );
        }
    }
}

fn credential_name(credential: &Credential) -> String {
    match credential {
        Credential::File(_) | Credential::Inline(_) => "the JWT".into(),
        Credential::NkeyFile(_) | Credential::Nkey(_) => "the NKey".into(),
        Credential::TokenFile(_) | Credential::Token(_) => "the token".into(),
        Credential::PasswordFile(user, _) | Credential::Password(user, _) => format!("user \"{user}\""),
        Credential::None => "a connection without a credential".into(),
    }
}

fn took(began: Instant) -> String {
    format!("{:.1} ms", began.elapsed().as_secs_f64() * 1000.0)
}

/// Takes reports of the connection and ignores them, because the connection ends with the examination.
#[derive(Clone)]
struct Nobody;

impl Observer for Nobody {
    fn lost(&self, _: &str) {}

    fn news(&self) {}
}
