# Sourced by run.sh.
# shellcheck shell=bash

chapter "Connecting PostgreSQL to NATS"

tell "The extension is created in each database that is to use it."
sql <<'SQL'
CREATE EXTENSION litmus_pgnats;
SELECT version, short_commit FROM litmus_pgnats_version();
SQL

tell "A foreign server says where NATS is. With one server in the database, every function uses it."
sql <<SQL
CREATE SERVER my_nats FOREIGN DATA WRAPPER litmus_pgnats_fdw
  OPTIONS (host '127.0.0.1', port '$(nats_port first)');
SQL
expect "CREATE SERVER"
