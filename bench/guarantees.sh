# Sourced by run.sh: the sections that measure the outbox and durable subscriptions.
# shellcheck shell=bash
# Variables come from run.sh and go there; $$ and $ in single quotes are SQL's.
# shellcheck disable=SC2154,SC2034,SC2016

queue_messages=100000

# Waits until a query gives this number; prints the time in microseconds.
until_number() { # NUMBER QUERY
    psql -Atq -v number="$1" -v query="$2" <<'SQL'
SELECT set_config('bench.number', :'number', false), set_config('bench.query', :'query', false) \g /dev/null
DO $$
DECLARE found bigint;
BEGIN
  LOOP
    EXECUTE current_setting('bench.query') INTO found;
    EXIT WHEN found = current_setting('bench.number')::bigint;
    PERFORM pg_sleep(0.005);
  END LOOP;
END $$;
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
SQL
}

outbox_is_empty() { until_number 0 'SELECT count(*) FROM (SELECT FROM litmus_pgnats.outbox_batch LIMIT 1) b'; }

# The commits wait for the disk, as they do by default.
with_fsync() { # on|off
    if [ "$1" = on ]; then psql -q -c 'ALTER SYSTEM SET fsync = on'; else psql -q -c 'ALTER SYSTEM RESET fsync'; fi
    psql -qc 'SELECT pg_reload_conf()' >/dev/null
}

outbox() {
    local run start sent end measured=() yardstick=() rates=() bare=()
    with_fsync on
    psql -q -c 'CREATE TABLE plain (payload text)'
    heading "outbox: SELECT nats_publish_text_outbox of 100 bytes, 8 sessions, transactions per second" outbox "one-row INSERT"
    for ((run = 0; run < runs; run++)); do
        bench prepared 8 outbox.sql
        measured+=("$tps")
        outbox_is_empty >/dev/null
        bench prepared 8 plain.sql
        yardstick+=("$tps")
    done
    line "  while they are delivered" 0.50 "${measured[@]}" "${yardstick[@]}"
    heading "outbox: delivery of $queue_messages messages of 100 bytes with acknowledgements, per second" "outbox relay" "bare client"
    for ((run = 0; run < runs; run++)); do
        settle
        start=$(psql -Atq -v messages=$queue_messages <<'SQL'
SELECT count(nats_publish_text_outbox('queue', repeat('x', 100))) FROM generate_series(1, :messages) \g /dev/null
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
SQL
        ) || die "writing to the outbox failed"
        end=$(outbox_is_empty)
        rates+=("$(calc "$queue_messages / ($end - $start) * 1e6")")
        settle
        read -r start sent < <(client fill queue $queue_messages 100) || die "the bare client failed"
        bare+=("$(calc "$queue_messages / ($sent - $start) * 1e6")")
    done
    line "  from the commit on" 0.50 "${rates[@]}" "${bare[@]}"
    [ "$(psql -Atqc 'SELECT count(*) FROM litmus_pgnats.dead_letter')" = 0 ] || die "there are dead letters"
    with_fsync off
}

durable() {
    local run start end last kind label rates=() yardstick=()
    with_fsync on
    psql -q -c 'CREATE TABLE queued (payload text)' -c 'CREATE TABLE IF NOT EXISTS drained (payload text)' \
        -c 'CREATE FUNCTION queue_one(msg text) RETURNS void LANGUAGE sql AS
            $$ INSERT INTO queued VALUES (msg) $$' \
        -c 'CREATE FUNCTION queue_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS
            $$ INSERT INTO queued SELECT convert_from(payload, $c$UTF8$c$) FROM unnest(messages) $$'
    heading "durable: $queue_messages messages of 100 bytes from a stream into a table, per second" callback "pgbench INSERT"
    for kind in one many; do
        rates=() yardstick=()
        for ((run = 0; run < runs; run++)); do
            client fill queue $((queue_messages - 1)) 100 >/dev/null || die "the bare client failed"
            last=$(psql -Atqc "SELECT nats_publish_text_stream('queue', 'last')")
            psql -qc 'TRUNCATE queued'
            settle
            start=$(psql -Atqc 'SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint')
            psql -q >/dev/null <<SQL
SELECT nats_subscribe_stream('queue', 'queue_$kind', start_sequence => $((last - queue_messages + 1)), batch_size => 2000);
SQL
            end=$(until_number "$last" 'SELECT max(upper(a)) - 1 FROM litmus_pgnats.handler_stream, unnest(applied) a')
            [ "$(psql -Atqc 'SELECT count(*) FROM queued')" = $queue_messages ] || die "messages are missing"
            rates+=("$(calc "$queue_messages / ($end - $start) * 1e6")")
            psql -qc "SELECT nats_unsubscribe_stream('queue', 'queue_$kind')" >/dev/null
            bench prepared 1 insert.sql
            yardstick+=("$tps")
        done
        label='  a call for each message'
        [ $kind = one ] || label='  a call for up to 2000'
        line "$label" '' "${rates[@]}" "${yardstick[@]}"
    done
    # The goal for batches is a number of its own.
    verdict "$(calc "$(median "${rates[@]}") / 100000")" 1.00
    printf '  batches / 100,000 %38.2f  %s\n' "$(calc "$(median "${rates[@]}") / 100000")" "$verdict"
    with_fsync off
}
