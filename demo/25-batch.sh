# Sourced by run.sh.
# shellcheck shell=bash

chapter "Batches: many messages in one call"

tell "A function of an array of messages gets those that wait, in one call and one commit. One bad message spoils no other: \
the batch is split until it is alone."
sql <<'SQL'
CREATE TABLE speeds (machine text, rpm int);
CREATE FUNCTION keep_speeds(messages litmus_pgnats.message[]) RETURNS void LANGUAGE sql AS $$
  INSERT INTO public.speeds SELECT split_part(subject, '.', 2), convert_from(payload, 'utf8')::int FROM unnest(messages) $$;
SELECT nats_subscribe('machines.*.rpm', 'keep_speeds', batch_size => 100);
DO $$
BEGIN
  FOR n IN 1 .. 5 LOOP
    PERFORM nats_publish_text('machines.' || n || '.rpm', CASE n WHEN 3 THEN 'broken' ELSE (n * 100)::text END);
  END LOOP;
END $$;
SELECT pg_sleep(0.5);
SELECT * FROM speeds ORDER BY machine;
SELECT messages, errors, last_error FROM litmus_pgnats.subscriptions WHERE subject = 'machines.*.rpm';
SELECT nats_unsubscribe('machines.*.rpm', 'keep_speeds');
SQL
expect "| 500"
expect "22P02"
