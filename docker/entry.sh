#!/bin/sh
# The image's entry point: the parameters by the names that the catalogue of applications uses, to those of the official
# image, whose entry point goes on. The library is preloaded at start, so postgresql.conf is the user's alone.
set -eu
export POSTGRES_USER="${dbuser:-${POSTGRES_USER:-postgres}}"
# As in the official image, a database of the user's name unless another is named.
export POSTGRES_DB="${dbname:-${POSTGRES_DB:-$POSTGRES_USER}}"
export PGPORT="${port:-${PGPORT:-5432}}"
# The official image takes a password from a file too, and refuses both.
if [ -z "${POSTGRES_PASSWORD_FILE:-}" ]; then
    export POSTGRES_PASSWORD="${dbpassword:-${POSTGRES_PASSWORD:-postgres}}"
fi
case ${1:-} in
    postgres) shift; set -- postgres -c shared_preload_libraries=litmus_pgnats "$@" ;;
    -*) set -- postgres -c shared_preload_libraries=litmus_pgnats "$@" ;;
esac
exec docker-entrypoint.sh "$@"
