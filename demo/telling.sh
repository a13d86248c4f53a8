# Sourced by the demos, after scripts/servers.sh: what they say and show.
#
#   chapter TITLE                  a heading
#   tell TEXT                      says what comes next
#   show TEXT                      shows what a program has printed
#   sql                            runs the statements on its standard input in one session and shows what came back
#   sql_fails CONDITION            the same for statements whose last must fail with this SQLSTATE
#   expect TEXT                    what came back last must contain TEXT
#   outside_is_at NATS-SERVER      where outside programs connect to from now on
#   run ARGUMENT...                runs the outside program to its end and shows what it prints
# shellcheck shell=bash

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

run() { # PROGRAM-ARGUMENT...
    outside_command "$@"
    result=$("$EXAMPLES/nats" --server "$(nats_url "$nats")" "$@" 2>&1) || die "the outside program failed: $result"
    show "$result"
}
