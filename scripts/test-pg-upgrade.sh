#!/usr/bin/env bash
# test-pg-upgrade.sh OLD NEW: a cluster with a subscription and a responder goes from one PostgreSQL to another with
# pg_upgrade, the library preloaded in both, and both handlers live on. Both have the extension (make private PG=N).
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
old=$(dirname "$(readlink -f "$STATE/pg$1/bin/postgres")") new=$(dirname "$(readlink -f "$STATE/pg$2/bin/postgres")")
[ -x "$new/pg_upgrade" ] || die "PostgreSQL $2 has no pg_upgrade here"
mkdir -p "$STATE/run"
work=$(mktemp -d "$STATE/run/upgrade.XXXXXX")
sockets=$(mktemp -d /tmp/litmus-XXXXXX)
! is_root || chown postgres: "$work" "$sockets"
end() {
    local status=$?
    trap '' HUP INT TERM
    [ $status = 0 ] || tail -n 20 "$work"/*.log "$work"/new/pg_upgrade_output.d/*/log/*.log >&2 || true
    for data in old new; do
        [ ! -f "$work/$data/postmaster.pid" ] || as_postgres "${!data}/pg_ctl" -D "$work/$data" -m fast stop >/dev/null || true
    done
    [ ! -f "$work/ports/pid" ] || kill "$(cat "$work/ports/pid")" || true
    rm -rf "$work" "$sockets"
    exit $status
}
trap end EXIT

as_postgres mkdir "$work/ports"
as_postgres "$STATE/nats/bin/nats-server" --addr 127.0.0.1 --port -1 --ports_file_dir "$work/ports" --log "$work/nats.log" --pid "$work/ports/pid" \
    </dev/null >/dev/null 2>&1 &
port=''
for _ in {1..100}; do
    port=$(cat "$work"/ports/*.ports 2>/dev/null | tr -d '\n ' | sed -nE 's/.*"nats":\["[a-z]+:\/\/[^"]*:([0-9]+)".*/\1/p') || true
    [ -z "$port" ] || break
    sleep 0.1
done
[ -n "$port" ] || die "nats-server did not start"

sql() { as_postgres "$STATE/pg15/bin/psql" -h "$sockets" -X -v ON_ERROR_STOP=1 -Atq -d "${database:-postgres}" -c "$1"; }
until_sql() { # QUERY ANSWER
    for _ in {1..150}; do
        [ "$(sql "$1" 2>&1)" != "$2" ] || return 0
        sleep 0.1
    done
    die "$1: not $2, but $(sql "$1" 2>&1)"
}
server() { as_postgres "$2/pg_ctl" -D "$work/$1" -l "$work/$1.log" -w -t 30 "$3" >/dev/null; } # DATA BINDIR ACTION
cluster() { # DATA BINDIR [OPTION...]
    as_postgres "$2/initdb" -D "$work/$1" -U postgres -A trust --no-locale --encoding UTF8 --no-sync "${@:3}" >/dev/null
    printf '%s\n' "unix_socket_directories = '$sockets'" "listen_addresses = ''" 'max_worker_processes = 16' \
        "shared_preload_libraries = 'litmus_pgnats'" >>"$work/$1/postgresql.conf"
}
handlers_live() {
    until_sql "SELECT string_agg(state, ' ') FROM (TABLE litmus_pgnats.subscriptions UNION ALL TABLE litmus_pgnats.responders) h" 'live live'
    sql 'TRUNCATE inbox'
    sql "SELECT nats_publish_text('orders.created', '$1')" >/dev/null
    until_sql 'SELECT payload FROM inbox' "$1"
    [ "$(sql "SELECT nats_request_text('greet', 'world')")" = 'hello world' ] || die "the responder does not answer"
}

say "PostgreSQL $1 with handlers"
cluster old "$old"
server old "$old" start
# The handlers' database is not the first one: object ids are the more likely to move.
sql 'CREATE DATABASE shop'
database=shop
sql 'CREATE EXTENSION litmus_pgnats'
sql "CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '$port')"
sql 'CREATE TABLE inbox (payload text)'
sql "CREATE FUNCTION keep(msg bytea) RETURNS void LANGUAGE sql AS \$\$ INSERT INTO public.inbox VALUES (convert_from(msg, 'utf8')) \$\$"
sql "CREATE FUNCTION greet(name text) RETURNS text LANGUAGE sql AS \$\$ SELECT 'hello ' || name \$\$"
sql "SELECT nats_subscribe('orders.>', 'keep')" >/dev/null
sql "SELECT litmus_pgnats_register_responder('greet', 'greet')" >/dev/null
handlers_live before
# Debian's 15.20 marks each column of a new table with an option that it alone knows; no later major takes it.
for database in shop postgres template1; do
    sql "SET allow_system_table_mods = on; UPDATE pg_attribute SET attoptions = NULL WHERE attoptions::text LIKE '{pg_attver=%'"
done
database=shop
server old "$old" stop

say "pg_upgrade to $2"
checksums=()
[ "$2" -lt 18 ] || checksums=(--no-data-checksums) # new by default, and pg_upgrade wants both alike
cluster new "$new" "${checksums[@]}"
as_postgres env -C "$work/new" "$new/pg_upgrade" -b "$old" -B "$new" -d "$work/old" -D "$work/new" -U postgres \
    -s "$sockets" --no-sync >"$work/pg_upgrade.log" || die "pg_upgrade failed" "$(tail -30 "$work/pg_upgrade.log")"

say "PostgreSQL $2 with the same handlers"
server new "$new" start
handlers_live after
say "ok"
