//! Examines a NATS connection that is not there yet, from the options on: files, names, TCP, TLS, authentication, limits,
//! JetStream and Patroni. What `litmus_pgnats.doctor()` shows of a foreign server. In the actor thread, but for files.

use std::time::{Duration, Instant};

use actix::Addr;
use async_nats::Event;
use serde_json::Value;
use tokio::time::timeout;

use super::certificate::{self, Validity};
use super::connect::{self, Observer, connect};
use super::greeting::{Greeting, greet};
use super::jetstream::Api;
use super::patroni_watcher::{PatroniWatcher, WhoAmI};
use super::requester::Requester;
use crate::channel::frame::MAX_FRAME;
use crate::channel::message::Row;
use crate::error::Kind;
use crate::findings::{Findings, Status};
use crate::settings::options::Host;
use crate::settings::{Credential, Settings, Verify};

/// So many times as long as a step may take, at most, may all of them.
pub const STEPS: u32 = 6;
/// What the connection is called in NATS's monitoring.
const NAME: &str = "litmus_pgnats/doctor";
/// Advice on what cannot be reached.
const CHECK_HOST: &str =
    "Check the options \"host\" and \"port\", the network and the NATS server, from this server's machine.";

/// All that can be found out; each step within `limit`, and all within [`STEPS`] times that.
pub async fn examine(settings: Settings, patroni: Addr<PatroniWatcher>, limit: Duration) -> Vec<Row> {
    let mut findings = Findings::default();
    let all = examine_all(&settings, patroni, limit, &mut findings);
    if timeout(limit * STEPS, all).await.is_err() {
        findings.wrong("connection", "", "the examination took too long", CHECK_HOST);
    }
    findings.into_rows()
}

async fn examine_all(
    settings: &Settings,
    patroni: Addr<PatroniWatcher>,
    limit: Duration,
    findings: &mut Findings,
) {
    files(settings, findings).await;
    for host in &settings.hosts {
        reach(settings, host, limit, findings).await;
    }
    match connect(settings, &settings.hosts, NAME, limit, Nobody).await {
        Ok(client) => {
            let info = client.server_info();
            let found = format!(
                "the NATS server accepts {}",
                credential_name(&settings.credential)
            );
            findings.ok("authentication", "", found);
            max_payload(info.max_payload, findings);
            if let Ok(client) = Requester::start(client).await {
                jetstream(settings, client, limit, findings).await;
            }
        }
        Err(error) => {
            let (check, advice) = match error.kind {
                Kind::AuthenticationRefused => (
                    "authentication",
                    "Correct the credential: the options of the foreign server, the user mapping, or the file.",
                ),
                Kind::TlsFailed => (
                    "TLS",
                    "Check \"tls_ca_path\", the certificate's names and dates, and \"tls_cert_path\" if the server wants one.",
                ),
                // Shown already.
                Kind::FileUnreadable => ("", ""),
                _ => ("connection", CHECK_HOST),
            };
            if !check.is_empty() {
                findings.failed(check, "", &error, advice);
            }
        }
    }
    if let Some(url) = &settings.patroni_url {
        ask_patroni(url, patroni, limit, findings).await;
    }
}

/// Whether the files that options name can be used, and when certificates among them end.
async fn files(settings: &Settings, findings: &mut Findings) {
    let tls = &settings.tls;
    let mut certificates = Vec::new();
    if let Verify::Ca(path) = &tls.verify {
        certificates.push(("tls_ca_path", path));
    }
    if let Some((certificate, key)) = &tls.client {
        certificates.push(("tls_cert_path", certificate));
        match connect::private_key("tls_key_path", key).await {
            Ok(_) => findings.ok("file", "tls_key_path", format!("\"{key}\" is readable")),
            Err(error) => findings.failed("file", "tls_key_path", &error, READABLE),
        }
    }
    for (option, path) in certificates {
        match connect::certificates(option, path).await {
            Ok(chain) => {
                let (status, found, advice) = judge(chain.first().map(AsRef::as_ref));
                findings.add("file", option, status, format!("\"{path}\": {found}"), advice);
            }
            Err(error) => findings.failed("file", option, &error, READABLE),
        }
    }
    let (option, path) = match &settings.credential {
        Credential::NkeyFile(path) => ("nkey_seed_path", path),
        Credential::TokenFile(path) => ("token_path", path),
        Credential::PasswordFile(_, path) => ("password_path", path),
        _ => return,
    };
    match connect::check_credential(&settings.credential).await {
        Ok(()) => findings.ok("file", option, format!("\"{path}\" is readable")),
        Err(error) => findings.failed("file", option, &error, READABLE),
    }
}

const READABLE: &str =
    "The operating system's user that runs PostgreSQL has to be able to read it, on each node.";

