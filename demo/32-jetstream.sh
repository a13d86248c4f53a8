# Sourced by run.sh.
# shellcheck shell=bash

chapter "JetStream: publishing what must not be lost"

tell "Streams are made outside. Publishing to one returns when NATS has stored the message, with its sequence there."
run stream EVENTS 'events.>'
sql <<'SQL'
SELECT nats_publish_text_stream('events.order', 'order 1') AS sequence;
SQL
expect " 1"

tell "With a message id a call may be repeated: NATS stores the message once, and returns the sequence of the first."
sql <<'SQL'
SELECT nats_publish_jsonb_stream('events.order', '{"order": 2}', '{"Nats-Msg-Id": "order-2"}') AS first,
       nats_publish_jsonb_stream('events.order', '{"order": 2}', '{"Nats-Msg-Id": "order-2"}') AS again;
SQL
expect "2 |     2"

tell "What the stream holds, as the outside program sees it:"
run messages EVENTS
expect "1 events.order"
expect '{"order": 2}'

tell "A subject that no stream takes is an error. Nothing is lost in silence."
sql_fails HV00R <<'SQL'
SELECT nats_publish_text_stream('elsewhere', 'order 3');
SQL
expect "HINT:"
