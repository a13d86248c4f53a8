//! The documentation is true: README.md's SQL runs as shown, and docs/reference.md names all there is.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use async_nats::{Client, jetstream};
use futures::StreamExt;
use litmus_pgnats::settings::options::{
    DEFAULT_CAPACITY, DEFAULT_HOST, DEFAULT_INBOX_PREFIX, DEFAULT_PORT, DEFAULT_RESPONDER_TIMEOUT_MS,
    OPTIONS, allowed,
};
use support::*;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// The contents of all blocks of a language.
fn blocks(markdown: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open = false;
    for line in markdown.lines() {
        match line.strip_prefix("```") {
            Some(info) if !open && info == language => {
                open = true;
                blocks.push(String::new());
            }
            Some(_) => open = false,
            None if open => {
                let block = blocks.last_mut().expect("an open block");
                block.push_str(line);
                block.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// The rows of all tables below a heading, up to the next heading of that level or a higher one: their cells.
fn rows(markdown: &str, heading: &str) -> Vec<Vec<String>> {
    let level = heading.split(' ').next().map_or(0, str::len);
    let mut lines = markdown.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "there is no heading {heading:?}");
    let section = lines.take_while(|line| {
        let hashes = line.bytes().take_while(|b| *b == b'#').count();
        hashes == 0 || hashes > level
    });
    section
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

/// The row whose first cell is `name`, as code.
#[track_caller]
fn row<'a>(rows: &'a [Vec<String>], name: &str) -> &'a [String] {
    let code = format!("`{name}`");
    let found = rows.iter().find(|row| row.first() == Some(&code));
    found.unwrap_or_else(|| panic!("docs/reference.md has no row for {code}"))
}

/// What one of the README's programs outside of PostgreSQL does: answers requests.
async fn answer(client: Client) {
    let mut requests = client.subscribe("rpc.echo").await.expect("subscribe");
    round_trip(&client).await;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let reply = request.reply.expect("a request");
            client.publish(reply, request.payload).await.expect("answer");
        }
    });
}

/// And what another does: makes a stream.
async fn create_stream(client: Client) {
    let config = jetstream::stream::Config {
        name: "EVENTS".into(),
        subjects: vec!["events.>".into()],
        ..Default::default()
    };
    let created = jetstream::new(client).create_stream(config).await;
    created.expect("create a stream");
}

/// What docs/operations.md has an administrator run, in a database with handlers.
#[tokio::test]
async fn the_queries_for_operations_run() {
    let nats = NatsServer::start().await;
    let pg = Postgres::start().await;
    let blocks = blocks(&read("docs/operations.md"), "sql").concat();
    let queries = format!(
        "CREATE EXTENSION litmus_pgnats;
         CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}');
         {blocks}",
        nats.port()
    );
    let file = tempfile::NamedTempFile::new().expect("create a file");
    fs::write(file.path(), queries).expect("write the queries");
    let path = file.path().to_str().expect("a path in UTF-8");
    let output = pg.psql(&["-e", "-f", path]).await;
    assert_eq!(output.status, 0, "{}{}", output.stdout, output.stderr);
    for bad in ["ERROR", "WARNING"] {
        assert!(!output.stderr.contains(bad), "{}{}", output.stdout, output.stderr);
    }
}

/// docs/subscriptions.md leads through the life of one, from the first message to the last.
#[tokio::test]
async fn the_life_of_a_durable_subscription_runs_as_shown() {
    let nats = NatsServer::builder().jetstream().start().await;
    create_stream(nats.client().await).await;
    let pg = Postgres::start().await;
    let life = blocks(&read("docs/subscriptions.md"), "sql");
    assert!(life.len() >= 9, "there are {} blocks", life.len());
    let script = format!(
        "CREATE EXTENSION litmus_pgnats;
         CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '{}');
         {}",
        nats.port(),
        life.concat()
    );
    let file = tempfile::NamedTempFile::new().expect("create a file");
    fs::write(file.path(), script).expect("write the script");
    let path = file.path().to_str().expect("a path in UTF-8");
    let output = pg.psql(&["-e", "-f", path]).await;
    assert_eq!(output.status, 0, "{}{}", output.stdout, output.stderr);
    let said = &output.stdout;
    for shown in [
        " EVENTS | live  |",
        " events.line.4 |    40",
        " disabled | message 5 of the stream has failed 2 times",
        " events.line.5 |    60",
        " public.note_many(litmus_pgnats.message[]) | live  |       1000 | f ",
        " disabled | function public.note_many(litmus_pgnats.message[]) does not exist",
        // All but the one that is no number.
        "     6\n",
    ] {
        assert!(said.contains(shown), "no {shown:?} in {said}");
    }
}

