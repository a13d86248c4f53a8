#!/usr/bin/env bash
# The guided tour: every chapter in this directory, in the order of the names, against servers of its own.
# Started by make demo. Fails if a step does not give what the chapter says it gives.
#
# A chapter is a file NN-name.sh, sourced here, or NN-name.sql, given to psql. It may use
#   listen SUBJECT COUNT           an outside program subscribes; `heard` waits for its messages and shows them
#   answer SUBJECT                 an outside program answers requests; `hang_up` ends it
#   chapter, tell, sql, run, ...   see demo/telling.sh; outside programs connect to "first" at first
#   start_nats, nats_port, ...     see scripts/servers.sh
# and finds the extension, the foreign server my_nats and, behind it, the nats-server "first".
set -euo pipefail
# shellcheck source=scripts/servers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/servers.sh"
# shellcheck source=demo/telling.sh
. "$root/demo/telling.sh"

outside() { # PROGRAM-ARGUMENT...
    outside_command "$@"
    background "$EXAMPLES/nats" --server "$(nats_url "$nats")" "$@" >"$work/outside.txt" 2>&1
    await "the outside program did not start" grep -q -e ^listening -e ^answering "$work/outside.txt"
}

listen() { outside sub "$1" --count "$2"; } # SUBJECT COUNT
answer() { outside echo "$1"; }             # SUBJECT

is_over() { ! kill -0 "$pid" 2>/dev/null; }

heard() {
    await "the message did not arrive" is_over
    wait "$pid" || die "the outside program failed: $(cat "$work/outside.txt")"
    result=$(cat "$work/outside.txt")
    printf '\n    %sand the outside program prints:%s\n' "$green" "$plain"
    show "$result"
}

hang_up() { kill "$pid"; }

say "starting a throw-away PostgreSQL and a nats-server"
servers_begin demo
start_postgres "max_connections = 20"
start_nats first --jetstream
outside_is_at first

for file in "$root"/demo/[0-9]*; do
    # shellcheck source=/dev/null
    if [[ $file == *.sql ]]; then sql <"$file"; else . "$file"; fi
done

printf '\n'
say "that was the tour; its servers are being stopped and removed"
