//! Certificates for loopback, made with the openssl program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::place::{self, WorkDir, give_to_server, run};

const DAYS: &str = "30";
const RENEW_AFTER: Duration = Duration::from_secs(20 * 24 * 3600);
const NAMES: &str = "DNS:localhost,IP:127.0.0.1";
const EXTENSIONS: &str =
    "extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n";

/// A CA, and a server's and a client's certificate signed by it, valid for localhost and 127.0.0.1. All files are
/// readable by the user that servers run as.
#[derive(Clone, Debug)]
pub struct Certs {
    directory: PathBuf,
    _work: Option<Arc<Owned>>,
}

struct Owned(WorkDir);

impl std::fmt::Debug for Owned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.path().display())
    }
}

impl Certs {
    /// The set that all tests share, made when it is missing or old. Do not change its files.
    pub fn shared() -> Self {
        let directory = place::directory("certs").join("shared");
        let _guard = place::lock("certs");
        let fresh = fs::metadata(&directory)
            .and_then(|meta| meta.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age < RENEW_AFTER));
        if !fresh {
            let unfinished = directory.with_extension("new");
            let _ = fs::remove_dir_all(&directory);
            let _ = fs::remove_dir_all(&unfinished);
            fs::create_dir(&unfinished).unwrap_or_else(|e| panic!("create {}: {e}", unfinished.display()));
            make(&unfinished, NAMES);
            fs::rename(&unfinished, &directory)
                .unwrap_or_else(|e| panic!("rename {}: {e}", unfinished.display()));
        }
        Self {
            directory,
            _work: None,
        }
    }

    /// A set of its own with a CA of its own, removed with the last clone: for a wrong CA, or to change files.
    pub fn fresh() -> Self {
        Self::with(NAMES)
    }

    /// Like [`Certs::fresh`], valid for this host name alone.
    pub fn for_name(name: &str) -> Self {
        Self::with(&format!("DNS:{name}"))
    }

    fn with(names: &str) -> Self {
        let work = WorkDir::new("fresh-certs");
        make(work.path(), names);
        Self {
            directory: work.path().to_owned(),
            _work: Some(Arc::new(Owned(work))),
        }
    }

    pub fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    pub fn server_cert(&self) -> PathBuf {
        self.directory.join("server.pem")
    }

    pub fn server_key(&self) -> PathBuf {
        self.directory.join("server.key")
    }

    pub fn client_cert(&self) -> PathBuf {
        self.directory.join("client.pem")
    }

    pub fn client_key(&self) -> PathBuf {
        self.directory.join("client.key")
    }
}

fn make(directory: &Path, names: &str) {
    let openssl = |args: &str| {
        run(Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(directory))
    };
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "req -x509 {new_key} -days {DAYS} -keyout ca.key -out ca.pem -subj /CN=test-ca \
         -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign"
    ));
    let extensions = format!("subjectAltName={names}\n{EXTENSIONS}");
    fs::write(directory.join("extensions"), extensions).expect("write the certificates' extensions");
    for name in ["server", "client"] {
        openssl(&format!(
            "req {new_key} -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {DAYS} \
             -out {name}.pem -extfile extensions"
        ));
    }
    for entry in fs::read_dir(directory).expect("list the certificates").flatten() {
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))
            .unwrap_or_else(|e| panic!("chmod {}: {e}", entry.path().display()));
        give_to_server(&entry.path());
    }
}
