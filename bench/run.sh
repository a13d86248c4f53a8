#!/usr/bin/env bash
# Measures litmus_pgnats against yardsticks taken in the same run: machines differ, and so do minutes on one machine.
# Measurement and yardstick alternate; a table shows the median of each and the median of the pairs' ratios.
# Started by make bench, which takes
#   ONLY=publish,bulk,...   the sections to run: publish, bulk, request, stream, kv, object, drain, latency, responder, outbox, durable;
#                           else all
#   DURATION=5              seconds of each run of pgbench and of its yardstick
#   RUNS=3                  pairs
set -euo pipefail
# shellcheck source=scripts/servers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/servers.sh"

duration=${DURATION:-5} runs=${RUNS:-3}
IFS=', ' read -ra sections <<<"${ONLY:-publish,bulk,request,stream,kv,object,drain,latency,responder,outbox,durable}"
for section in "${sections[@]}"; do
    [[ $section == @(publish|bulk|request|stream|kv|object|drain|latency|responder|outbox|durable) ]] ||
        die "ONLY=$section: there is no such section"
done
[[ $duration =~ ^[1-9][0-9]*$ && $runs =~ ^[1-9][0-9]*$ ]] || die "DURATION and RUNS are whole numbers from 1"

bulk_messages=200000 bulk_size=100
object_megabytes=100
# What a call may take on top of SELECT 1 and the bare client's round trip, in microseconds.
allowance=40

targets=0 targets_met=0

# --- numbers ---------------------------------------------------------------------------------------------------------

