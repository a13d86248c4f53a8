//! TLS, mutual TLS and `tls_insecure`, each against a nats-server that insists on it.

mod foreign_server;
mod support;

use foreign_server::*;
use support::{Certs, NatsServer, Session, WireStub};

/// The paths of a set of certificates as option values.
struct Paths {
    ca: String,
    cert: String,
    key: String,
}

impl Paths {
    fn of(certs: &Certs) -> Self {
        Self {
            ca: text(&certs.ca()),
            cert: text(&certs.client_cert()),
            key: text(&certs.client_key()),
        }
    }

    fn ca(&self) -> (&str, &str) {
        ("tls_ca_path", &self.ca)
    }

    /// The client's certificate and key.
    fn client(&self) -> [(&str, &str); 2] {
        [("tls_cert_path", &self.cert), ("tls_key_path", &self.key)]
    }

    fn mutual(&self) -> [(&str, &str); 3] {
        let [cert, key] = self.client();
        [self.ca(), cert, key]
    }
}

const INSECURE: (&str, &str) = ("tls_insecure", "true");

/// What a failed handshake is told as; the session works on.
async fn handshake_fails(session: &Session) -> String {
    let report = refused(session, INFO).await;
    assert_eq!(report.code, code::TLS, "{report:?}");
    assert!(report.message.starts_with("TLS handshake"), "{report:?}");
    assert!(report.hint.unwrap_or_default().contains("tls_ca_path"));
    run(session, "SELECT 1").await;
    report.detail.unwrap_or_default()
}

/// Whether the connection is encrypted, as the NATS server sees it.
async fn is_encrypted(session: &Session, nats: &NatsServer) -> bool {
    let id = client_id(session).await;
    let connections = nats.monitor(&format!("/connz?cid={id}")).await;
    connections["connections"][0]["tls_version"].is_string()
}

// The plain case: the CA's certificate verifies the server, by address and by name.
#[tokio::test]
async fn the_ca_verifies_the_server() {
    let (_pg, session) = ready().await;
    let certs = Certs::shared();
    let nats = NatsServer::builder().tls(&certs).start().await;
    create_for(&session, nats.port(), &[Paths::of(&certs).ca()]).await;
    message_arrives(&session, &nats).await;
    assert!(is_encrypted(&session, &nats).await);
    run(&session, &alter(&[("SET host", "localhost")])).await;
    run(&session, RELOAD).await;
    message_arrives(&session, &nats).await;
    assert!(is_encrypted(&session, &nats).await);
}

// Another CA is another authority: the connection is refused, until the right CA is given.
#[tokio::test]
async fn another_ca_is_refused() {
    let (_pg, session) = ready().await;
    let (certs, other) = (Certs::shared(), Certs::fresh());
    let nats = NatsServer::builder().tls(&certs).start().await;
    create_for(&session, nats.port(), &[Paths::of(&other).ca()]).await;
    let why = handshake_fails(&session).await;
    assert!(why.contains("certificate"), "{why}");
    run(&session, &alter(&[("SET tls_ca_path", &Paths::of(&certs).ca)])).await;
    run(&session, RELOAD).await;
    message_arrives(&session, &nats).await;
}

// A certificate for another host proves nothing. 0.0.0.0 leads to this machine but is not in the certificate.
#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let (_pg, session) = ready().await;
    let certs = Certs::shared();
    let nats = NatsServer::builder().tls(&certs).start().await;
    create_for(&session, nats.port(), &[Paths::of(&certs).ca()]).await;
    run(&session, &alter(&[("SET host", "0.0.0.0")])).await;
    let why = handshake_fails(&session).await;
    assert!(why.contains("not valid for name"), "{why}");
}

// Who gives a CA wants TLS: a server without it is refused, and does not get the credential in the clear.
#[tokio::test]
async fn a_server_without_tls_is_refused() {
    let (_pg, session) = ready().await;
    let paths = Paths::of(&Certs::shared());
    let (nats, stub) = (NatsServer::start().await, WireStub::start());
    for tls in [paths.ca(), INSECURE] {
        create_for(&session, nats.port(), &[tls, ("token", "t")]).await;
        handshake_fails(&session).await;
        run(&session, "DROP SERVER nats").await;
    }
    create_for(&session, stub.port(), &[paths.ca(), ("token", "t")]).await;
    handshake_fails(&session).await;
    assert_eq!(stub.connects().len(), 0);
}

// Without TLS options a server that demands TLS is verified by the platform's certificates, so a private CA fails.
#[tokio::test]
async fn a_private_ca_must_be_given() {
    let (_pg, session) = ready().await;
    let nats = NatsServer::builder().tls(&Certs::shared()).start().await;
    create_for(&session, nats.port(), &[]).await;
    handshake_fails(&session).await;
}

// Mutual TLS: the NATS server asks for a certificate, and takes only one of its CA.
#[tokio::test]
async fn mutual_tls_takes_the_clients_certificate() {
    let (_pg, session) = ready().await;
    let (certs, other) = (Certs::shared(), Certs::fresh());
    let (paths, others) = (Paths::of(&certs), Paths::of(&other));
    let nats = NatsServer::builder().mutual_tls(&certs).start().await;
    create_for(&session, nats.port(), &paths.mutual()).await;
    message_arrives(&session, &nats).await;
    run(&session, "DROP SERVER nats").await;

    create_for(&session, nats.port(), &[paths.ca()]).await;
    handshake_fails(&session).await;
    let [cert, key] = others.client();
    let add = alter(&[("ADD tls_cert_path", cert.1), ("ADD tls_key_path", key.1)]);
    run(&session, &add).await;
    assert_eq!(refused(&session, RELOAD).await.code, code::TLS);
    let set = alter(&[
        ("SET tls_cert_path", &paths.cert),
        ("SET tls_key_path", &paths.key),
    ]);
    run(&session, &set).await;
    run(&session, RELOAD).await;
    message_arrives(&session, &nats).await;
}

