//! What a nats-server is started with.

use std::path::Path;

use async_nats::ConnectOptions;
use nkeys::KeyPair;

use super::certs::Certs;
use super::world;

/// The configuration of a nats-server: everything but its addresses. Chain the methods, then
/// [`NatsConfig::start`](super::nats::NatsServer).
#[derive(Clone, Debug, Default)]
pub struct NatsConfig {
    auth: Auth,
    tls: Option<Tls>,
    jetstream: bool,
    domain: Option<String>,
    text: String,
    pub(super) args: Vec<String>,
    pub(super) is_old: bool,
}

#[derive(Clone, Debug, Default)]
enum Auth {
    #[default]
    Nobody,
    User {
        user: String,
        password: String,
    },
    Token(String),
    Nkey {
        seed: String,
    },
}

#[derive(Clone, Debug)]
struct Tls {
    certs: Certs,
    mutual: bool,
}

impl NatsConfig {
    /// The oldest nats-server that is supported, instead of the newest.
    pub fn old(mut self) -> Self {
        self.is_old = true;
        self
    }

    /// Only this user with this password may connect.
    pub fn user(mut self, user: &str, password: &str) -> Self {
        self.auth = Auth::User {
            user: user.into(),
            password: password.into(),
        };
        self
    }

    /// Only clients with this token may connect.
    pub fn token(mut self, token: &str) -> Self {
        self.auth = Auth::Token(token.into());
        self
    }

    /// Only the owner of this user seed (`SU...`) may connect.
    pub fn nkey(mut self, seed: &str) -> Self {
        self.auth = Auth::Nkey { seed: seed.into() };
        self
    }

    /// Clients must use TLS.
    pub fn tls(mut self, certs: &Certs) -> Self {
        self.tls = Some(Tls {
            certs: certs.clone(),
            mutual: false,
        });
        self
    }

    /// Clients must use TLS and show a certificate of the same CA.
    pub fn mutual_tls(mut self, certs: &Certs) -> Self {
        self.tls = Some(Tls {
            certs: certs.clone(),
            mutual: true,
        });
        self
    }

    /// With JetStream, which keeps its files in the server's own directory.
    pub fn jetstream(mut self) -> Self {
        self.jetstream = true;
        self
    }

    /// With JetStream as this domain of a network of hub and leaf nodes.
    pub fn domain(mut self, domain: &str) -> Self {
        self.domain = Some(domain.into());
        self.jetstream()
    }

    /// More of nats-server's own configuration language, say `max_payload: 1000`.
    pub fn config(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self.text.push('\n');
        self
    }

    /// A flag of the command line, say `-DV`.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Whether the extension's user has few rights, because the test says nothing of users.
    pub(super) fn is_narrow(&self) -> bool {
        let of_users = ["authorization", "accounts", "operator:", "no_auth_user"];
        world::is_narrow() && !of_users.iter().any(|word| self.text.contains(word))
    }

    /// The configuration file.
    pub(super) fn render(&self, port: u16, monitor_port: u16, store: &Path) -> String {
        let mut text = format!("host: 127.0.0.1\nport: {port}\nhttp: \"127.0.0.1:{monitor_port}\"\n");
        text += &match &self.auth {
            Auth::Nobody if self.is_narrow() => world::users(),
            Auth::Nobody => String::new(),
            Auth::User { user, password } => {
                format!("authorization {{ user: {user:?}, password: {password:?} }}\n")
            }
            Auth::Token(token) => format!("authorization {{ token: {token:?} }}\n"),
            Auth::Nkey { seed } => {
                let public = KeyPair::from_seed(seed)
                    .unwrap_or_else(|e| panic!("the seed of an nkey user: {e}"))
                    .public_key();
                format!("authorization {{ users: [ {{ nkey: {public} }} ] }}\n")
            }
        };
        if let Some(Tls { certs, mutual }) = &self.tls {
            text += &format!(
                "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: {mutual} }}\n",
                certs.server_cert(),
                certs.server_key(),
                certs.ca(),
            );
        }
        if self.jetstream {
            let domain = self.domain.as_ref();
            let domain = domain.map_or_else(String::new, |domain| format!(", domain: {domain}"));
            text += &format!("jetstream {{ store_dir: {store:?}{domain} }}\n");
        }
        text + &self.text
    }

    /// `nats` or `tls`.
    pub(super) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "tls" } else { "nats" }
    }

    /// The options with which async-nats is let in.
    pub(super) fn client_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new();
        options = match self.auth.clone() {
            Auth::Nobody if self.is_narrow() => options.user_and_password("admin".into(), "admin".into()),
            Auth::Nobody => options,
            Auth::User { user, password } => options.user_and_password(user, password),
            Auth::Token(token) => options.token(token),
            Auth::Nkey { seed } => options.nkey(seed),
        };
        if let Some(Tls { certs, mutual }) = &self.tls {
            options = options.require_tls(true).add_root_certificates(certs.ca());
            if *mutual {
                options = options.add_client_certificate(certs.client_cert(), certs.client_key());
            }
        }
        options
    }
}
