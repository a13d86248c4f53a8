# Sourced by run.sh.
# shellcheck shell=bash

chapter "When something is wrong"

tell "Every kind of error has its SQLSTATE and says what to do. A misspelt option:"
sql_fails HV00D <<'SQL'
ALTER SERVER my_nats OPTIONS (ADD hots 'nats.example');
SQL
expect 'Perhaps you meant the option "host"'

tell "A subject that means something else than it says:"
sql_fails 42602 <<'SQL'
SELECT nats_publish_text('orders.*', 'to whom?');
SQL
expect "HINT:"

tell "Nobody answers:"
sql_fails HV00M <<'SQL'
SELECT nats_request_text('rpc.nobody', 'hello?');
SQL
expect "HINT:"

tell "PL/pgSQL catches it by the name of the condition, and the session goes on."
sql <<'SQL'
DO $$
BEGIN
  PERFORM nats_request_text('rpc.nobody', 'hello?');
EXCEPTION WHEN fdw_unable_to_create_reply THEN
  RAISE NOTICE 'nobody answers: %', SQLERRM;
END $$;
SQL
expect "nobody answers:"

tell "NATS is stopped. Waiting for it ends after five seconds, or as this parameter says."
stop_nats first
sql_fails 08001 <<'SQL'
SET litmus_pgnats.connect_timeout = '500ms';
SELECT nats_request_text('rpc.echo', 'hello?');
SQL
expect "could not connect to NATS server"
expect "HINT:"
