# Sourced by every script of the project: where things are and who runs what.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

# Directories made here are entered by user postgres too, whatever the caller's umask is.
umask 022

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; shift; [ $# = 0 ] || printf '    %s\n' "$@" >&2; exit 1; }

# The version of the extension, which stands in the control file alone.
control_version() { sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" "$root/litmus_pgnats.control"; }

is_root() { [ "$(id -u)" = 0 ]; }

# Can an ordinary user reach DIR, or the part of its path that exists? Asked as nobody and not as postgres, so that the
# answer is the same before and after user postgres is created.
reachable() {
    local dir=$1
    while [ ! -e "$dir" ]; do dir=$(dirname "$dir"); done
    setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$dir"
}

# STATE holds the private PostgreSQL, nats-server and so on. PostgreSQL refuses to run as root, so root's servers run as
# postgres, who cannot enter a clone under a 0700 home: then the state goes to /var/tmp.
if [ -n "${LITMUS_PGNATS_STATE:-}" ]; then
    STATE=$(realpath -m "$LITMUS_PGNATS_STATE")
    ! is_root || reachable "$STATE" || die "LITMUS_PGNATS_STATE=$STATE: user postgres cannot enter it; choose another"
else
    STATE=$root/target/state
    if is_root && ! reachable "$STATE"; then
        STATE=/var/tmp/litmus_pgnats-$(printf %s "$root" | sha256sum | cut -c1-8)
        # Anybody may create names in /var/tmp: what is not ours is not used.
        [ ! -e "$STATE" ] || { [ -O "$STATE" ] && [ ! -L "$STATE" ]; } || die "$STATE belongs to somebody else"
    fi
fi
export LITMUS_PGNATS_STATE=$STATE

# rustup's directory is not in PATH of a shell that was open while Rust was installed, nor under sudo or cron.
case ":$PATH:" in
    *":${CARGO_HOME:-$HOME/.cargo}/bin:"*) ;;
    *) PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin ;;
esac

# as_postgres CMD...: run CMD in $STATE as a user that PostgreSQL agrees to run as. In $STATE, because the caller's
# directory may be closed to postgres, and initdb and pg_ctl complain about that.
as_postgres() {
    if is_root; then
        setpriv --reuid=postgres --regid=postgres --init-groups env -C "$STATE" HOME="$STATE" USER=postgres "$@"
    else
        env -C "$STATE" "$@"
    fi
}

# as_root CMD...: run CMD as root, or say what the user has to do and end.
as_root() {
    if is_root; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    elif [ -t 0 ] && command -v sudo >/dev/null; then
        say "sudo $*"
        sudo "$@"
    else
        die "this needs root. Run as root and try again:" "${hint:-$*}"
    fi
}