/// All blocks in one session of psql, statement by statement.
///
/// README.md's NATS servers have the ports 4222 and 4223: `port '4222'` and `port '4223'` stand for those of the
/// test's servers. Nothing else is replaced.
#[tokio::test]
async fn the_readme_runs_as_shown() {
    let first = NatsServer::builder().jetstream().start().await;
    let second = NatsServer::start().await;
    answer(first.client().await).await;
    create_stream(first.client().await).await;
    let outside = first.client().await;
    let mut orders = outside.subscribe("orders.>").await.expect("subscribe");
    round_trip(&outside).await;
    let pg = Postgres::start().await;

    let blocks = blocks(&read("README.md"), "sql");
    assert!(blocks.len() >= 15, "the tour has {} blocks", blocks.len());
    let tour = blocks
        .concat()
        .replace("port '4222'", &format!("port '{}'", first.port()))
        .replace("port '4223'", &format!("port '{}'", second.port()));
    let file = tempfile::NamedTempFile::new().expect("create a file");
    fs::write(file.path(), &tour).expect("write the tour");
    let path = file.path().to_str().expect("a path in UTF-8");
    let output = pg.psql(&["-e", "-f", path]).await;
    assert_eq!(output.status, 0, "{}{}", output.stdout, output.stderr);
    for caught in ["nobody answers: ", "somebody wrote meanwhile: ", "no price: "] {
        assert!(output.stderr.contains(caught), "{}", output.stderr);
    }

    let mut subjects = Vec::new();
    for _ in 0..5 {
        let message = tokio::time::timeout(Duration::from_secs(10), orders.next()).await;
        let message = message.expect("a message in time").expect("an open subscription");
        subjects.push(message.subject.to_string());
    }
    let expected = [
        "orders.created",
        "orders.paid",
        "orders.sent",
        "orders.insert",
        "orders.insert",
    ];
    assert_eq!(subjects, expected);
    let port = pg.sql("SELECT port FROM nats_get_server_info()").await;
    assert_eq!(
        port,
        second.port().to_string(),
        "the tour ends on the second server"
    );
}

#[tokio::test]
async fn the_reference_names_every_function() {
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    session
        .batch_execute("CREATE EXTENSION litmus_pgnats")
        .await
        .expect("create");
    let query = "SELECT p.proname::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), \
         p.pronamespace = 'litmus_pgnats'::regnamespace \
         FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid \
         JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid \
         WHERE e.extname = 'litmus_pgnats' ORDER BY 1";
    let functions = session.query(query, &[]).await.expect("read pg_proc");
    let (reference, readme) = (read("docs/reference.md"), read("README.md"));
    let rows_found = rows(&reference, "## Functions");
    for function in &functions {
        let (name, arguments, result): (String, String, String) =
            (function.get(0), function.get(1), function.get(2));
        let types = [
            "text[]",
            "interval[]",
            "timestamp with time zone",
            "text",
            "jsonb",
            "interval",
            "integer",
            "bigint",
            "boolean",
        ];
        let arguments = types
            .iter()
            .fold(arguments, |all, t| all.replace(&format!("::{t}"), ""));
        let (columns, arguments): (Vec<_>, Vec<_>) = arguments
            .split(", ")
            .filter(|argument| !argument.is_empty())
            .partition(|argument| argument.starts_with("OUT "));
        let described = row(&rows_found, &format!("{name}({})", arguments.join(", ")));
        let returns = if columns.is_empty() {
            format!("`{result}`")
        } else {
            let columns = columns.iter().map(|column| column.replace("OUT ", "`") + "`");
            let rows = if result.starts_with("SETOF ") {
                "rows"
            } else {
                "one row"
            };
            format!("{rows}: {}", columns.collect::<Vec<_>>().join(", "))
        };
        assert_eq!(described.get(1), Some(&returns), "what {name} returns");

        let in_types = ["text", "jsonb", "json", "binary"];
        let parts = name
            .split('_')
            .map(|part| if in_types.contains(&part) { "T" } else { part });
        let general = parts.collect::<Vec<_>>().join("_");
        assert!(
            readme.contains(&format!("`{general}(")) || name.ends_with("_validator") || function.get(3),
            "README.md does not name {general}"
        );
    }
    assert_eq!(rows_found.len(), functions.len(), "functions that are not there");
}

