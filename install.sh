#!/bin/sh
# Installs litmus_pgnats into a PostgreSQL server on this machine, or takes it away. Needs a shell and coreutils.
set -eu

usage() {
    cat <<'EOF'
usage: install.sh [--from DIR] [--uninstall] [/path/to/pg_config]

  /path/to/pg_config   the server to install into; without it, the pg_config in PATH
  --from DIR           where litmus_pgnats.so and the other files are; without it, beside this script
  --uninstall          remove the files from the server
EOF
}
die() { echo "install.sh: $1" >&2; shift; for line; do echo "  $line" >&2; done; exit 1; }

from=$(dirname "$0") pg_config='' uninstall=''
while [ $# -gt 0 ]; do
    case $1 in
        --from) [ $# -ge 2 ] || die "--from needs a directory"; from=$2; shift ;;
        --uninstall) uninstall=yes ;;
        -h | --help) usage; exit ;;
        -*) usage >&2; die "there is no option $1" ;;
        *) [ -z "$pg_config" ] || die "more than one pg_config: $pg_config and $1"; pg_config=$1 ;;
    esac
    shift
done

# What this build is for.
version='' build_major='' build_arch=''
if [ -z "$uninstall" ]; then
    [ -f "$from/BUILD" ] || die "$from has no file BUILD: run install.sh where the package was unpacked"
    while IFS='=' read -r key value; do
        case $key in
            version) version=$value ;;
            pg_major) build_major=$value ;;
            arch) build_arch=$value ;;
        esac
    done <"$from/BUILD"
    [ "${version:+v}${build_major:+m}${build_arch:+a}" = vma ] || die "$from/BUILD does not say version, pg_major and arch"
    for file in litmus_pgnats.so litmus_pgnats.control "litmus_pgnats--$version.sql"; do
        [ -f "$from/$file" ] || die "$from has no $file: the package is incomplete"
    done
fi

# The server.
if [ -z "$pg_config" ]; then
    pg_config=$(command -v pg_config) ||
        die "no pg_config in PATH" "Name the server's own: install.sh /path/to/pg_config" \
            "It is often in /usr/lib/postgresql/${build_major:-N}/bin or /usr/pgsql-${build_major:-N}/bin."
fi
answer=$("$pg_config" --version 2>/dev/null) || die "$pg_config is no pg_config that runs here"
case $answer in
    'PostgreSQL '[1-9]*) ;;
    *) die "$pg_config is no pg_config: its --version does not say PostgreSQL" ;;
esac
server=${answer#PostgreSQL }
server_major=${server%%[!0-9]*}
lib=$("$pg_config" --pkglibdir)
ext=$("$pg_config" --sharedir)/extension
bin=$("$pg_config" --bindir)

# The architecture of a server is the machine type in its program's ELF header; this machine's, if we cannot look.
machine() { # FILE
    case $(od -A n -t x1 -j 18 -N 2 "$1" 2>/dev/null) in
        ' 3e 00') echo x86_64 ;;
        ' b7 00') echo aarch64 ;;
        ' 03 00') echo i386 ;;
        ' 15 00' | ' 00 15') echo powerpc64 ;;
        ' 00 16') echo s390x ;;
        ' f3 00') echo riscv64 ;;
        *) uname -m ;;
    esac
}

if [ -z "$uninstall" ]; then
    [ "$server_major" = "$build_major" ] ||
        die "this package is for PostgreSQL $build_major, and $pg_config belongs to PostgreSQL $server_major" \
            "Get the package for PostgreSQL $server_major, or name the pg_config of a PostgreSQL $build_major."
    server_arch=$(machine "$bin/postgres")
    [ "$server_arch" = "$build_arch" ] ||
        die "this package is for $build_arch, and the server of $pg_config is $server_arch" \
            "Get the package for $server_arch."
    [ -d "$ext" ] || die "$ext does not exist: is the server installed, or only a client?"
fi
[ -d "$lib" ] || die "$lib does not exist: is the server installed, or only a client?"
for dir in "$lib" "$ext"; do
    [ ! -d "$dir" ] || [ -w "$dir" ] || die "no permission to write to $dir; run this with sudo"
done

if [ -n "$uninstall" ]; then
    found=''
    # The control file first: from then on nobody can create the extension with half of its files gone.
    for file in "$ext/litmus_pgnats.control" "$ext"/litmus_pgnats--*.sql "$lib/litmus_pgnats.so"; do
        [ -e "$file" ] || continue
        rm -f "$file"
        echo "removed $file"
        found=yes
    done
    [ -n "$found" ] || echo "litmus_pgnats is not installed in PostgreSQL $server ($pg_config)"
    cat <<'EOF'

If a server has used it:
  - Take litmus_pgnats out of shared_preload_libraries, or the server will not start again, and restart it.
  - A database that still has the extension needs the files for DROP EXTENSION, and for other statements that its event
    triggers look at. Install once more, say DROP EXTENSION litmus_pgnats CASCADE there, and uninstall again.
EOF
    exit
fi

# put FILE DIR MODE: a new file that then takes the name. Sessions have the old library mapped: written in place it would
# crash them, but renamed over it lives on until the last of them ends. An equal file is left alone.
temporary=''
trap '[ -z "$temporary" ] || rm -f "$temporary"' EXIT
trap 'exit 1' HUP INT TERM
digest() { sum=$(sha256sum <"$1"); echo "${sum%% *}"; }
changed=''
put() {
    name=${1##*/}
    if [ -f "$2/$name" ] && [ "$(digest "$1")" = "$(digest "$2/$name")" ]; then
        chmod "$3" "$2/$name"
        return
    fi
    temporary=$2/.$name.new.$$
    cp "$1" "$temporary"
    chmod "$3" "$temporary"
    mv -f "$temporary" "$2/$name"
    temporary=''
    changed=yes
    echo "installed $2/$name"
}

# The control file last: it names the version that CREATE EXTENSION and ALTER EXTENSION look for in the others.
put "$from/litmus_pgnats.so" "$lib" 0755
for sql in "$from"/litmus_pgnats--*.sql; do put "$sql" "$ext" 0644; done
put "$from/litmus_pgnats.control" "$ext" 0644
[ -n "$changed" ] || echo "nothing to do: the same files are there"

cat <<EOF
litmus_pgnats $version is in PostgreSQL $server ($pg_config).

Next:
  1. In each database that is to use it:
         CREATE EXTENSION litmus_pgnats;
     or, where an older version is in use:
         ALTER EXTENSION litmus_pgnats UPDATE;
  2. For its background workers to start with the server (subscriptions, responders, standbys), in postgresql.conf
         shared_preload_libraries = 'litmus_pgnats'      # after a comma, if the list has others
         max_worker_processes = 32                       # 8 is the default; the workers take their share of it
     and restart the server. A server that has an older library preloaded needs the restart too.
EOF
