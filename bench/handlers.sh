# Sourced by run.sh: the sections that measure subscriptions and responders.
# shellcheck shell=bash
# Variables come from run.sh and go there; $$ and $ in single quotes are SQL's.
# shellcheck disable=SC2154,SC2034,SC2016

drain_messages=200000 latency_messages=300

# Until the subscription has executed so many messages; prints the time in microseconds.
drained() { # COUNT
    psql -Atq -v count="$1" <<'SQL'
SELECT set_config('bench.count', :'count', false) \g /dev/null
DO $$
BEGIN
  WHILE (SELECT messages < current_setting('bench.count')::bigint FROM litmus_pgnats.subscriptions WHERE subject = 'd') LOOP
    PERFORM pg_sleep(0.002);
  END LOOP;
END $$;
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
SQL
}

drain() {
    local run start sent end rates=() yardstick=() total=0 rows
    # The commits of both wait for the disk, as they do by default.
    psql -q -c 'ALTER SYSTEM SET fsync = on' -c 'SELECT pg_reload_conf()' -c 'CREATE TABLE drained (payload text)' \
        -c "CREATE FUNCTION drain(msg bytea) RETURNS void LANGUAGE sql AS
            \$\$ INSERT INTO drained VALUES (convert_from(msg, 'UTF8')) \$\$" \
        -c "SELECT nats_subscribe('d', 'drain')" -c 'SELECT nats_get_server_info()' >/dev/null
    heading "drain: $drain_messages messages of 100 bytes into a table by a callback, per second" callback "pgbench INSERT"
    for ((run = 0; run < runs; run++)); do
        settle
        total=$((total + drain_messages))
        read -r start sent < <(client publish d $drain_messages 100) || die "publishing failed"
        end=$(drained $total)
        rows=$(psql -Atqc 'SELECT count(*) FROM drained')
        [ "$rows" = $total ] || die "$rows of $total messages are in the table"
        rates+=("$(calc "$drain_messages / ($end - $start) * 1e6")")
        bench prepared 1 insert.sql
        yardstick+=("$tps")
        psql -qc 'DELETE FROM drained WHERE payload = repeat($$y$$, 100)'
    done
    line "  one callback" 5.00 "${rates[@]}" "${yardstick[@]}"
    psql -q -c "SELECT nats_unsubscribe('d', 'drain')" -c 'ALTER SYSTEM RESET fsync' -c 'SELECT pg_reload_conf()' >/dev/null
}

latency() {
    psql -q -c "CREATE FUNCTION notify(msg text) RETURNS void LANGUAGE sql AS \$\$ SELECT pg_notify('latency', msg) \$\$" \
        -c "SELECT nats_subscribe('l', 'notify')" -c 'SELECT nats_get_server_info()' >/dev/null
    local median p99
    read -r median p99 < <(client latency "$PGHOST" l $latency_messages) || die "the client failed"
    printf '\n%s\n  median %.0f, 99th percentile %.0f microseconds\n' \
        "latency: from a publish on an idle system to the notification that its callback has committed" "$median" "$p99"
    psql -qc "SELECT nats_unsubscribe('l', 'notify')" >/dev/null
    verdict "$(calc "3000 / $median")" 1.00
    printf '  3000 / median %42.2f  %s\n' "$(calc "3000 / $median")" "$verdict"
}

responder() {
    psql -q -c "CREATE FUNCTION respond(msg bytea) RETURNS bytea LANGUAGE sql AS 'SELECT msg'" \
        -c "SELECT litmus_pgnats_register_responder('c', 'respond')" -c 'SELECT nats_get_server_info()' >/dev/null
    local clients run measured yardstick
    heading "responder: round trips of bare clients' requests, per second" responder "pgbench SELECT"
    for clients in 1 32; do
        measured=() yardstick=()
        for ((run = 0; run < runs; run++)); do
            bare request "$clients"
            measured+=("$tps")
            bench prepared "$clients" respond.sql
            yardstick+=("$tps")
        done
        line "  requesters: $clients" "$([ $clients = 1 ] || echo 0.50)" "${measured[@]}" "${yardstick[@]}"
    done
    psql -qc "SELECT litmus_pgnats_unregister_responder('c')" >/dev/null
}
