# Sourced by run.sh.
# shellcheck shell=bash

chapter "Outbox: messages that are rows of the transaction"

tell "A committed message is delivered to JetStream, in the order of the commits. A message that is rolled back is never sent."
sql <<'SQL'
BEGIN;
SELECT nats_publish_text_outbox('events.outbox', 'never') IS NOT NULL AS written;
ROLLBACK;
SELECT nats_publish_text_outbox('events.outbox', 'committed') IS NOT NULL AS written;
SQL

tell "A trigger publishes the changes of a table."
sql <<'SQL'
CREATE TABLE invoices (id int PRIMARY KEY, amount numeric);
CREATE TRIGGER publish AFTER INSERT OR UPDATE OR DELETE ON invoices
  FOR EACH ROW EXECUTE FUNCTION litmus_pgnats.publish_change('events.{table}.{op}.{id}');
INSERT INTO invoices VALUES (7, 42);
SELECT pg_sleep(0.5);
SELECT count(*) AS waiting FROM litmus_pgnats.outbox;
SQL
expect " 0"

tell "What the stream holds:"
run messages EVENTS
expect "events.outbox"
expect "events.invoices.insert.7"

tell "What JetStream refuses is tried again, what it will always refuse is a dead letter at once: here a condition in a header. \
A dead letter can be sent again, litmus_pgnats.redrive(id), or removed."
sql <<'SQL'
SELECT nats_publish_text_outbox('events.outbox', 'too late', '{"Nats-Expected-Last-Sequence": "1"}') IS NOT NULL AS written;
SELECT pg_sleep(0.5);
SELECT source, subject, left(error, 60) AS error FROM litmus_pgnats.dead_letters;
SELECT litmus_pgnats.purge_dead_letters() AS purged;
SQL
expect "40001"
expect " 1"