calc() { awk "BEGIN { printf \"%.6f\", ($1) }"; } # EXPRESSION
median() { printf '%s\n' "$@" | sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# ratio MEASURED... YARDSTICK..., as many of each: the median of the pairs' ratios.
ratio() {
    local all=("$@") ratios=() i
    for ((i = 0; i < $# / 2; i++)); do ratios+=("$(calc "${all[i]} / ${all[i + $# / 2]}")"); done
    median "${ratios[@]}"
}

# verdict RATIO TARGET: more is better. Sets $verdict and counts.
verdict() {
    verdict=''
    [ -n "$2" ] || return 0
    targets=$((targets + 1))
    if awk "BEGIN { exit !($1 >= $2) }"; then
        verdict="$2  met"
        targets_met=$((targets_met + 1))
    else
        verdict="$2  not met"
    fi
}

heading() { printf '\n%s\n%-42s %14s %14s %7s  %s\n' "$1" "" "$2" "$3" ratio target; } # TITLE MEASURED YARDSTICK
# line LABEL TARGET MEASURED... YARDSTICK...
line() {
    local label=$1 target=$2 measured yardstick ratio; shift 2
    measured=$(median "${@:1:$# / 2}")
    yardstick=$(median "${@:$# / 2 + 1}")
    ratio=$(ratio "$@")
    verdict "$ratio" "$target"
    printf "%-42s %14.0f %14.0f %7.2f  %s\n" "$label" "$measured" "$yardstick" "$ratio" "$verdict"
}

# --- measuring -------------------------------------------------------------------------------------------------------

# bench MODE CLIENTS SCRIPT: sets $tps, $latency in microseconds, and $transactions.
bench() {
    local out threads
    threads=$(nproc)
    [ "$threads" -le "$2" ] || threads=$2
    settle
    out=$("$PGBENCH" -n -M "$1" -c "$2" -j "$threads" -T "$duration" -f "$root/bench/$3" 2>"$work/pgbench.log") ||
        die "pgbench failed: $(cat "$work/pgbench.log")"
    tps=$(sed -nE 's/^tps = ([0-9.]+).*/\1/p' <<<"$out")
    latency=$(calc "$(sed -nE 's/^latency average = ([0-9.]+) ms/\1/p' <<<"$out") * 1000")
    transactions=$(sed -nE 's/^number of transactions actually processed: ([0-9]+).*/\1/p' <<<"$out")
    [[ "$out" == *"failed transactions: 0 "* ]] || die "transactions failed" "$out"
}

# Lets what the run before has started come to rest.
settle() { sleep 0.3; }

client() { "$EXAMPLES/bench_client" "$(nats_url nats)" "$@"; }

# other_end FILE ARGUMENT...: a client in the background that is ready.
other_end() {
    local file=$1; shift
    : >"$file"
    background "$EXAMPLES/bench_client" "$(nats_url nats)" "$@" >"$file" 2>&1
    await "the client did not start" grep -q ready "$file"
}

# shellcheck source=bench/handlers.sh
. "$root/bench/handlers.sh"
# shellcheck source=bench/guarantees.sh
. "$root/bench/guarantees.sh"

# --- sections --------------------------------------------------------------------------------------------------------

publish() {
    local mode clients target
    heading "publish: SELECT nats_publish_text('a', 'hello'), transactions per second" nats_publish "SELECT 1"
    for mode in prepared simple; do
        for clients in 1 8 32 64; do
            target=''
            case $mode/$clients in
                prepared/8 | prepared/64) target=0.60 ;;
                simple/1 | simple/32) continue ;;
            esac
            publish_at "$mode" "$clients" "$target"
        done
    done
}

publish_at() { # MODE CLIENTS TARGET
    local run before measured=() yardstick=()
    for ((run = 0; run < runs; run++)); do
        settle
        before=$(nats_varz nats in_msgs)
        bench "$1" "$2" publish.sql
        measured+=("$tps")
        await "$transactions messages were published, and NATS has not got them" arrived $((before + transactions))
        bench "$1" "$2" select1.sql
        yardstick+=("$tps")
    done
    line "  $1, clients: $2" "$3" "${measured[@]}" "${yardstick[@]}"
}

arrived() { [ "$(nats_varz nats in_msgs)" -ge "$1" ]; } # COUNT

bulk() {
    heading "bulk: $bulk_messages messages of $bulk_size bytes in one statement, messages per second" \
        "one statement" "bare client"
    bulk_with subscriber 0.50
    bulk_with '' ''
}

bulk_with() { # SUBSCRIBER TARGET
    local run sent=() bare_sent=() received=() bare_received=()
    for ((run = 0; run < runs; run++)); do
        bulk_run "$1" bulk_statement
        sent+=("$rate_sent") received+=("$rate_received")
        bulk_run "$1" bulk_client
        bare_sent+=("$rate_sent") bare_received+=("$rate_received")
    done
    if [ -n "$1" ]; then
        line "  with a subscriber, until all is sent" "$2" "${sent[@]}" "${bare_sent[@]}"
        line "  with a subscriber, until all is received" '' "${received[@]}" "${bare_received[@]}"
    else
        line "  without a subscriber, until all is sent" '' "${sent[@]}" "${bare_sent[@]}"
    fi
}

bulk_statement() { psql -Atq -F ' ' -v messages=$bulk_messages -f "$root/bench/bulk.sql"; }
bulk_client() { client publish b $bulk_messages $bulk_size; }

# bulk_run SUBSCRIBER CMD: CMD prints when it started and when it had sent all. Sets $rate_sent and $rate_received.
bulk_run() {
    local start sent last
    settle
    [ -z "$1" ] || other_end "$work/count.txt" count b $bulk_messages
    read -r start sent < <("$2") || die "publishing failed"
    rate_sent=$(calc "$bulk_messages / ($sent - $start) * 1e6")
    rate_received=0
    if [ -n "$1" ]; then
        wait "$pid" || die "messages are missing" "$(cat "$work/count.txt")"
        last=$(tail -n 1 "$work/count.txt")
        rate_received=$(calc "$bulk_messages / ($last - $start) * 1e6")
    fi
}

request() {
    other_end "$work/echo.txt" echo c
    heading "request: SELECT nats_request_text('c', 'hello') to an echo, requests per second" nats_request "bare clients"
    calls request 1 '' 1.00
    calls request 8 0.70
    calls request 32 0.60
    kill "$pid"
    print_notes
}

stream() {
    heading "stream: SELECT nats_publish_text_stream('stream', 'hello'), acknowledged, memory, per second" \
        nats_publish "bare clients"
    calls stream 1 ''
    calls stream 8 0.50
    calls stream 32 ''
}

kv() {
    heading "kv: SELECT nats_put_text('bench', 'key', 'hello') in memory, puts per second" nats_put "bare clients"
    calls put 1 '' 1.00
    calls put 8 0.60
    print_notes
    heading "kv: SELECT nats_get_text('bench', 'key'), gets per second" nats_get "bare clients"
    calls get 1 '' 1.00
    calls get 8 0.60
    print_notes
}

# calls KIND CLIENTS TARGET [LATENCY-TARGET]: bench/KIND.sql in so many sessions against the same call of as many bare
# clients. Two yardsticks: each client of pgbench is a program of its own and so has a bare client to match it; but
# litmus_pgnats shares one connection among them, and so could a bare program with many tasks.
calls() {
    local kind=$1 clients=$2 target=$3 latency_target=${4:-} run
    local measured=() each=() shared=() latencies=() one_select=() one_bare=()
    for ((run = 0; run < runs; run++)); do
        bench prepared "$clients" "$kind.sql"
        measured+=("$tps") latencies+=("$latency")
        bare each "$kind" "$clients"
        each+=("$tps") one_bare+=("$latency")
        if [ "$clients" != 1 ]; then
            bare "$kind" "$clients"
            shared+=("$tps")
        elif [ -n "$latency_target" ]; then
            bench prepared 1 select1.sql
            one_select+=("$latency")
        fi
    done
    if [ "$clients" = 1 ]; then
        line "  clients: 1" "$target" "${measured[@]}" "${each[@]}"
        [ -z "$latency_target" ] || latency_line "$latency_target"
    else
        line "  clients: $clients, a connection each" "$target" "${measured[@]}" "${each[@]}"
        line "  clients: $clients, one connection for all" '' "${measured[@]}" "${shared[@]}"
    fi
}

bare() { # ARGUMENT-OF-CLIENT... CLIENTS
    settle
    read -r tps latency < <(client "$@" "$duration") || die "the bare client failed"
}

notes=''
print_notes() { printf '%s' "$notes"; notes=''; }

# Of what `calls` has measured with one client: $latencies, $one_select, $one_bare.
latency_line() { # TARGET
    local run allowed=() ratio
    for ((run = 0; run < runs; run++)); do
        allowed+=("$(calc "${one_select[run]} + ${one_bare[run]} + $allowance")")
    done
    ratio=$(ratio "${allowed[@]}" "${latencies[@]}")
    verdict "$ratio" "$1"
    printf "%-42s %14.0f %14.0f %7.2f  %s\n" '  clients: 1, latency in microseconds (a)' \
        "$(median "${latencies[@]}")" "$(median "${allowed[@]}")" "$ratio" "$verdict"
    notes="  (a) yardstick: SELECT 1 ($(round "${one_select[@]}")) + bare round trip ($(round "${one_bare[@]}"))"
    notes+=" + $allowance; ratio: yardstick / measured"$'\n'
}

object() {
    local run put get puts=() gets=() bare_puts=() bare_gets=() bytes=$((object_megabytes * 1000000))
    heading "object: a file of $object_megabytes MB in memory, MB per second" "nats_*_file" "bare client"
    for ((run = 0; run < runs; run++)); do
        settle
        read -r put get < <(psql -Atq -F ' ' -v bytes=$bytes -f "$root/bench/object.sql") || die "the session failed"
        puts+=("$(calc "$bytes / $put")") gets+=("$(calc "$bytes / $get")")
        settle
        read -r put get < <(client object $bytes) || die "the bare client failed"
        bare_puts+=("$(calc "$bytes / $put")") bare_gets+=("$(calc "$bytes / $get")")
    done
    line "  put" 1.00 "${puts[@]}" "${bare_puts[@]}"
    line "  get" 0.70 "${gets[@]}" "${bare_gets[@]}"
}

round() { printf '%.0f' "$(median "$@")"; }

servers_begin bench
start_postgres "max_connections = 200"
start_nats nats --jetstream
psql -q -v port="$(nats_port nats)" <<'SQL'
CREATE EXTENSION litmus_pgnats;
CREATE SERVER nats FOREIGN DATA WRAPPER litmus_pgnats_fdw OPTIONS (host '127.0.0.1', port :'port');
SQL

printf '%s, %s, %s cores; medians of %s runs' "$("$bindir/postgres" --version)" "$("$NATS_SERVER" --version)" "$(nproc)" "$runs"
printf ', %s s each\n' "$duration"
[[ " ${sections[*]} " != *\ @(stream|kv|object|outbox|durable)\ * ]] || client setup
for section in "${sections[@]}"; do "$section"; done
printf '\ntargets: %s of %s met\n' "$targets_met" "$targets"
