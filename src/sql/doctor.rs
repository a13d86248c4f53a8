//! `litmus_pgnats.doctor()`: what is well, what is wrong, and what to do. The runtime worker examines what concerns
//! NATS, in `actors/doctor/examine.rs`. Runs in backends, on the main thread.

use super::{call, parameters, server, session, statistics};
use crate::channel::message::{EXAMINE_STEPS, Reply, Request};
use crate::channel::target::Key;
use crate::error::{Kind, Result};
use crate::findings::{CheckStatus, Finding, Findings};
use crate::pg::fmgr::{Call, Value, sql_function};
use crate::pg::foreign_servers::Server;
use crate::pg::query::Argument::Text;
use crate::pg::query::query;
use crate::pg::transaction::Parameters;
use crate::pg::{databases, foreign_servers, rights, runtime_worker, state};
use crate::row::Row;
use crate::settings::validate::secrets;

sql_function!(litmus_pgnats_doctor, doctor);

fn doctor(_: &Call<'_>) -> Result<Value> {
    // The caller's search path must not change what the queries mean.
    let _parameters = Parameters::own_names(&[]);
    let mut findings = Findings::default();
    preload(&mut findings);
    let is_running = runtime_worker(&mut findings);
    worker_slots(is_running, &mut findings);
    versions(&mut findings);
    let servers = foreign_servers::servers()?;
    if servers.is_empty() {
        let advice = "CREATE SERVER name FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host 'localhost') defines one.";
        findings.wrong("foreign server", "", "there is none in this database", advice);
    }
    if servers.len() > 1 && parameters::server().is_none() {
        let found = "there are several, and litmus_pgnats.server names none: calls of this session fail";
        let advice = "SET litmus_pgnats.server = 'name', or ALTER DATABASE ... SET for all sessions.";
        findings.warn("foreign server", "", found, advice);
    }
    for server in &servers {
        foreign_server(server, is_running, &mut findings)?;
    }
    if is_running {
        handlers(&mut findings);
    }
    outbox(&mut findings);
    let rows = findings.into_vec().into_iter().map(Finding::columns);
    Ok(statistics::displayable(rows.collect()))
}

fn preload(findings: &mut Findings) {
    if runtime_worker::is_preloaded() {
        findings.ok("preload", "", "the library is in shared_preload_libraries");
    } else {
        let found = "the library is not in shared_preload_libraries: after a restart nothing runs before the first call";
        let advice = "Add litmus_pgnats to shared_preload_libraries and restart.";
        findings.warn("preload", "", found, advice);
    }
}

/// Whether the runtime worker answers; it is started if need be.
fn runtime_worker(findings: &mut Findings) -> bool {
    match call::ensure_runtime() {
        Ok(()) => {
            let pid = "SELECT string_agg(pid::text, ', ') FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats runtime'";
            let pid = first(&query(pid, &[])).unwrap_or_default();
            findings.ok("runtime worker", "", format!("answers; its process is {pid}"));
            true
        }
        Err(error) => {
            let advice =
                "Look for \"litmus_pgnats\" in the server log; reconnect if the library was replaced.";
            findings.failed("runtime worker", "", &error, advice);
            false
        }
    }
}

