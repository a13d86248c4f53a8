#!/usr/bin/env bash
# What a new user does with the packages in /download, as root on a bare machine: scripts/test-package.sh runs this there.
# PG_CONFIG, MAJOR and NATS_PORT say what there is.
set -Eeuo pipefail
bindir=$("$PG_CONFIG" --bindir)
data=/var/lib/postgresql/tour
libraries=$("$PG_CONFIG" --pkglibdir)

step() { printf -- '--- %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; [ ! -f /tmp/server.log ] || tail -30 /tmp/server.log >&2; exit 1; }
trap 'fail "line $LINENO"' ERR
as_postgres() { setpriv --reuid=postgres --regid=postgres --init-groups env -C / "$@"; }
# 15's own psql speaks to every major.
sql() { as_postgres psql -h /tmp -X -v ON_ERROR_STOP=1 -Atq -c "$1"; }
has() { grep -qF -- "$1" <<<"$2" || fail "no \"$1\" in: $2"; }
server() { as_postgres "$bindir/pg_ctl" -D "$data" -l /tmp/server.log -w -t 30 "$@" >/dev/null; }
# until_sql QUERY ANSWER
until_sql() {
    for _ in {1..150}; do
        [ "$(sql "$1" 2>&1)" != "$2" ] || return 0
        sleep 0.1
    done
    fail "$1: not $2, but $(sql "$1" 2>&1)"
}
works() {
    sql 'TRUNCATE inbox'
    sql "SELECT nats_publish_text('orders.created', 'order 1')" >/dev/null
    until_sql 'SELECT payload FROM inbox' 'order 1'
    [ "$(sql "SELECT nats_request_text('greet', 'world')")" = 'hello world' ]
}

step 'unpack and install'
cd "$(mktemp -d)"
unzip -q /download/litmus-pgnats-*.zip
for file in install.sh litmus_pgnats.so litmus_pgnats.control LICENSE README.md litmus_pgnats--*.sql; do
    [ -f "$file" ] || fail "the zip has no $file"
done
has 'CREATE EXTENSION litmus_pgnats' "$(PATH=$(dirname "$PG_CONFIG"):$PATH ./install.sh)"
has 'nothing to do' "$(./install.sh "$PG_CONFIG")"
[ "$(stat -c '%a %U' "$libraries/litmus_pgnats.so")" = '755 root' ]
[ "$(stat -c '%a %U' "$("$PG_CONFIG" --sharedir)/extension/litmus_pgnats.control")" = '644 root' ]

step 'what the library needs'
needs=$(ldd "$libraries/litmus_pgnats.so" | awk '{print $1}' | grep -vE '^(linux-vdso|libc|libm|libgcc_s)\.so|/ld-linux' || true)
[ -z "$needs" ] || fail "the library needs $needs"

step 'first steps, without shared_preload_libraries'
as_postgres "$bindir/initdb" -D "$data" -A trust >/dev/null
echo "unix_socket_directories = '/tmp'
listen_addresses = ''" >>"$data/postgresql.conf"
server start
sql 'CREATE EXTENSION litmus_pgnats'
sql "CREATE SERVER my_nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port '$NATS_PORT')"
sql 'CREATE TABLE inbox (payload text)'
sql "CREATE FUNCTION keep(msg bytea) RETURNS void LANGUAGE sql AS
       \$\$ INSERT INTO public.inbox VALUES (convert_from(msg, 'utf8')) \$\$"
sql "CREATE FUNCTION greet(name text) RETURNS text LANGUAGE sql AS \$\$ SELECT 'hello ' || name \$\$"
sql "SELECT nats_subscribe('orders.>', 'keep')" >/dev/null
sql "SELECT litmus_pgnats_register_responder('greet', 'greet')" >/dev/null
until_sql "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state = 'live'" 1
until_sql "SELECT count(*) FROM litmus_pgnats.responders WHERE state = 'live'" 1
works

step 'with shared_preload_libraries'
echo "shared_preload_libraries = 'litmus_pgnats'" >>"$data/postgresql.conf"
server restart
until_sql "SELECT count(*) FROM litmus_pgnats.subscriptions WHERE state = 'live'" 1
until_sql "SELECT count(*) FROM litmus_pgnats.responders WHERE state = 'live'" 1
works

step 'the files go away under a running server, and come back'
./install.sh --uninstall "$PG_CONFIG" >/dev/null
[ -z "$(find "$libraries" "$("$PG_CONFIG" --sharedir)" -name '*litmus_pgnats*')" ]
has 'could not access file' "$(sql "SELECT nats_publish_text('orders.created', '')" 2>&1 || true)"
./install.sh "$PG_CONFIG" >/dev/null
works

step 'the last steps'
sql 'SET client_min_messages = warning; DROP EXTENSION litmus_pgnats CASCADE'
sed -i '/litmus_pgnats/d' "$data/postgresql.conf"
server restart
./install.sh --uninstall "$PG_CONFIG" >/dev/null
has 'is not installed' "$(./install.sh --uninstall "$PG_CONFIG")"
has 'extension "litmus_pgnats" is not available' "$(sql 'CREATE EXTENSION litmus_pgnats' 2>&1 || true)"

if [ "$MAJOR" = 15 ]; then
    step 'the Debian package'
    export DEBIAN_FRONTEND=noninteractive
    dpkg -i /download/*.deb >/dev/null 2>&1
    sql 'CREATE EXTENSION litmus_pgnats'
    sql 'SELECT FROM litmus_pgnats_version()'
    dpkg --purge postgresql-15-litmus-pgnats >/dev/null 2>&1
    [ -z "$(find /usr /etc /var/lib/dpkg -name '*litmus?pgnats*')" ]
fi
server stop

step 'the image'
# Its base is not to be had here: the base's entry point and its variables are played.
./install.sh "$PG_CONFIG" >/dev/null
cat >/usr/local/bin/docker-entrypoint.sh <<'SH'
#!/bin/sh
echo "$POSTGRES_DB $POSTGRES_USER $POSTGRES_PASSWORD $PGPORT: $*"
SH
chmod 755 /usr/local/bin/docker-entrypoint.sh
said=$(/download/entry.sh postgres)
[ "$said" = 'postgres postgres postgres 5432: postgres -c shared_preload_libraries=litmus_pgnats' ] || fail "$said"
said=$(dbname=shop dbuser=me dbpassword=secret port=6000 /download/entry.sh postgres -c work_mem=8MB)
[ "$said" = 'shop me secret 6000: postgres -c shared_preload_libraries=litmus_pgnats -c work_mem=8MB' ] || fail "$said"
[ "$(/download/entry.sh bash)" = 'postgres postgres postgres 5432: bash' ]
said=$(dbuser=me /download/entry.sh postgres)
has 'me me postgres' "$said"
# The server, started as the image starts it.
server -o '-c shared_preload_libraries=litmus_pgnats' start
until_sql "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'litmus_pgnats runtime'" 1
server stop
step 'ok'
