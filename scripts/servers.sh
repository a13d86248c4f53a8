# Sourced by the demo and the benchmarks: throw-away servers, which are gone when the script ends, however it ends.
#
#   servers_begin NAME             a directory for this run, $work; removed at the end
#   start_postgres [SETTING...]    PostgreSQL with the extension preloaded, on a Unix socket alone; then psql reaches it
#   start_nats NAME [OPTION...]    a nats-server, with --jetstream if so; then nats_port NAME and nats_url NAME say where it is
#   stop_nats NAME
#   background CMD...              a program in the background; its process id is in $pid
#   await WHAT CMD...              wait until CMD succeeds; fail with WHAT after $patience seconds, 15 unless set
#   at_end+=(CMD)                  what is to be done before the servers are stopped
#
# What the servers are made of comes from the Makefile, by PG_CONFIG, PSQL, PGBENCH, NATS_SERVER and EXAMPLES.
# shellcheck shell=bash
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for name in PG_CONFIG PSQL PGBENCH NATS_SERVER EXAMPLES; do
    [ -n "${!name:-}" ] || die "there is no $name: this script is started by make demo or make bench"
done
bindir=$("$PG_CONFIG" --bindir)

# Nothing of the user's own environment shall reach the servers or psql.
while IFS= read -r name; do
    case $name in
        PG_CONFIG | PGBENCH) export -n "${name?}" ;;
        PG* | LC_* | LANG | LANGUAGE | NATS_URL) unset "$name" ;;
    esac
done < <(compgen -e)
export LC_ALL=C

work='' sockets='' background_pids=() at_end=() patience=15

servers_begin() { # NAME
    mkdir -p "$STATE/run"
    trap servers_end EXIT
    # Each ends the script, and so runs the trap above.
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 141' PIPE
    trap 'exit 143' TERM
    work=$(mktemp -d "$STATE/run/$1.XXXXXX")
    # Not in $work: the path of a Unix socket has at most 107 bytes.
    sockets=$(mktemp -d /tmp/litmus-XXXXXX)
    chmod 755 "$work" "$sockets"
    ! is_root || chown postgres: "$work" "$sockets"
}

servers_end() {
    local status=$? pid_file log command
    trap '' HUP INT PIPE TERM
    if [ $status != 0 ] && [ $status -lt 128 ] && [ -n "$work" ]; then
        for log in "$work"/*.log; do
            [ ! -s "$log" ] || { printf '\n--- the end of %s\n' "${log##*/}"; tail -n 20 "$log"; } >&2
        done
    fi
    {
        for command in "${at_end[@]}"; do "$command"; done
        [ ${#background_pids[@]} = 0 ] || kill "${background_pids[@]}"
        if [ -n "$work" ]; then
            if [ -f "$work/data/postmaster.pid" ]; then
                as_postgres "$bindir/pg_ctl" -D "$work/data" -m fast -t 20 -w stop ||
                    as_postgres "$bindir/pg_ctl" -D "$work/data" -m immediate -w stop
            fi
            for pid_file in "$work"/*.pid; do
                [ ! -f "$pid_file" ] || kill -KILL "$(cat "$pid_file")"
            done
        fi
        wait
        [ -z "$work" ] || rm -rf "$work"
        [ -z "$sockets" ] || rm -rf "$sockets"
    } >/dev/null 2>&1 || true
    exit $status
}

background() { # CMD...
    "$@" </dev/null &
    pid=$!
    background_pids+=("$pid")
}

await() { # WHAT CMD...
    local what=$1 deadline=$((SECONDS + patience)); shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || die "$what"
        sleep 0.02
    done
}

start_postgres() { # SETTING...
    local setting
    as_postgres "$bindir/initdb" --username=postgres --auth=trust --no-sync --no-locale --encoding=UTF8 \
        -D "$work/data" >"$work/initdb.log" 2>&1 </dev/null || die "initdb failed"
    for setting in "shared_preload_libraries = 'litmus_pgnats'" "listen_addresses = ''" \
        "unix_socket_directories = '$sockets'" "max_worker_processes = 32" "fsync = off" "$@"; do
        echo "$setting"
    done >>"$work/data/postgresql.conf"
    as_postgres "$bindir/pg_ctl" -D "$work/data" -l "$work/postgresql.log" -s -w -t 60 start </dev/null >/dev/null ||
        die "PostgreSQL did not start"
    export PGHOST=$sockets PGUSER=postgres PGDATABASE=postgres
}

psql() { "$PSQL" -X -v ON_ERROR_STOP=1 "$@"; }

declare -A nats_ports=() nats_monitors=()

start_nats() { # NAME OPTION...
    local name=$1 ports=$work/$1.ports; shift
    as_postgres mkdir "$ports"
    # The server chooses free ports itself and tells which in a file.
    as_postgres "$NATS_SERVER" --addr 127.0.0.1 --port -1 --http_port -1 --server_name "$name" \
        --pid "$work/$name.pid" --ports_file_dir "$ports" --log "$work/$name.log" \
        --store_dir "$work/$name.store" "$@" </dev/null >/dev/null 2>&1 &
    await "nats-server $name did not start" nats_is_up "$name" "$ports"
}

nats_is_up() { # NAME DIRECTORY
    local json
    # It may still be incomplete.
    json=$(cat "$2"/*.ports 2>/dev/null | tr -d '\n') || return 1
    nats_ports[$1]=$(first_port nats <<<"$json")
    nats_monitors[$1]=$(first_port monitoring <<<"$json")
    [ -n "${nats_ports[$1]}" ] && [ -n "${nats_monitors[$1]}" ]
}

first_port() { sed -nE 's/.*"'"$1"'": *\["[a-z]+:\/\/[^"]*:([0-9]+)".*/\1/p'; } # KEY

nats_port() { echo "${nats_ports[$1]}"; }
nats_url() { echo "nats://127.0.0.1:${nats_ports[$1]}"; }

# http_get PORT PATH: what a server on 127.0.0.1 answers, head and body.
http_get() {
    local socket
    exec {socket}<>"/dev/tcp/127.0.0.1/$1" || return
    printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&"$socket"
    cat <&"$socket"
    exec {socket}>&-
}

# nats_varz NAME FIELD: a number from the server's monitoring.
nats_varz() {
    local line
    while IFS= read -r line; do
        [[ ! $line =~ \"$2\":\ *([0-9]+) ]] || echo "${BASH_REMATCH[1]}"
    done < <(http_get "${nats_monitors[$1]}" /varz)
}

nats_is_gone() { ! kill -0 "$1" 2>/dev/null; }

stop_nats() { # NAME
    local server
    server=$(cat "$work/$1.pid")
    kill "$server"
    await "nats-server $1 did not stop" nats_is_gone "$server"
    rm -rf "$work/$1.pid" "$work/$1.ports"
}