fn worker_slots(is_running: bool, findings: &mut Findings) {
    const ADVICE: &str = "Raise max_worker_processes, and restart.";
    let missing =
        "SELECT string_agg(database, ', ') FROM litmus_pgnats.executors WHERE state = 'no worker slot'";
    let missing = first(&query(missing, &[]));
    // Counts background workers, parallel workers among them, by naming all other types of process.
    let slots = "SELECT current_setting('max_worker_processes')::int - count(*), current_setting('max_worker_processes'),
           current_setting('litmus_pgnats.max_executors')
         FROM pg_stat_activity WHERE backend_type NOT IN ('client backend', 'autovacuum launcher', 'autovacuum worker',
           'archiver', 'background writer', 'checkpointer', 'startup', 'walreceiver', 'walsender', 'walwriter',
           'walsummarizer', 'slotsync worker', 'io worker', 'standalone backend')";
    let slots = query(slots, &[]);
    let number = |column: usize| -> i64 {
        let text = slots.first().and_then(|row| row.get(column)).cloned().flatten();
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let (free, all, executors) = (number(0), number(1), number(2));
    let found = format!("{free} of {all} are free");
    match missing {
        Some(databases) => {
            let found = format!("{found}; there was none for executors of {databases}");
            findings.wrong("worker slots", "", found, ADVICE);
        }
        None if free < 1 && !is_running => {
            findings.wrong(
                "worker slots",
                "",
                format!("{found}: the runtime worker wants one"),
                ADVICE,
            );
        }
        // A refresh takes one slot, and the executors of one more database take others.
        None if free < 2 => findings.warn(
            "worker slots",
            "",
            format!("{found}, and a database may want {executors} executors"),
            ADVICE,
        ),
        None => findings.ok("worker slots", "", found),
    }
}

fn versions(findings: &mut Findings) {
    let library = env!("LITMUS_PGNATS_VERSION");
    let objects = query(
        "SELECT extversion FROM pg_extension WHERE extname = 'litmus_pgnats'",
        &[],
    );
    match first(&objects) {
        Some(objects) if objects == library => {
            findings.ok(
                "versions",
                "",
                format!("library and SQL objects are of version {library}"),
            );
        }
        objects => {
            let objects = objects.unwrap_or_else(|| "none".into());
            let found = format!("the library is of version {library}, the SQL objects of {objects}");
            let advice =
                "ALTER EXTENSION litmus_pgnats UPDATE; or, if the library is the older one, restart.";
            findings.warn("versions", "", found, advice);
        }
    }
}

/// Examines a foreign server with the options that the caller's calls would use. Fails only if the statement is
/// cancelled.
fn foreign_server(server: &Server, is_running: bool, findings: &mut Findings) -> Result<()> {
    const CHECK: &str = "foreign server";
    let (role, name) = (rights::current_role(), server.name.as_str());
    if !rights::has_usage(role, server.oid) {
        let found = format!("not examined: {} has no USAGE privilege", rights::role_name(role));
        let advice = "GRANT USAGE ON FOREIGN SERVER name TO role gives the right.";
        findings.warn(CHECK, name, found, advice);
        return Ok(());
    }
    readable_secrets(server, findings);
    let key = Key {
        database: databases::database_oid(),
        server: server.oid,
        mapping: foreign_servers::user_mapping(role, server.oid).unwrap_or(0),
        private_to: 0,
    };
    let settings = match server::read_settings(key) {
        Ok(Some(settings)) => settings,
        Ok(None) => return Ok(()),
        Err(error) => {
            findings.failed(CHECK, name, &error, "Correct the options.");
            return Ok(());
        }
    };
    let mapping = if key.mapping == 0 { "no" } else { "a" };
    let hosts: Vec<String> = settings.hosts.iter().map(ToString::to_string).collect();
    let role = rights::role_name(role);
    let found = format!("{}, as role {role} with {mapping} user mapping", hosts.join(", "));
    findings.ok(CHECK, name, found);
    if !is_running {
        return Ok(());
    }
    running_connections(name, findings);
    let limit = parameters::connect_timeout();
    let request = Request::Examine {
        key,
        settings: Box::new(settings),
        limit_ms: session::milliseconds(limit),
    };
    match call::tell(&request, limit * EXAMINE_STEPS) {
        Ok(frame) => match frame.message {
            Reply::Findings(found) => findings.include(name, found),
            _ => findings.failed(CHECK, name, &session::unexpected_reply(), ""),
        },
        Err(error) if error.kind == Kind::Interrupted => return Err(error),
        Err(error) => findings.failed(CHECK, name, &error, "Look into the server log."),
    }
    Ok(())
}

/// Reports options in which secrets stand: every user of the database can read the options of a server.
fn readable_secrets(server: &Server, findings: &mut Findings) {
    // A server that was dropped meanwhile has no options.
    let options = foreign_servers::server_options(server.oid).unwrap_or_default();
    let mut open: Vec<&str> = secrets(&options).collect();
    if options.get("patroni_url").is_some_and(|url| url.contains('@')) {
        open.push("patroni_url");
    }
    if !open.is_empty() {
        let found = format!(
            "every user of the database can read its option {}",
            open.join(", ")
        );
        let advice =
            "Put it into a user mapping, or into a file (password_path, token_path, nkey_seed_path).";
        findings.warn("foreign server", &server.name, found, advice);
    }
}

/// Reports connections that sessions and handlers use and that are not connected now.
fn running_connections(server: &str, findings: &mut Findings) {
    let down = query(
        "SELECT 'connecting since ' || since || coalesce(': ' || last_error, '') || ', ' || queued || ' messages wait'
         FROM litmus_pgnats.connections
         WHERE database = current_database() AND server = $1 AND state <> 'connected'",
        &[Text(server)],
    );
    for found in down.into_iter().flatten().flatten() {
        let advice = "It goes on by itself; options that were changed since it was made are applied by \
                      litmus_pgnats_reload_conf().";
        findings.wrong("running connection", server, found, advice);
    }
}

fn handlers(findings: &mut Findings) {
    if state::is_in_recovery() {
        return findings.ok("handlers", "", "this server is a standby, where none runs");
    }
    let superusers = query(
        "SELECT h.role::text, count(*) FROM litmus_pgnats.handlers h JOIN pg_roles r ON r.oid = h.role AND r.rolsuper
         GROUP BY 1 ORDER BY 1",
        &[],
    );
    for row in superusers {
        if let Ok([Some(role), Some(count)]) = <[Option<String>; 2]>::try_from(row) {
            let found = format!("{count} run as superuser, with whatever anybody sends");
            findings.warn(
                "handlers",
                &role,
                found,
                "Register them as a role with few rights.",
            );
        }
    }
    let rows = query(
        // Signatures are compared as text, because looking a function up by its name needs USAGE on its schema.
        "WITH f AS MATERIALIZED (
           SELECT CASE pronamespace WHEN 'pg_catalog'::regnamespace THEN 'pg_catalog.' ELSE '' END
             || oid::regprocedure::text AS signature, proowner FROM pg_proc)
         SELECT h.kind || ' ' || h.subject || ' -> ' || h.function, h.state, h.problem, h.role::text, o.rolname,
                o.oid <> h.role AND NOT o.rolsuper AND NOT r.rolsuper, h.messages, h.errors, h.dropped, h.queued,
                h.last_error, h.lag > interval '1 min', h.lag
         FROM litmus_pgnats.handlers h LEFT JOIN pg_roles r ON r.oid = h.role
         LEFT JOIN f ON f.signature = h.function LEFT JOIN pg_roles o ON o.oid = f.proowner
         ORDER BY 1",
        &[],
    );
    if rows.is_empty() {
        findings.ok("handlers", "", "there is none in this database");
    }
    for row in rows {
        if let Ok(row) = <[Option<String>; 13]>::try_from(row) {
            handler(row, findings);
        }
    }
}

