# Sourced by run.sh.
# shellcheck shell=bash

chapter "What it does, and whether all is well"

tell "NATS is back, on another port. A subscription and a responder run, and a program from outside sends and asks."
start_nats first --jetstream
sql <<SQL
ALTER SERVER my_nats OPTIONS (SET port '$(nats_port first)');
SELECT litmus_pgnats_reload_conf();
SQL
sql <<'SQL'
CREATE TABLE readings (machine text, speed int);
CREATE FUNCTION note_reading(speed text, subject text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.readings VALUES (split_part(subject, '.', 2), speed::int) $$;
CREATE FUNCTION top_speed(machine text) RETURNS text LANGUAGE sql AS $$
  SELECT max(speed)::text FROM public.readings s WHERE s.machine = top_speed.machine $$;
SELECT nats_subscribe('machines.*.speed', 'note_reading'), litmus_pgnats_register_responder('machines.top', 'top_speed');
-- What a session asks next waits until they are there.
SELECT server_name FROM nats_get_server_info();
SQL
run pub machines.7.speed 1200
run pub machines.7.speed "not a number"
sql <<'SQL'
SELECT pg_sleep(0.5);
SELECT nats_request_text('machines.top', '7');
SQL
expect 1200

tell "What became of the messages, how far behind each function is, and what a call of it takes, in milliseconds:"
sql <<'SQL'
SELECT kind, subject, state, messages, errors, lag, calls, round(mean_exec_time::numeric, 2) AS mean_exec_time, last_error
  FROM litmus_pgnats.handlers;
SQL
expect "22P02: invalid input syntax"

tell "The connections to NATS, which sessions and functions share:"
sql <<'SQL'
SELECT database, server, state, reconnects, round(rtt::numeric, 2) AS rtt, in_msgs, out_msgs, sessions, queued
  FROM litmus_pgnats.connections;
SELECT database, pid, state, handler FROM litmus_pgnats.executors;
SELECT pid, started, connections, calls, queued_bytes FROM litmus_pgnats.control_channel;
SQL
expect connected

tell "The doctor goes through all that has to be right, from the worker slots to the handlers, and says what to do."
sql <<'SQL'
SELECT check_name, object, status, found FROM litmus_pgnats.doctor();
SELECT check_name, found, advice FROM litmus_pgnats.doctor() WHERE status <> 'ok' LIMIT 1 \gx
SQL
expect "nats-server"
expect "Register them as a role with few rights."
