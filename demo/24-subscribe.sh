# Sourced by run.sh.
# shellcheck shell=bash

chapter "Subscribing: messages call a function"

tell "A function is called for each message on a subject, as the role that subscribed, each with all of its effects or none."
sql <<'SQL'
CREATE TABLE IF NOT EXISTS litmus_pgnats_test_messages (received_at timestamptz DEFAULT now(), payload text);
CREATE OR REPLACE FUNCTION litmus_pgnats_test_capture(msg bytea) RETURNS void LANGUAGE sql AS $$
  INSERT INTO litmus_pgnats_test_messages(payload) VALUES (convert_from(msg, 'utf8')); $$;
SELECT nats_subscribe('devicehub.alias.*.speed', 'litmus_pgnats_test_capture'::regproc);
SELECT server_name FROM nats_get_server_info();
SQL

tell "An outside program publishes what a machine would."
run pub devicehub.alias.press.speed '1200 rpm'
sql <<'SQL'
SELECT pg_sleep(0.2);
SELECT payload FROM litmus_pgnats_test_messages ORDER BY received_at DESC LIMIT 10;
SELECT subject, function, state, messages, errors FROM litmus_pgnats.subscriptions;
SQL
expect "1200 rpm"
expect "live"

tell "It lasts until it is taken away, through restarts and dumps."
sql <<'SQL'
SELECT nats_unsubscribe('devicehub.alias.*.speed', 'litmus_pgnats_test_capture'::regproc);
SQL