fn handler(row: [Option<String>; 13], findings: &mut Findings) {
    const CHECK: &str = "handler";
    let [
        name,
        state,
        problem,
        role,
        owner,
        is_others,
        messages,
        errors,
        dropped,
        queued,
        last,
        is_late,
        lag,
    ] = row.map(Option::unwrap_or_default);
    if owner.is_empty() {
        let advice = "Register it again, with a function that exists.";
        return findings.wrong(CHECK, &name, "its function or its role does not exist", advice);
    }
    if is_others == "t" {
        let found = format!("its function belongs to {owner}, who can have it do anything as {role}");
        findings.warn(
            CHECK,
            &name,
            found,
            "Have the function belong to the role that it runs as.",
        );
    }
    if state != "live" || !problem.is_empty() {
        let status = if state == "waiting" {
            CheckStatus::Warning
        } else {
            CheckStatus::Error
        };
        let advice = if problem.contains("has failed") {
            "Correct the function, then call litmus_pgnats.resume()."
        } else if problem.contains("litmus_pgnats.pause()") {
            "litmus_pgnats.resume() has it go on."
        } else {
            "It goes on by itself when that is put right; changed options want litmus_pgnats_reload_conf()."
        };
        let why = if problem.is_empty() {
            "it is not subscribed yet"
        } else {
            &problem
        };
        return findings.add(CHECK, &name, status, format!("{state}: {why}"), advice);
    }
    let counts = format!("{messages} messages, {errors} errors, {dropped} dropped, {queued} queued");
    if errors != "0" || dropped != "0" {
        let found = format!(
            "{counts}; last error: {}",
            if last.is_empty() { "none" } else { &last }
        );
        let advice = "The server log tells more; litmus_pgnats.stat_reset() counts anew.";
        findings.warn(CHECK, &name, found, advice);
    } else if is_late == "t" {
        let advice = "The function is slower than its messages come, or fails again and again.";
        findings.warn(CHECK, &name, format!("{counts}, {lag} behind"), advice);
    } else {
        findings.ok(CHECK, &name, counts);
    }
}

fn outbox(findings: &mut Findings) {
    let old = "SELECT server || ', ' || role, messages || ' messages wait, the oldest since ' || oldest
               FROM litmus_pgnats.outbox_waiting WHERE oldest < now() - interval '1 min'";
    for row in query(old, &[]) {
        if let Ok([Some(object), Some(found)]) = <[Option<String>; 2]>::try_from(row) {
            let advice = "The server log says why; docs/operations.md has causes, under Troubleshooting.";
            findings.warn("outbox", &object, found, advice);
        }
    }
    let letters = "SELECT count(*) || ' dead letters, the last one at ' || max(died) || ': ' || (array_agg(error ORDER BY id DESC))[1]
                   FROM litmus_pgnats.dead_letters HAVING count(*) > 0";
    if let Some(found) = first(&query(letters, &[])) {
        let advice =
            "Put right what they say, then litmus_pgnats.redrive_all(), redrive(id) or purge_dead_letters().";
        findings.warn("dead letters", "", found, advice);
    }
}

/// The first column of the first row.
fn first(rows: &[Row]) -> Option<String> {
    rows.first()?.first()?.clone()
}
