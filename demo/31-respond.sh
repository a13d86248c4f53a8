# Sourced by run.sh.
# shellcheck shell=bash

chapter "Responding: requests call a function"

tell "A function answers requests on a subject with what it returns."
sql <<'SQL'
CREATE OR REPLACE FUNCTION litmus_pgnats_test_responder(payload text, subject text, reply_to text)
RETURNS text LANGUAGE sql AS $$ SELECT 'echo: ' || payload; $$;
SELECT litmus_pgnats_register_responder('litmus.test.responder', 'litmus_pgnats_test_responder'::regproc);
SELECT nats_request_text('litmus.test.responder', 'from the inside');
SQL
expect "echo: from the inside"
run request litmus.test.responder 'from the outside'
expect "echo: from the outside"

tell "A function that fails answers too: the requester learns why, at once."
sql <<'SQL'
CREATE FUNCTION divide(payload text) RETURNS text LANGUAGE sql AS $$ SELECT (12 / payload::int)::text $$;
SELECT litmus_pgnats_register_responder('divide', 'divide');
SELECT nats_request_text('divide', '4');
SQL
expect " 3"
sql_fails 38000 <<'SQL'
SELECT nats_request_text('divide', '0');
SQL
expect "division by zero"
sql <<'SQL'
SELECT litmus_pgnats_unregister_responder('divide'), litmus_pgnats_unregister_responder('litmus.test.responder');
SQL
