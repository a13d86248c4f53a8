//! Every error that SQL can meet: one table with SQLSTATE, condition name, and what message, detail and hint say.

mod stage;
mod support;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use stage::*;
use support::{Certs, NatsServer, Port, Report, Session, WireStub, WorkDir};

/// What a kind of error is called in PL/pgSQL, its SQLSTATE, and how its hint starts.
struct Kind(&'static str, &'static str, &'static str);

const NULL: Kind = Kind("null_value_not_allowed", "22004", "Publish an empty payload ('')");
/// Of another argument than the payload.
const NULL_OTHER: Kind = Kind("null_value_not_allowed", "22004", "");
const SUBJECT: Kind = Kind("invalid_name", "42602", "A subject is a list of tokens");
const HEADERS: Kind = Kind("invalid_parameter_value", "22023", "Headers look like '{\"name\"");
const TIMEOUT_RANGE: Kind = Kind("numeric_value_out_of_range", "22003", "");
const TOO_LARGE: Kind = Kind("program_limit_exceeded", "54000", "Raise max_payload");
const ENCODING: Kind = Kind("character_not_in_repertoire", "22021", "Use the binary form");
const REPLY: Kind = Kind(
    "invalid_text_representation",
    "22P02",
    "nats_request_binary returns",
);
const NO_SERVER: Kind = Kind(
    "undefined_object",
    "42704",
    "CREATE SERVER name FOREIGN DATA WRAPPER litmus_pgnats_fdw",
);
const SEVERAL: Kind = Kind(
    "ambiguous_parameter",
    "42P08",
    "SET litmus_pgnats.server = 'name' chooses one, ALTER DATABASE",
);
const PRIVILEGE: Kind = Kind("insufficient_privilege", "42501", "GRANT USAGE ON FOREIGN SERVER");
/// The same condition as `PRIVILEGE`: a right is missing.
const FILE_PRIVILEGE: Kind = Kind(
    "insufficient_privilege",
    "42501",
    "Only superusers and members of pg_read_server_files",
);
const CREDENTIAL: Kind = Kind("invalid_password", "28P01", "Give username with password");
const UNREACHABLE: Kind = Kind(
    "sqlclient_unable_to_establish_sqlconnection",
    "08001",
    "Check that the NATS server runs",
);
const REFUSED: Kind = Kind(
    "invalid_authorization_specification",
    "28000",
    "Check the credential",
);
const TLS: Kind = Kind(
    "sqlserver_rejected_establishment_of_sqlconnection",
    "08004",
    "Check the options tls_ca_path",
);
const FILE: Kind = Kind("io_error", "58030", "The file is read by the server process");
const UNSUPPORTED: Kind = Kind("feature_not_supported", "0A000", "");
const NO_RESPONDERS: Kind = Kind("fdw_unable_to_create_reply", "HV00M", "Nobody is subscribed");
const NO_REPLY: Kind = Kind("fdw_reply_handle", "HV00K", "Give a larger timeout_ms");
const UNKNOWN_OPTION: Kind = Kind(
    "fdw_invalid_option_name",
    "HV00D",
    "Perhaps you meant the option \"port\"",
);
const OPTION_VALUE: Kind = Kind(
    "fdw_invalid_attribute_value",
    "HV024",
    "The value must be a whole number",
);
const CONTRADICTION: Kind = Kind(
    "fdw_inconsistent_descriptor_information",
    "HV021",
    "Drop the one option",
);

/// Kind, the foreign server and what else to set before, what to run (an expression, or a statement), how the message starts, a part of the
/// detail.
type Case = (Kind, &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const CASES: &[Case] = &[
    (NULL_OTHER, "", "nats_publish_text(NULL, 'x')", "subject must not be null", ""),
    (NULL, "", "nats_publish_text('a', NULL)", "payload must not be null", ""),
    (NULL, "", "nats_publish_json('a', NULL)", "payload must not be null", ""),
    (NULL, "", "nats_publish_jsonb('a', NULL, 'r', '{}')", "payload must not be null", ""),
    (NULL, "", "nats_publish_binary('a', NULL)", "payload must not be null", ""),
    (NULL_OTHER, "", "nats_request_text(NULL, '')", "subject must not be null", ""),
    (NULL, "", "nats_request_jsonb('a', NULL)", "payload must not be null", ""),
    (NULL_OTHER, "", "nats_request_text('a', '', NULL)", "timeout must not be null", ""),
    (SUBJECT, "", "nats_publish_text('', 'x')", "invalid subject", "The subject is empty."),
    (SUBJECT, "", "nats_publish_text('a b', 'x')", "invalid subject", "contains the character U+0020."),
    (SUBJECT, "", r"nats_publish_text(E'a\tb', 'x')", "invalid subject", "U+0009"),
    (SUBJECT, "", r"nats_publish_text(E'a\r\nPUB b 1\r\nx', '')", "invalid subject", "U+000D"),
    (SUBJECT, "", r"nats_publish_text(E'a\nb', 'x')", "invalid subject", "U+000A"),
    (SUBJECT, "", r"nats_publish_text(E'a\u00a0b', 'x')", "invalid subject", "U+00A0"),
    (SUBJECT, "", "nats_publish_text('a..b', 'x')", "invalid subject", "\"a..b\" has an empty token."),
    (SUBJECT, "", "nats_publish_binary('.a', 'x')", "invalid subject", "has an empty token."),
    (SUBJECT, "", "nats_publish_json('a.', '1')", "invalid subject", "has an empty token."),
    (SUBJECT, "", "nats_publish_jsonb('a.*', '1')", "invalid subject", "has the wildcard \"*\"."),
    (SUBJECT, "", "nats_publish_text('>', 'x')", "invalid subject", "has the wildcard \">\"."),
    (SUBJECT, "", "nats_publish_text(repeat('a', 2049), 'x')", "invalid subject", "has 2049 bytes, the limit is 2048."),
    (SUBJECT, "", "nats_publish_text('a', 'x', '')", "invalid reply subject", "The reply subject is empty."),
    (SUBJECT, "", r"nats_publish_text('a', 'x', E'r\r\n')", "invalid reply subject", "U+000D"),
    (SUBJECT, "", "nats_publish_text('a', 'x', 'r.>')", "invalid reply subject", "has the wildcard"),
    (SUBJECT, "", "nats_request_text('a.*', 'x')", "invalid subject", "has the wildcard"),
    (HEADERS, "", "nats_publish_text('a', 'x', NULL, '[]')", "invalid message headers", "a JSON object"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"a": 1}')"#, "invalid message headers", "\"a\" is not a string"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"a": null}')"#, "invalid message headers", "\"a\" is not a string"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"a": [["b"]]}')"#, "invalid message headers", "\"a\" is not a string"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"a": "x\r\nb: y"}')"#, "invalid message headers", "a line break"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"a": ["1", "\n"]}')"#, "invalid message headers", "a line break"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"a\r\nb": "x"}')"#, "invalid message headers", "header name"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"a b": "x"}')"#, "invalid message headers", "header name"),
    (HEADERS, "", r#"nats_publish_text('a', 'x', NULL, '{"": "x"}')"#, "invalid message headers", "header name is empty"),
    (TIMEOUT_RANGE, "", "nats_request_text('a', '', 0)", "timeout must be at least 1 millisecond", "It is 0."),
    (TIMEOUT_RANGE, "", "nats_request_binary('a', '', -5)", "timeout must be at least 1 millisecond", "It is -5."),
    (TOO_LARGE, "", "nats_publish_text('a', repeat('x', 1048577))", "message is larger than the NATS server allows", "have 1048577 bytes, max_payload of the server is 1048576."),
    (TOO_LARGE, "", "nats_request_text('a', repeat('x', 1048577))", "message is larger than the NATS server allows", "1048577"),
    (ENCODING, "", "nats_request_text('bytes', '')", "reply is not valid text: not UTF-8", "offset 0."),
    (REPLY, "", "nats_request_json('echo', '1'::json) || nats_request_jsonb('empty', '1')::text", "reply is not valid JSON", ""),
    (NO_SERVER, "nosuch", "nats_publish_text('a', 'x')", "foreign server \"nosuch\" does not exist", "The parameter litmus_pgnats.server names it"),
    (NO_SERVER, "elsewhere", "nats_publish_text('a', 'x')", "foreign server \"elsewhere\" does not exist", "a server of litmus_pgnats_fdw."),
    (SEVERAL, "DEFAULT", "nats_publish_text('a', 'x')", "several foreign servers for NATS are defined", "\"closed\""),
    (PRIVILEGE, "nats; SET ROLE nobody", "nats_publish_text('a', 'x')", "permission denied for foreign server nats", "Role \"nobody\" has no USAGE privilege"),
    (PRIVILEGE, "nats; SET ROLE nobody", "nats_get_server_info()", "permission denied for foreign server nats", "Role \"nobody\""),
    (FILE_PRIVILEGE, "nats; SET ROLE owner", "ALTER SERVER owned OPTIONS (ADD token_path '/etc/passwd')", "permission denied to set option \"token_path\"", "names a file"),
    (CREDENTIAL, "half", "nats_publish_text('a', 'x')", "option \"username\" has no password", ""),
    (UNREACHABLE, "closed", "nats_publish_text('a', 'x')", "could not connect to NATS server 127.0.0.1:", "onnection refused"),
    (UNREACHABLE, "closed", "nats_request_text('a', 'x')", "could not connect to NATS server 127.0.0.1:", "onnection refused"),
    (UNREACHABLE, "closed", "nats_get_server_info()", "could not connect to NATS server 127.0.0.1:", "onnection refused"),
    (UNREACHABLE, "dark; SET litmus_pgnats.connect_timeout = 200", "nats_publish_text('a', 'x')", "the connection to the NATS server is not established yet", ""),
    (REFUSED, "guarded", "nats_publish_text('a', 'x')", "NATS server 127.0.0.1:", "uthorization"),
    (REFUSED, "wrong", "nats_request_text('a', 'x')", "NATS server 127.0.0.1:", "uthorization"),
    (TLS, "foreign_ca", "nats_publish_text('a', 'x')", "TLS handshake with NATS server", "certificate"),
    (FILE, "missing_file", "nats_publish_text('a', 'x')", "could not use file \"/no/such/file\" of option \"token_path\"", "No such file"),
    (FILE, "closed_file", "nats_request_text('a', 'x')", "could not use file \"", "Permission denied"),
    (UNSUPPORTED, "old", r#"nats_publish_text('a', 'x', NULL, '{"a": "b"}')"#, "the NATS server does not support message headers", ""),
    (NO_RESPONDERS, "", "nats_request_text('nobody', '')", "no responders are available for subject \"nobody\"", ""),
    (NO_REPLY, "", "nats_request_text('silent', '', 50)", "no reply on subject \"silent\" within 50 ms", ""),
    (UNKNOWN_OPTION, "", "CREATE SERVER x FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (prot '1')", "invalid option \"prot\"", "Valid options in this context are"),
    (OPTION_VALUE, "", "CREATE SERVER x FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (port 'abc')", "invalid value for option \"port\"", ""),
    (CONTRADICTION, "", "CREATE SERVER x FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (tls_insecure 'true', tls_ca_path '/ca')", "option \"tls_insecure\" excludes option \"tls_ca_path\"", ""),
];

/// Servers that the table's foreign servers name; kept until its end.
struct World {
    stage: Stage,
    _nats: [NatsServer; 2],
    _closed: Port,
    _dark: TcpListener,
    _old: WireStub,
    _files: (WorkDir, Certs),
}

impl World {
    async fn start() -> (Self, Session) {
        let stage = Stage::start().await;
        let session = stage.pg.connect().await;
        let guarded = NatsServer::builder().user("u", "right").start().await;
        let tls = NatsServer::builder().tls(&Certs::shared()).start().await;
        let (closed, old) = (
            Port::take(),
            WireStub::start_with(serde_json::json!({"headers": false})),
        );
        let dark = TcpListener::bind("127.0.0.1:0").expect("a listener that says nothing");
        let (files, other_ca) = (WorkDir::new("secrets"), Certs::fresh());
        let secret = files.path().join("secret");
        std::fs::write(&secret, "token").expect("write a secret");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o000)).expect("close the file");
        let ca = format!(", tls_ca_path '{}'", other_ca.ca().display());
        let closed_file = format!(", token_path '{}'", secret.display());
        for (name, port, options) in [
            ("closed", closed.number(), ""),
            ("dark", dark.local_addr().expect("an address").port(), ""),
            ("half", stage.nats.port(), ", username 'u'"),
            ("guarded", guarded.port(), ""),
            ("wrong", guarded.port(), ", username 'u', password 'wrong'"),
            ("foreign_ca", tls.port(), &*ca),
            ("missing_file", stage.nats.port(), ", token_path '/no/such/file'"),
            ("closed_file", stage.nats.port(), &*closed_file),
            ("old", old.port(), ""),
            ("owned", stage.nats.port(), ""),
        ] {
            create_server(&session, name, port, options).await;
        }
        run(&session, "CREATE ROLE nobody; CREATE ROLE owner;
             GRANT USAGE ON FOREIGN DATA WRAPPER litmus_pgnats_fdw TO owner; ALTER SERVER owned OWNER TO owner;
             CREATE FOREIGN DATA WRAPPER plain; CREATE SERVER elsewhere FOREIGN DATA WRAPPER plain").await;
        stage.respond("echo", |request| request.payload.to_vec()).await;
        stage.respond("empty", |_| Vec::new()).await;
        stage.respond("bytes", |_| vec![0xff]).await;
        let world = World {
            stage,
            _nats: [guarded, tls],
            _closed: closed,
            _dark: dark,
            _old: old,
            _files: (files, other_ca),
        };
        (world, session)
    }
}

