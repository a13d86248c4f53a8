# Sourced by run.sh.
# shellcheck shell=bash

chapter "Asking and being answered"

tell "An outside program answers requests; the function returns what it says."
answer rpc.echo
sql <<'SQL'
SELECT nats_request_text('rpc.echo', 'is anybody there?');
SQL
expect "echo: is anybody there?"
sql <<'SQL'
SELECT convert_from(nats_request_binary('rpc.echo', '\x68656c6c6f', 1000), 'UTF8');
SQL
expect "echo: hello"
hang_up
