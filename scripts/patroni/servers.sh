# Sourced after scripts/servers.sh: a throw-away Patroni cluster on the loopback interface.
#
#   start_patroni NAME...   etcd, and a member of each name; ports in member_port and member_api; patroni_url for
#                           the foreign server; returns when the first has the leader lock and the others follow it
#   patroni_leader          the name of the member that is primary and holds the lock
#   patronictl ARGUMENT...  Patroni's own command
#   on NAME                 psql goes to this member from now on
# shellcheck shell=bash
# shellcheck disable=SC2154  # work, root and bindir are those of scripts/servers.sh

python=/usr/bin/python3
declare -A member_port=() member_api=()
patroni_url='' first_member=''

# free_ports COUNT: ports of 127.0.0.1, one a line.
free_ports() {
    "$python" -c 'import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets), sep="\n")' "$1"
}

# A server that runs until the end; its process id is in $work/NAME.pid, what it prints in $work/NAME.log.
serve() { # NAME CMD...
    local name=$1; shift
    # shellcheck disable=SC2016  # for the inner shell
    as_postgres sh -c 'echo $$ >"$0"; exec "$@"' "$work/$name.pid" "$@" </dev/null >"$work/$name.log" 2>&1 &
}

start_patroni() { # NAME...
    local ports name directories=()
    first_member=$1
    mapfile -t ports < <(free_ports $((3 + 2 * $#)))
    local client=http://127.0.0.1:${ports[0]} peer=http://127.0.0.1:${ports[1]}
    serve etcd "$STATE/etcd/bin/etcd" --name etcd --data-dir "$work/etcd" --log-level warn --unsafe-no-fsync \
        --listen-client-urls "$client" --advertise-client-urls "$client" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "etcd=$peer"
    await "etcd did not start" answers "${ports[0]}" /health '"health":"true"'
    at_end+=(stop_patroni)
    local etcd=${ports[0]} localhost=${ports[2]}
    ports=("${ports[@]:3}")
    for name; do
        member_port[$name]=${ports[0]} member_api[$name]=${ports[1]}
        ports=("${ports[@]:2}")
        directories+=("$work/$name/data=${member_api[$name]}")
        as_postgres mkdir "$work/$name"
        sed -e "s|{name}|$name|g; s|{work}|$work|g; s|{bin}|$bindir|g; s|{etcd}|$etcd|g; s|{fencing}|on|g" \
            -e "s|{api}|${member_api[$name]}|g; s|{port}|${member_port[$name]}|g" \
            "$root/scripts/patroni/member.yml" >"$work/$name.yml"
        start_member "$name"
        [ "$name" != "$1" ] || await "$name did not become primary" leads "$name"
    done
    # postgres may not be able to read the file where it is
    serve localhost "$python" -c "$(cat "$root/scripts/patroni/localhost.py")" "$localhost" "${directories[@]}"
    # shellcheck disable=SC2034  # for who has sourced this
    patroni_url=http://127.0.0.1:$localhost
    for name in "${@:2}"; do await "$name did not follow the primary" follows "$name"; done
}

start_member() { serve "$1" env PYTHONPATH="$STATE/patroni" PYTHONDONTWRITEBYTECODE=1 "$python" -m patroni "$work/$1.yml"; } # NAME

answers() { http_get "$1" "$2" 2>/dev/null | grep -q "$3"; } # PORT PATH TEXT
leads() { answers "${member_api[$1]}" /primary '^HTTP/1.0 200'; } # NAME
follows() { answers "${member_api[$1]}" /patroni '"replication_state": "streaming"'; } # NAME

patroni_leader() {
    local name
    for name in "${!member_api[@]}"; do ! leads "$name" || echo "$name"; done
}

patronictl() { # ARGUMENT...
    as_postgres env PYTHONPATH="$STATE/patroni" PYTHONDONTWRITEBYTECODE=1 \
        "$python" -c 'from patroni.ctl import ctl; ctl()' -c "$work/$first_member.yml" "$@"
}

on() { export PGHOST=127.0.0.1 PGPORT=${member_port[$1]} PGUSER=postgres PGDATABASE=postgres; } # NAME

# PostgreSQL is no child of Patroni, which would also start it again.
stop_patroni() {
    local name
    for name in "${!member_api[@]}"; do kill -KILL "$(cat "$work/$name.pid")"; done
    for name in "${!member_api[@]}"; do
        [ ! -f "$work/$name/data/postmaster.pid" ] ||
            as_postgres "$bindir/pg_ctl" -D "$work/$name/data" -m immediate -t 20 -w stop
    done
}