/// Whether a host can be reached: its name, TCP, who answers there, and TLS.
async fn reach(settings: &Settings, host: &Host, limit: Duration, findings: &mut Findings) {
    let object = host.to_string();
    let began = Instant::now();
    let resolved = timeout(limit, tokio::net::lookup_host((host.name.as_str(), host.port))).await;
    let addresses: Vec<_> = match resolved {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => {
            findings.wrong("DNS", &object, error.to_string(), CHECK_HOST);
            return;
        }
        Err(_) => {
            findings.wrong("DNS", &object, "no answer in time", CHECK_HOST);
            return;
        }
    };
    let names: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let found = format!("{} in {}", names.join(", "), took(began));
    findings.ok("DNS", &object, found);
    let began = Instant::now();
    let greeting = match greet(&addresses, host, &settings.tls, limit).await {
        Ok(greeting) => greeting,
        Err(error) => return findings.failed("TCP", &object, &error, CHECK_HOST),
    };
    let Greeting { server, tls } = greeting;
    let found = format!("nats-server {server} answers in {}", took(began));
    findings.ok("TCP", &object, found);
    let is_secret = !matches!(settings.credential, Credential::None);
    match tls {
        None if is_secret && !is_loopback(&addresses) => findings.add(
            "TLS",
            &object,
            Status::Warning,
            "not used: credentials and messages pass the network unencrypted",
            "Set up TLS in the NATS server, and the option \"tls_ca_path\".",
        ),
        None => findings.ok("TLS", &object, "not used"),
        Some(Err(error)) => findings.failed("TLS", &object, &error, "Look into the NATS server's log."),
        Some(Ok(secured)) => {
            let (mut status, found, mut advice) = judge(secured.certificate.as_deref());
            if settings.tls.verify == Verify::Insecure && status == Status::Ok {
                status = Status::Warning;
                advice = "tls_insecure verifies nothing: whoever is between can read all. Set \"tls_ca_path\" instead.";
            }
            let found = format!("{}, {found}", secured.version);
            findings.add("TLS", &object, status, found, advice);
        }
    }
}

fn is_loopback(addresses: &[std::net::SocketAddr]) -> bool {
    addresses.iter().all(|address| address.ip().is_loopback())
}

/// Whether a certificate is near its end, or past it.
fn judge(certificate: Option<&[u8]>) -> (Status, String, &'static str) {
    const RENEW: &str = "Renew the certificate; a file that is replaced is read at the next connect.";
    let Some(certificate) = certificate.and_then(certificate::read) else {
        return (Status::Warning, "no certificate that can be read".into(), "");
    };
    let status = match certificate.validity() {
        Validity::Good => Status::Ok,
        Validity::EndsSoon => Status::Warning,
        Validity::NotYet | Validity::Over => Status::Error,
    };
    let advice = if status == Status::Ok { "" } else { RENEW };
    (status, certificate.to_string(), advice)
}

fn max_payload(bytes: usize, findings: &mut Findings) {
    let found = format!("{bytes} bytes");
    if bytes > MAX_FRAME {
        let advice = "Messages larger than 64 MiB cannot be received or sent by this extension.";
        findings.warn("max_payload", "", found, advice);
    } else {
        findings.ok("max_payload", "", found);
    }
}

async fn jetstream(settings: &Settings, client: Requester, limit: Duration, findings: &mut Findings) {
    let domain = settings.domain.clone();
    let object = domain
        .as_ref()
        .map_or(String::new(), |domain| format!("domain {domain}"));
    match Api::to(client, domain, limit).request("INFO", &Value::Null).await {
        Ok(info) => {
            let number = |name: &str| info.get(name).and_then(Value::as_i64).unwrap_or(0);
            let found = format!(
                "enabled: {} streams, {} consumers, {} bytes in files",
                number("streams"),
                number("consumers"),
                number("storage")
            );
            findings.ok("JetStream", &object, found);
        }
        Err(error) => {
            // Who has named a domain wants it.
            let status = if object.is_empty() {
                Status::Warning
            } else {
                Status::Error
            };
            let advice = "Streams, the outbox, key-value buckets and object stores need it: check \"domain\", the NATS \
                          server's configuration, and the user's rights to publish to $JS.API.";
            findings.add("JetStream", &object, status, error.to_string(), advice);
        }
    }
}

async fn ask_patroni(url: &str, patroni: Addr<PatroniWatcher>, limit: Duration, findings: &mut Findings) {
    let asked = timeout(limit, patroni.send(WhoAmI(url.to_string()))).await;
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
            findings.ok("Patroni", url, found);
        }
        Err(why) => {
            let advice = "Check the option \"patroni_url\" and that Patroni runs on this node.";
            findings.add(
                "Patroni",
                url,
                Status::Error,
                format!("cannot be asked: {why}"),
                advice,
            );
        }
    }
}

fn credential_name(credential: &Credential) -> String {
    match credential {
        Credential::NkeyFile(_) | Credential::Nkey(_) => "the NKey".into(),
        Credential::TokenFile(_) | Credential::Token(_) => "the token".into(),
        Credential::PasswordFile(user, _) | Credential::Password(user, _) => format!("user \"{user}\""),
        Credential::None => "a connection without a credential".into(),
    }
}

fn took(began: Instant) -> String {
    format!("{:.1} ms", began.elapsed().as_secs_f64() * 1000.0)
}

/// Nobody is told of what becomes of the connection: it ends with the examination.
#[derive(Clone)]
struct Nobody;

impl Observer for Nobody {
    fn lost(&self) {}

    fn event(&self, _: Event) {}
}
