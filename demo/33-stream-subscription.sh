# Sourced by run.sh.
# shellcheck shell=bash

chapter "Durable subscriptions: every message of a stream, once"

tell "How far it is, is committed with the effects; what came before is not missed."
sql <<'SQL'
CREATE TABLE inbox (subject text, payload text);
CREATE FUNCTION take(msg text, subject text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.inbox VALUES (subject, msg) $$;
SELECT nats_subscribe_stream('EVENTS', 'take', filter_subjects => '{events.order,events.outbox}');
SELECT pg_sleep(0.5);
SELECT * FROM inbox;
SELECT stream, state, applied_to, messages, errors FROM litmus_pgnats.stream_subscriptions;
SQL
expect "committed"
expect "live"

tell "A function of many messages gets them in one call and one commit."
sql <<'SQL'
SELECT nats_unsubscribe_stream('EVENTS', 'take');
CREATE FUNCTION take_many(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.inbox SELECT 'in a batch of ' || cardinality(messages), convert_from(payload, 'utf8')
  FROM unnest(messages) $$;
SELECT nats_subscribe_stream('EVENTS', 'take_many');
SELECT pg_sleep(0.5);
SELECT subject, count(*) FROM inbox GROUP BY subject;
SELECT nats_unsubscribe_stream('EVENTS', 'take_many');
SQL
expect "in a batch of"
