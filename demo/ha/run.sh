#!/usr/bin/env bash
# litmus_pgnats in a Patroni cluster of two nodes: a switchover, seen from outside. Started by make demo-ha. Fails if a
# step does not give what it says it gives.
set -euo pipefail
# shellcheck source=scripts/servers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/servers.sh"
# shellcheck source=scripts/patroni/servers.sh
. "$root/scripts/patroni/servers.sh"
# shellcheck source=demo/telling.sh
. "$root/demo/telling.sh"

# An outside program prints notifications to the terminal as they come, and into a file.
follow_news() {
    outside_command sub ha.news
    : >"$work/news.txt"
    background "$EXAMPLES/nats" --server "$(nats_url "$nats")" sub ha.news \
        > >(tee "$work/news.txt" | sed -u "s/,\(\"system\)/,\n       \1/; s/^/    $green/; s/\$/$plain/") 2>&1
    await "the outside program did not start" grep -q ^listening "$work/news.txt"
}

heard() { # COUNT: waits until so many notifications have come in all
    await "a notification did not come" enough_news "$1"
}
enough_news() { [ "$(grep -c '"status"' "$work/news.txt")" -ge "$1" ]; }

arrived() { [ "$(psql -Atc "SELECT count(*) FROM arrived WHERE payload = '$1'")" = 1 ]; } # PAYLOAD
has_table() { [ "$(psql -Atc "SELECT to_regclass('arrived') IS NOT NULL")" = t ]; }

ctl() { # ARGUMENT...
    printf '\n    %s$ patronictl %s%s\n' "$green" "$*" "$plain"
    result=$(patronictl "$@" 2>&1) || die "patronictl failed: $result"
    show "$result"
}

say "starting etcd, a nats-server, and two PostgreSQL servers under Patroni"
servers_begin demo-ha
patience=60
start_nats first
outside_is_at first
start_patroni pg1 pg2

chapter "Two nodes, one primary"
ctl list

tell "An outside program listens to what the servers say of their roles. Nobody has named its subject yet."
follow_news

tell "The extension is set up on the primary, pg1; the standby has it by replication. Both ask the Patroni of their own machine."
on pg1
sql <<SQL
CREATE EXTENSION litmus_pgnats;
CREATE SERVER my_nats FOREIGN DATA WRAPPER litmus_pgnats_fdw
  OPTIONS (host '127.0.0.1', port '$(nats_port first)', notify_subject 'ha.news', patroni_url '$patroni_url');
CREATE TABLE arrived (node text DEFAULT 'port ' || current_setting('port'), payload text);
CREATE FUNCTION capture(msg text) RETURNS void LANGUAGE sql AS \$\$ INSERT INTO arrived (payload) VALUES (msg) \$\$;
SELECT nats_subscribe('machines.*', 'capture');
SQL
heard 1

tell "A message from outside calls the function on the primary, and not on the standby."
run pub machines.press 'before the switchover'
await "the message did not arrive" arrived 'before the switchover'
on pg2
await "the standby did not follow" has_table
await "the message was not replicated" arrived 'before the switchover'
sql <<'SQL'
SELECT pg_is_in_recovery() AS standby, * FROM arrived;
SELECT subject, function, state FROM litmus_pgnats.subscriptions;
SQL
expect " off"

chapter "A switchover"
tell "Patroni stops pg1, promotes pg2, and starts pg1 again as its standby. The servers say so:"
ctl switchover --leader pg1 --candidate pg2 --force
await "pg2 did not become primary" leads pg2
await "pg1 did not follow" follows pg1
heard 3

tell "pg2 has the subscription now. Nobody has restarted or told it anything."
run pub machines.press 'after the switchover'
await "the message did not arrive" arrived 'after the switchover'
sql <<'SQL'
SELECT pg_is_in_recovery() AS standby, * FROM arrived;
SELECT subject, function, state FROM litmus_pgnats.subscriptions;
SQL
expect " live"
ctl list

printf '\n'
say "that was it; the servers are being stopped and removed"
