#!/usr/bin/env bash
# test-package.sh ZIP DEB MAJOR: does what a new user does with the packages, on a Debian 12 that has PostgreSQL and no
# Rust (setup.sh rootfs), with a nats-server beside it. Needs root.
#
# The root file system is read only: each run writes to a layer in memory, in a mount namespace that ends with it.
# PostgreSQL 15 is Debian's own there; the other majors are the private ones, carried in.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
layer=${LITMUS_PGNATS_LAYER:-}
if [ -z "$layer" ]; then
    is_root || die "chroot is for root: run this as root"
    layer=$(mktemp -d)
    trap 'rmdir "$layer"' EXIT
    LITMUS_PGNATS_LAYER=$layer unshare --mount --pid --fork --kill-child "$0" "$@"
    exit
fi
zip=$1 deb=$2 major=$3
cd "$root"

mount -t tmpfs litmus "$layer"
mkdir "$layer"/{upper,work,root}
machine=$layer/root
mount -t overlay litmus -o "lowerdir=$STATE/rootfs,upperdir=$layer/upper,workdir=$layer/work" "$machine"
mount -t proc proc "$machine/proc"

in_machine() { # CMD...
    chroot "$machine" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}
! in_machine sh -c 'command -v cargo || command -v rustc || command -v cc' ||
    die "the root file system has a compiler: this is no bare machine"

if [ "$major" = 15 ]; then
    pg_config=/usr/lib/postgresql/15/bin/pg_config
else
    cp -a "$STATE/pg$major" "$machine/opt/postgresql"
    pg_config=/opt/postgresql/bin/pg_config
    # What an earlier `make private` has left there.
    in_machine sh -c "rm -f \$($pg_config --pkglibdir)/litmus_pgnats* \$($pg_config --sharedir)/extension/litmus_pgnats*"
fi

# What the machine's user sees of NATS is a port.
mkdir "$layer/ports"
"$STATE/nats/bin/nats-server" --addr 127.0.0.1 --port -1 --ports_file_dir "$layer/ports" \
    --log "$layer/nats.log" </dev/null &
port=''
for _ in {1..100}; do
    port=$(cat "$layer"/ports/*.ports 2>/dev/null | tr -d '\n ' | sed -nE 's/.*"nats":\["[a-z]+:\/\/[^"]*:([0-9]+)".*/\1/p') || true
    [ -z "$port" ] || break
    sleep 0.1
done
[ -n "$port" ] || die "nats-server did not start" "$(cat "$layer/nats.log")"

mkdir "$machine/download"
cp "$zip" "$deb" packaging/tour.sh docker/entry.sh "$machine/download/"
in_machine PG_CONFIG="$pg_config" MAJOR="$major" NATS_PORT="$port" /download/tour.sh