#[tokio::test]
async fn the_reference_names_every_view() {
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    session
        .batch_execute("CREATE EXTENSION litmus_pgnats")
        .await
        .expect("create");
    let query = "SELECT table_name::text, string_agg(format('`%s`', column_name), ', ' ORDER BY ordinal_position) \
         FROM information_schema.columns WHERE table_schema = 'litmus_pgnats' AND table_name IN \
         (SELECT viewname FROM pg_views WHERE schemaname = 'litmus_pgnats') GROUP BY 1";
    let views = session.query(query, &[]).await.expect("read the catalogue");
    let reference = rows(&read("docs/reference.md"), "## Views");
    for view in &views {
        let (name, columns): (String, String) = (view.get(0), view.get(1));
        let described = row(&reference, &format!("litmus_pgnats.{name}"));
        assert_eq!(described.get(2), Some(&columns), "{name}");
    }
    assert_eq!(reference.len(), views.len(), "views that are not there");
}

#[test]
fn the_reference_names_every_option() {
    let (reference, readme) = (read("docs/reference.md"), read("README.md"));
    let options = rows(&reference, "## Options");
    for option in OPTIONS {
        let default = match option.name {
            "host" => format!("`{DEFAULT_HOST}`"),
            "port" => format!("`{DEFAULT_PORT}`"),
            "capacity" => format!("`{DEFAULT_CAPACITY}`"),
            "responder_timeout_ms" => format!("`{DEFAULT_RESPONDER_TIMEOUT_MS}`"),
            "tls_insecure" | "tls_first" => "`false`".to_owned(),
            "inbox_prefix" => format!("`{DEFAULT_INBOX_PREFIX}`"),
            _ => String::new(),
        };
        let mapping = if option.credential { "yes" } else { "no" };
        let expected = [default, allowed(option.form), mapping.to_owned()];
        let described = row(&options, option.name);
        assert_eq!(described.get(1..), Some(&expected[..]), "{}", option.name);
        let starred = format!("`{}` *", option.name);
        assert!(
            readme.contains(&format!("`{}`", option.name)),
            "README.md: {}",
            option.name
        );
        assert_eq!(
            readme.contains(&starred),
            option.credential,
            "README.md: {starred}"
        );
    }
    assert_eq!(options.len(), OPTIONS.len(), "options that are not there");
}

#[tokio::test]
async fn the_reference_names_every_parameter() {
    let pg = Postgres::start().await;
    let session = pg.connect().await;
    let query = "SELECT name, lower(coalesce(boot_val, '')), context FROM pg_settings WHERE name LIKE 'litmus\\_pgnats.%'";
    let parameters = session.query(query, &[]).await.expect("read pg_settings");
    assert!(!parameters.is_empty());
    let reference = rows(&read("docs/reference.md"), "## Parameters");
    for parameter in &parameters {
        let (name, default, context): (String, String, String) =
            (parameter.get(0), parameter.get(1), parameter.get(2));
        let described = row(&reference, &name);
        let default = if default.is_empty() {
            default
        } else {
            format!("`{default}`")
        };
        let set = match context.as_str() {
            "user" => "in a session",
            "sighup" => "in postgresql.conf, with a reload",
            "superuser" => "by a superuser",
            other => panic!("how is {name} set, {other}?"),
        };
        assert_eq!(
            described.get(1..3),
            Some(&[default, set.to_owned()][..]),
            "{name}"
        );
    }
    assert_eq!(reference.len(), parameters.len(), "parameters that are not there");
}

/// The conditions are those of src/pg/sqlstates.rs; PostgreSQL itself says which SQLSTATE each has.
#[tokio::test]
async fn the_reference_names_every_error() {
    let source = read("src/pg/sqlstates.rs");
    let mut conditions: Vec<String> = source
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter_map(|word| word.strip_prefix("ERRCODE_"))
        .filter(|name| !name.is_empty())
        .map(str::to_lowercase)
        // The constants of class 40 have a prefix that the conditions have not.
        .map(|name| name.strip_prefix("t_r_").map_or(name.clone(), str::to_owned))
        .collect();
    conditions.sort();
    conditions.dedup();
    assert!(conditions.len() > 20, "{conditions:?}");
    let reference = rows(&read("docs/reference.md"), "## Errors");
    let session = Postgres::builder().preload(false).start().await;
    let session = session.connect().await;
    for condition in &conditions {
        let raise = format!("DO $$ BEGIN RAISE USING ERRCODE = '{condition}'; END $$");
        let raised = session.batch_execute(&raise).await.expect_err("raised");
        let described = row(&reference, &sqlstate(&raised));
        assert_eq!(described.get(1), Some(&format!("`{condition}`")));
    }
    assert_eq!(reference.len(), conditions.len(), "errors that are not there");
}
