#!/usr/bin/env bash
# The guided tour: every chapter in this directory, in the order of the names, against servers of its own.
# Started by make demo. Fails if a step does not give what the chapter says it gives.
#
# A chapter is a file NN-name.sh, sourced here, or NN-name.sql, given to psql. It may use
#   chapter TITLE                  a heading
#   tell TEXT                      says what comes next
#   sql                            runs the statements on its standard input in one session and shows what came back
#   sql_fails CONDITION            the same for statements whose last must fail with this SQLSTATE
#   expect TEXT                    what came back last must contain TEXT
#   listen SUBJECT COUNT           an outside program subscribes; `heard` waits for its messages and shows them
#   answer SUBJECT                 an outside program answers requests; `hang_up` ends it
#   run ARGUMENT...                runs the outside program to its end and shows what it prints
#   outside_is_at NATS-SERVER      where outside programs connect to from now on; at first, to "first"
#   start_nats, nats_port, ...     see scripts/servers.sh
# and finds the extension, the foreign server my_nats and, behind it, the nats-server "first".
set -euo pipefail
# shellcheck source=scripts/servers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/servers.sh"

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m' green=$'\e[32m'; else bold='' plain='' green=''; fi

chapter() { printf '\n%s== %s ==%s\n' "$bold" "$1" "$plain"; }
tell() { printf '\n%s\n' "$*" | fold -s -w 110; }

# indent: the statements among the lines of psql's output look as they do at psql's prompt, the rest as it is.
indent() { # STATEMENTS
    awk -v bold="$bold" -v plain="$plain" '
        NR == FNR { if ($0 != "") statements[$0] = 1; next }
        $0 in statements {
            print "    " bold (open ? "postgres-# " : "postgres=# ") $0 plain
            if (gsub(/\$\$/, "") % 2) quoted = !quoted
            open = quoted || $0 !~ /;$/
            next
        }
        { print "    " $0 }' <(printf '%s\n' "$1") -
}

show() { printf '%s\n' "$1" | sed 's/^/    /'; }

sql() {
    local statements
    statements=$(cat)
    printf '\n'
    result=$(psql -e <<<"$statements" 2>&1) || { indent "$statements" <<<"$result"; die "this statement must not fail"; }
    indent "$statements" <<<"$result"
}

sql_fails() { # CONDITION
    local statements
    statements=$(cat)
    printf '\n'
    result=$(printf '%s\n' "$statements" '\echo SQLSTATE :LAST_ERROR_SQLSTATE' | psql -v ON_ERROR_STOP=0 -e 2>&1)
    indent "$statements" <<<"$result"
    expect "SQLSTATE $1"
}

expect() { # TEXT
    [[ "$result" == *"$1"* ]] || die "the step before must give \"$1\""
}

outside_is_at() { nats=$1; }

outside_command() { printf '\n    %s$ nats %s%s\n' "$green" "$*" "$plain"; } # PROGRAM-ARGUMENT...

outside() { # PROGRAM-ARGUMENT...
    outside_command "$@"
    background "$EXAMPLES/nats" --server "$(nats_url "$nats")" "$@" >"$work/outside.txt" 2>&1
    await "the outside program did not start" grep -q -e ^listening -e ^answering "$work/outside.txt"
}

listen() { outside sub "$1" --count "$2"; } # SUBJECT COUNT
answer() { outside echo "$1"; }             # SUBJECT

run() { # PROGRAM-ARGUMENT...
    outside_command "$@"
    result=$("$EXAMPLES/nats" --server "$(nats_url "$nats")" "$@" 2>&1) || die "the outside program failed: $result"
    show "$result"
}

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