// tls_insecure is for self-signed servers such as Litmus Edge: encrypted, whoever the server is.
#[tokio::test]
async fn insecure_takes_any_certificate() {
    let (_pg, session) = ready().await;
    let certs = Certs::fresh();
    let nats = NatsServer::builder().tls(&certs).start().await;
    create_for(&session, nats.port(), &[INSECURE]).await;
    message_arrives(&session, &nats).await;
    assert!(is_encrypted(&session, &nats).await);
    // Not even the name has to fit.
    run(&session, &alter(&[("SET host", "0.0.0.0")])).await;
    run(&session, RELOAD).await;
    message_arrives(&session, &nats).await;
    // Turned off again, the server has to prove itself.
    run(&session, &alter(&[("SET tls_insecure", "false")])).await;
    assert_eq!(refused(&session, RELOAD).await.code, code::TLS);
}

// Not verifying the server does not mean that the server does not verify us.
#[tokio::test]
async fn insecure_with_a_client_certificate() {
    let (_pg, session) = ready().await;
    let certs = Certs::shared();
    let paths = Paths::of(&certs);
    let nats = NatsServer::builder().mutual_tls(&certs).start().await;
    create_for(&session, nats.port(), &[INSECURE]).await;
    handshake_fails(&session).await;
    run(&session, "DROP SERVER nats").await;
    let [cert, key] = paths.client();
    create_for(&session, nats.port(), &[INSECURE, cert, key]).await;
    message_arrives(&session, &nats).await;
}

// TLS says which server it is, the credential which user: both at once.
#[tokio::test]
async fn tls_goes_with_each_credential() {
    let (_pg, session) = ready().await;
    let certs = Certs::shared();
    let paths = Paths::of(&certs);
    let seed = seed();
    let (plain, mutual) = (vec![paths.ca()], paths.mutual().to_vec());
    for (config, credential) in [
        (
            NatsServer::builder().user("alice", "pw"),
            vec![("username", "alice"), ("password", "pw")],
        ),
        (NatsServer::builder().token("t0ken"), vec![("token", "t0ken")]),
        (
            NatsServer::builder().nkey(&seed),
            vec![("nkey_seed", seed.as_str())],
        ),
    ] {
        for (config, tls) in [
            (config.clone().tls(&certs), &plain),
            (config.mutual_tls(&certs), &mutual),
        ] {
            let nats = config.start().await;
            // TLS alone does not let anybody in.
            create_for(&session, nats.port(), tls).await;
            assert_eq!(refused(&session, INFO).await.code, code::REFUSED);
            run(&session, "DROP SERVER nats").await;
            create_for(&session, nats.port(), &[&tls[..], &credential[..]].concat()).await;
            message_arrives(&session, &nats).await;
            run(&session, "DROP SERVER nats").await;
        }
    }
}

// A certificate that cannot be read or used is told by the option that names it, for every way to verify.
#[tokio::test]
async fn unusable_files_are_told_by_name() {
    let (pg, session) = ready().await;
    let certs = Certs::shared();
    let paths = Paths::of(&certs);
    let nats = NatsServer::builder().mutual_tls(&certs).start().await;
    let garbage = file(&pg, "garbage.pem", "no certificate");
    for verify in [paths.ca(), INSECURE] {
        for bad in ["/nonexistent/file.pem", &garbage] {
            for (option, cert, key) in [
                ("tls_cert_path", bad, paths.key.as_str()),
                ("tls_key_path", &paths.cert, bad),
            ] {
                let client = [("tls_cert_path", cert), ("tls_key_path", key)];
                create_for(&session, nats.port(), &[&[verify][..], &client[..]].concat()).await;
                let report = refused(&session, INFO).await;
                assert_eq!(report.code, code::FILE, "{verify:?} {option} {bad}: {report:?}");
                assert!(report.message.contains(&format!("\"{option}\"")), "{report:?}");
                run(&session, "DROP SERVER nats").await;
            }
        }
    }
    for bad in ["/nonexistent/file.pem", &garbage] {
        create_for(&session, nats.port(), &[("tls_ca_path", bad)]).await;
        let report = refused(&session, INFO).await;
        assert_eq!(report.code, code::FILE, "{bad}: {report:?}");
        assert!(report.message.contains("\"tls_ca_path\""), "{report:?}");
        run(&session, "DROP SERVER nats").await;
    }
}

// Certificates are rotated like secrets: the files change, the reconnect takes the new ones.
#[tokio::test]
async fn changed_files_are_read_at_the_reconnect() {
    let (pg, session) = ready().await;
    let (old, new) = (Certs::fresh(), Certs::fresh());
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).expect("read a certificate");
    let install = |certs: &Certs| {
        (
            file(&pg, "ca.pem", &read(certs.ca())),
            file(&pg, "client.pem", &read(certs.client_cert())),
            file(&pg, "client.key", &read(certs.client_key())),
        )
    };
    let (ca, cert, key) = install(&old);
    let mut nats = NatsServer::builder().mutual_tls(&old).start().await;
    let tls = [
        ("tls_ca_path", ca.as_str()),
        ("tls_cert_path", &cert),
        ("tls_key_path", &key),
    ];
    create_for(&session, nats.port(), &tls).await;
    message_arrives(&session, &nats).await;
    install(&new);
    nats.restart_with(NatsServer::builder().mutual_tls(&new)).await;
    message_arrives(&session, &nats).await;
}
