# Sourced by run.sh.
# shellcheck shell=bash

chapter "The connection, and moving it"

tell "What the NATS server says of itself. One connection serves all sessions of the cluster that use this server."
sql <<'SQL'
\x on
SELECT server_name, host, port, version, max_payload, client_ip FROM nats_get_server_info();
SQL
expect "first"

tell "A second nats-server is started. The options are changed, the running connection moves, nothing is restarted."
start_nats second --jetstream
sql <<SQL
ALTER SERVER my_nats OPTIONS (SET port '$(nats_port second)');
SELECT litmus_pgnats_reload_conf();
SELECT server_name, port FROM nats_get_server_info();
SQL
expect "second"

tell "Messages go there now."
outside_is_at second
listen moved 1
sql <<'SQL'
SELECT nats_publish_text('moved', 'hello from the second server');
SQL
heard
expect "hello from the second server"

tell "And back."
outside_is_at first
sql <<SQL
ALTER SERVER my_nats OPTIONS (SET port '$(nats_port first)');
SELECT litmus_pgnats_reload_conf();
SELECT server_name FROM nats_get_server_info();
SQL
expect "first"
stop_nats second
