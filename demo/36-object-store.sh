# Sourced by run.sh.
# shellcheck shell=bash

chapter "Object store"

tell "Files as bytea: here 20 MB, made in the database. They pass through the runtime worker in pieces."
sql <<'SQL'
CREATE TABLE scans AS
  SELECT 'scan of page 1.raw' AS name, convert_to(repeat('0123456789', 2000000), 'UTF8') AS content;
SELECT nats_put_file('files', name, content) FROM scans;
SELECT name, size, chunks, left(digest, 20) AS digest FROM nats_get_file_list('files');
SQL
expect "scan of page 1.raw | 20000000 |    153"

tell "The digest is verified before a byte is returned."
sql <<'SQL'
SELECT nats_get_file('files', name) = content AS the_same FROM scans;
SQL
expect " t"

tell "Another program's file, whatever its name is:"
run put-file files 'grüße.txt' 'hello from outside'
sql <<'SQL'
SELECT convert_from(nats_get_file('files', 'grüße.txt'), 'UTF8') AS content;
SELECT nats_delete_file('files', 'grüße.txt');
SQL
expect "hello from outside"
sql_fails 58P01 <<'SQL'
SELECT nats_get_file('files', 'grüße.txt');
SQL
expect "does not exist"