/// PostgreSQL's style: a message is no sentence, detail and hint are.
fn check_style(report: &Report, what: &str) {
    let first_word = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
    let is_name =
        |word: &str| word.contains('_') || word.len() > 1 && word.chars().all(|c| !c.is_lowercase());
    let message = &report.message;
    let start = first_word(message);
    assert!(
        is_name(&start) || start.starts_with(char::is_lowercase),
        "{what}: starts like a sentence: {message}"
    );
    assert!(
        !message.ends_with(['.', '!', ' ']) && !message.contains('\n'),
        "{what}: ends like a sentence: {message}"
    );
    for text in report.detail.iter().chain(&report.hint) {
        let start = first_word(text);
        assert!(
            is_name(&start) || !start.starts_with(char::is_lowercase),
            "{what}: no sentence: {text}"
        );
        assert!(
            text.ends_with('.') && !text.ends_with(".."),
            "{what}: no full stop, or two: {text}"
        );
    }
}

/// The table: each error has its SQLSTATE and says what its row says, PL/pgSQL can catch it by its condition's name,
/// and the session works afterwards.
#[tokio::test]
async fn every_error_is_as_documented() {
    let (world, session) = World::start().await;
    let _silent = world.stage.subscribe("silent").await;
    for (Kind(condition, code, hint), server, sql, message, detail) in CASES {
        let server = if server.is_empty() { "nats" } else { server };
        let is_call = sql.starts_with("nats_");
        let statement = if is_call {
            format!("SELECT {sql}")
        } else {
            (*sql).to_owned()
        };
        run(&session, &format!("SET litmus_pgnats.server = {server}")).await;
        let report = failure(&session, &statement).await;
        let what = format!("{statement} on {server}: {report:?}");
        assert_eq!(&report.code, code, "{what}");
        assert!(report.message.starts_with(message), "{what}");
        assert!(
            report.detail.as_deref().unwrap_or_default().contains(detail),
            "{what}"
        );
        assert!(
            report.hint.as_deref().unwrap_or_default().starts_with(hint),
            "{what}"
        );
        check_style(&report, &what);

        let body = if is_call {
            format!("PERFORM {sql}")
        } else {
            (*sql).to_owned()
        };
        let block = format!(
            "DO $do$ BEGIN {body}; RAISE 'no error'; EXCEPTION WHEN {condition} THEN
             IF SQLSTATE <> '{code}' THEN RAISE 'it is %', SQLSTATE; END IF; END $do$"
        );
        run(&session, &block).await;
        run(&session, "RESET ROLE; RESET ALL; SET litmus_pgnats.server = nats").await;
        assert_eq!(
            value::<String>(&session, "SELECT nats_request_text('echo', 'works')").await,
            "works",
            "{what}"
        );
    }
}

