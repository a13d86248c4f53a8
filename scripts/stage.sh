#!/usr/bin/env bash
# stage.sh MAJOR PROFILE: assemble what install.sh installs, as the zip has it, and print the directory.
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
major=$1 profile=$2
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# Of its own for each profile: tests and demo may be installing at the same time.
stage=$target/stage/pg$major-$profile
version=$(control_version)
[ -f "sql/litmus_pgnats--$version.sql" ] ||
    die "litmus_pgnats.control says version $version, and there is no sql/litmus_pgnats--$version.sql"

rm -rf "$stage"
mkdir -p "$stage"
cp "$target/ext/pg$major/$profile/litmus_pgnats.so" install.sh litmus_pgnats.control LICENSE packaging/README.md \
    sql/litmus_pgnats--*.sql "$stage/"
printf '%s\n' "version=$version" "pg_major=$major" "arch=$(uname -m)" >"$stage/BUILD"
echo "$stage"
