#!/usr/bin/env bash
# A cancel request for a query that waits in PgBouncer for a server connection is dropped, and the query runs later all the same.
#
# Seen with PgBouncer 1.24.1 (PostgreSQL 15) and 1.26.1 (PostgreSQL 18), psycopg 3.3.9. Guessed before: the waiting query ends with
# 57014, as it does when it runs. Seen: the cancel is answered without an error, PgBouncer logs "cancel request for idle client", the
# client waits on, and its INSERT is carried out once the connection is free, by when the application has given it up.
# Fails when that changes.
# shellcheck source=packages.bash
. "$(dirname "$0")/packages.bash"

from_debian "${1:-newest}"
pgbouncer -V | head -n 1
python3 -m pip install --quiet --disable-pip-version-check --target "$work/python" 'psycopg[binary]==3.3.9'
database
pooler=$(free_port)
cat > "$work/pgbouncer.ini" <<INI
[databases]
shop = host=127.0.0.1 port=$database dbname=postgres user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $pooler
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 1
INI
start "$work/pgbouncer.log" pgbouncer "$work/pgbouncer.ini"
until_true 10 psql -h 127.0.0.1 -p "$pooler" -U postgres shop -c 'create table orders (id int)'

PYTHONPATH=$work/python python3 - "$pooler" <<'PYTHON'
import sys, threading, psycopg

def connect():
    return psycopg.connect(host="127.0.0.1", port=sys.argv[1], user="postgres", dbname="shop", autocommit=True, prepare_threshold=None)

def waiting():
    with psycopg.connect(host="127.0.0.1", port=sys.argv[1], user="pgbouncer", dbname="pgbouncer", autocommit=True) as console:
        with psycopg.ClientCursor(console) as cursor:
            rows = cursor.execute("show pools").fetchall()
            names = [column.name for column in cursor.description]
    return sum(row[names.index("cl_waiting")] for row in rows)

def until(condition):
    import time
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.05)

busy, queued, looker = connect(), connect(), connect()
outcome = []

def insert():
    try:
        queued.execute("insert into orders values (1)")
        outcome.append("carried out")
    except psycopg.Error as error:
        outcome.append(error.sqlstate or str(error))

with busy.transaction():
    busy.execute("select 1")  # has the only server connection
    thread = threading.Thread(target=insert)
    thread.start()
    until(lambda: waiting() == 1)
    queued.cancel_safe(timeout=5)  # raises where the request is refused
    thread.join(3)
    print("3 s after the cancel the query", "still waits" if thread.is_alive() else outcome[0])
    still = thread.is_alive()
thread.join(20)
rows = looker.execute("select count(*) from orders").fetchone()[0]
print("once the connection is free it is", outcome[0], "- rows:", rows)
sys.exit(not (still and outcome == ["carried out"] and rows == 1))
PYTHON
grep -o 'cancel request for idle client' "$work/pgbouncer.log" | sort | uniq -c