/// No two kinds share an SQLSTATE, in this table and in the library's own; only a missing right is a missing right.
#[test]
fn kinds_have_their_own_sqlstate() {
    let table = include_str!("../src/pg/sqlstates.rs");
    let mut kinds = BTreeMap::<&str, Vec<&str>>::new();
    for arm in table.split("Kind::").skip(2) {
        let (kind, rest) = arm.split_once(" =>").expect("an arm of the match");
        let condition = rest
            .split("ERRCODE_")
            .nth(1)
            .and_then(|rest| rest.split(',').next());
        kinds
            .entry(condition.expect("an SQLSTATE"))
            .or_default()
            .push(kind);
    }
    assert!(kinds.len() > 25, "not understood: {kinds:?}");
    kinds.retain(|_, kinds| kinds.len() > 1);
    let shared: Vec<_> = kinds.into_iter().collect();
    assert_eq!(
        shared,
        [
            // What passes by itself.
            ("CANNOT_CONNECT_NOW", vec!["JetStreamBusy", "RuntimeUnavailable"]),
            (
                "CONFIGURATION_LIMIT_EXCEEDED",
                vec![
                    "TooManySubscriptions",
                    "TooManyHandlers",
                    "BufferFull",
                    "JetStreamLimit"
                ]
            ),
            (
                "INSUFFICIENT_PRIVILEGE",
                vec!["PermissionDenied", "FileOptionDenied"]
            ),
            ("INVALID_NAME", vec!["InvalidSubject", "InvalidName"]),
            ("INVALID_PARAMETER_VALUE", vec!["InvalidHeaders", "NeverStored"]),
            // States of a handler, which the views show.
            ("OBJECT_NOT_IN_PREREQUISITE_STATE", vec!["Stopped", "Fenced"]),
            (
                "PROGRAM_LIMIT_EXCEEDED",
                vec!["PayloadTooLarge", "TransactionTooLarge", "ObjectTooLarge"]
            ),
        ]
    );
    for Kind(condition, code, _) in CASES.iter().map(|case| &case.0) {
        let other = CASES
            .iter()
            .find(|case| (case.0.0 == *condition) != (case.0.1 == *code));
        assert!(other.is_none(), "{condition} {code}");
    }
}

/// What is refused never reaches the wire: no message, and above all no command smuggled in by CR/LF.
#[tokio::test]
async fn refused_publishes_send_nothing() {
    let (world, session) = World::start().await;
    let mut inbox = world.stage.subscribe("*").await;
    run(&session, "SET litmus_pgnats.server = nats").await;
    for (_, _, sql, ..) in CASES
        .iter()
        .filter(|case| case.1.is_empty() && case.2.starts_with("nats_publish"))
    {
        failure(&session, &format!("SELECT {sql}")).await;
    }
    run(&session, "SELECT nats_publish_text('a', 'end')").await;
    assert_eq!(inbox.texts_until("end").await.len(), 0);
}
