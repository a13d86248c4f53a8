#!/usr/bin/env bash
# package.sh zip|deb MAJOR: what users install, made of the release build.
# package.sh pgxn: the committed sources, as PGXN distributes them.
# Prints the file it has made. Two runs on one commit give the same bytes.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
kind=$1 major=${2:-}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
out=$target/package
version=$(control_version)
# The time of all files: the commit's, or in a source archive that of the changes.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
export SOURCE_DATE_EPOCH TZ=UTC
mkdir -p "$out"
work=$(mktemp -d "$out/.tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT

case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
esac

# zip_up DIR FILE: without what differs from run to run: order, times, owners.
zip_up() {
    find "$1" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    (cd "$1" && find . -type f | LC_ALL=C sort | zip -q -X -9 "$work/zip.zip" -@)
    mv "$work/zip.zip" "$2"
}

zip_package() {
    local file=$out/litmus-pgnats-$version-pg$major-linux-$arch.zip
    cp -a "$(scripts/stage.sh "$major" release)" "$work/zip"
    zip_up "$work/zip" "$file"
    echo "$file"
}

# The newest glibc that the library asks for.
glibc() { objdump -T "$1" | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -uV | tail -1; }

deb_package() {
    local stage name=postgresql-$major-litmus-pgnats tree=$work/deb file
    file=$out/${name}_$version-1_$arch.deb
    stage=$(scripts/stage.sh "$major" release)
    install -D -m 644 "$stage/litmus_pgnats.so" "$tree/usr/lib/postgresql/$major/lib/litmus_pgnats.so"
    install -D -m 644 -t "$tree/usr/share/postgresql/$major/extension" "$stage"/litmus_pgnats{.control,--*.sql}
    install -D -m 644 LICENSE "$tree/usr/share/doc/$name/copyright"
    gzip -9n <CHANGELOG.md >"$tree/usr/share/doc/$name/changelog.gz"
    mkdir "$tree/DEBIAN"
    cat >"$tree/DEBIAN/control" <<CONTROL
Package: $name
Version: $version-1
Architecture: $arch
Maintainer: the litmus_pgnats contributors
Section: database
Priority: optional
Depends: postgresql-$major, libc6 (>= $(glibc "$stage/litmus_pgnats.so")), libgcc-s1
Description: PostgreSQL $major extension that joins PostgreSQL and NATS
 Publish and request from SQL, have messages and requests call SQL functions,
 use JetStream, key-value buckets and object stores.
CONTROL
    find "$tree" -type d -exec chmod 755 {} +
    dpkg-deb --root-owner-group --build "$tree" "$file" >/dev/null
    echo "$file"
}

pgxn_package() {
    local name=litmus_pgnats-$version
    mkdir -p "$work/pgxn/$name"
    git archive HEAD | tar -x -C "$work/pgxn/$name"
    sed "s/@VERSION@/$version/" packaging/META.json >"$work/pgxn/$name/META.json"
    zip_up "$work/pgxn" "$out/$name.zip"
    echo "$out/$name.zip"
}

"${kind}_package"
