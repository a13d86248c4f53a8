//! The CONNECT by which a NATS server lets a client in. Secret files are read at every connect. In the actor thread.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;

use super::files;
use crate::error::{Error, Kind, Result};
use crate::nats::credentials;
use crate::nats::wire::{Connect, ServerInfo};
use crate::settings::{Credential, Settings};

/// A credential that was read, as a CONNECT has it.
enum Proof {
    Nkey(String),
    /// JWT and seed.
    Jwt(String, String),
    Token(String),
    Password(String, String),
    None,
}

/// What to tell a server that has sent this INFO.
pub(super) async fn connect(settings: &Settings, name: &str, info: &ServerInfo) -> Result<Connect> {
    let mut connect = Connect {
        name: name.to_string(),
        lang: "rust",
        version: env!("LITMUS_PGNATS_VERSION"),
        protocol: 1,
        echo: true,
        headers: info.headers,
        // Needs headers.
        no_responders: info.headers,
        tls_required: settings.wants_tls(),
        ..Connect::default()
    };
    match proof(&settings.credential).await? {
        Proof::None => {}
        Proof::Token(token) => connect.auth_token = Some(token),
        Proof::Password(user, password) => (connect.user, connect.pass) = (Some(user), Some(password)),
        Proof::Nkey(seed) => {
            let (key, signature) = sign(&seed, info)?;
            (connect.nkey, connect.sig) = (Some(key), Some(signature));
        }
        Proof::Jwt(jwt, seed) => {
            let (_, signature) = sign(&seed, info)?;
            (connect.jwt, connect.sig) = (Some(jwt), Some(signature));
        }
    }
    Ok(connect)
}

/// The public key of a seed, and the seed's signature of the server's nonce.
fn sign(seed: &str, info: &ServerInfo) -> Result<(String, String)> {
    let refused =
        |why: &str| Error::new(Kind::AuthenticationRefused, "could not sign for the NATS server").detail(why);
    let pair = KeyPair::from_seed(seed).map_err(|_| refused("The NKey seed is not valid."))?;
    let signature = pair
        .sign(info.nonce.as_bytes())
        .map_err(|_| refused("The NKey is not one that can sign."))?;
    Ok((pair.public_key(), BASE64_URL_SAFE_NO_PAD.encode(signature)))
}

async fn proof(credential: &Credential) -> Result<Proof> {
    Ok(match credential {
        Credential::File(path) => {
            let text = files::text("credentials_path", path).await?;
            let read = credentials::read(&text);
            let (jwt, seed) = read.map_err(|why| files::file_error("credentials_path", path, why.into()))?;
            Proof::Jwt(jwt, seed)
        }
        Credential::Inline(credentials) => {
            let (jwt, seed) = credentials::read(credentials.reveal()).map_err(|why| {
                Error::new(Kind::IncompleteCredential, "option \"credentials\" is not usable").detail(why)
            })?;
            Proof::Jwt(jwt, seed)
        }
        Credential::NkeyFile(path) => {
            let seed = files::secret("nkey_seed_path", path).await?;
            if KeyPair::from_seed(&seed).is_err() {
                return Err(files::file_error(
                    "nkey_seed_path",
                    path,
                    "It holds no NKey seed.".into(),
                ));
            }
            Proof::Nkey(seed)
        }
        Credential::Nkey(seed) => Proof::Nkey(seed.reveal().to_string()),
        Credential::TokenFile(path) => Proof::Token(files::secret("token_path", path).await?),
        Credential::Token(token) => Proof::Token(token.reveal().to_string()),
        Credential::PasswordFile(user, path) => {
            Proof::Password(user.clone(), files::secret("password_path", path).await?)
        }
        Credential::Password(user, password) => Proof::Password(user.clone(), password.reveal().to_string()),
        Credential::None => Proof::None,
    })
}

/// The JWT of a credential, if it has one. Fails with `FileUnreadable` if the credential is in a file that cannot be
/// used.
pub async fn check(credential: &Credential) -> Result<Option<String>> {
    Ok(match proof(credential).await? {
        Proof::Jwt(jwt, _) => Some(jwt),
        _ => None,
    })
}
