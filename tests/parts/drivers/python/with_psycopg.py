"""psycopg 3 with its pool, as it comes."""

import threading
import time

import psycopg
import psycopg_pool

from rounds import LARGE, ROWS, SLEEP, STATEMENTS, expect, run, values


class Client:
    def __init__(self, worker):
        self.worker = worker
        self.pool = psycopg_pool.ConnectionPool(
            conninfo="", kwargs=worker.address, min_size=1, max_size=2, open=True, timeout=35
        )

    def op_login(self):
        with psycopg.connect(**self.worker.address()) as connection:
            expect(connection.execute("select 42").fetchone()[0], 42)

    def op_types(self):
        query = "select %s::int8, %s::float8, %s::text, %s::bool, %s::bytea, %s::timestamptz, %s::numeric, %s::int4[], %s::text"
        with self.pool.connection() as connection:
            expect(connection.execute(query, values()).fetchone(), values())

    def op_prepared(self):
        # prepared after the fifth time, and a hundred of them are kept
        for number in (self.worker.round % STATEMENTS, (self.worker.round * 7) % STATEMENTS):
            for _ in range(6):
                with self.pool.connection() as connection:
                    row = connection.execute(f"select %s::int4 + {number}", [1000]).fetchone()
                    expect(row[0], 1000 + number)

    def op_many_prepared(self):
        # twice as many as PgBouncer keeps
        with self.pool.connection() as connection:
            for number in range(self.worker.round * 20, self.worker.round * 20 + 20):
                for _ in range(2):
                    row = connection.execute(f"select %s::int4 + {number}", [1000], prepare=True).fetchone()
                    expect(row[0], 1000 + number)

    def op_transaction(self):
        with self.pool.connection() as connection, connection.transaction():
            owner = self.worker.owner
            connection.execute("update ledger set amount = amount - 1 where owner = %s and id = 1", [owner])
            connection.execute("update ledger set amount = amount + 1 where owner = %s and id = 2", [owner])
            try:
                with connection.transaction():
                    connection.execute("update ledger set amount = 0 where owner = %s", [owner])
                    raise psycopg.Rollback
            except psycopg.Rollback:
                pass
            total = connection.execute("select sum(amount)::int8 from ledger where owner = %s", [owner])
            expect(total.fetchone()[0], 2000)

    def op_failure(self):
        with self.pool.connection() as connection:
            try:
                with connection.transaction():
                    connection.execute("insert into ledger values (%s, 1, 0)", [self.worker.owner])
            except psycopg.errors.UniqueViolation:
                expect(connection.execute("select 1").fetchone()[0], 1)
                return
        expect("no error", "23505")

    def op_pipeline(self):
        with self.pool.connection() as connection, connection.pipeline():
            cursors = [connection.execute("select %s::int4", [number]) for number in range(10)]
            expect([cursor.fetchone()[0] for cursor in cursors], list(range(10)))

    def op_copy(self):
        with psycopg.connect(**self.worker.address()) as connection, connection.cursor() as cursor:
            owner = self.worker.owner
            cursor.execute("delete from copied where owner = %s", [owner])
            with cursor.copy("copy copied (owner, id, body) from stdin") as copy:
                for number in range(ROWS):
                    copy.write_row((owner, number, f"body {number}"))
            with cursor.copy("copy (select id from copied where owner = '" + owner + "') to stdout") as copy:
                expect(sum(1 for _ in copy.rows()), ROWS)

    def op_copy_refused(self):
        with psycopg.connect(**self.worker.address(), autocommit=True) as connection, connection.cursor() as cursor:
            try:
                with cursor.copy("copy copied (owner, id, body) from stdin") as copy:
                    copy.write("nobody\tno number\tx\n")
            except psycopg.errors.InvalidTextRepresentation:
                expect(cursor.execute("select 1").fetchone()[0], 1)
                return
        expect("no error", "22P02")

    def op_listen(self):
        channel = self.worker.owner.replace("-", "_")
        with psycopg.connect(**self.worker.address(self.worker.listening), autocommit=True) as listener:
            listener.execute(f"listen {channel}")
            with self.pool.connection() as connection:
                connection.execute("select pg_notify(%s, 'told')", [channel])
            told = list(listener.notifies(timeout=20, stop_after=1))
            expect([notify.payload for notify in told], ["told"])

    def op_cancel(self):
        with self.pool.connection() as connection:
            timer = threading.Timer(0.3, connection.cancel_safe)
            timer.start()
            try:
                connection.execute(SLEEP)
            except psycopg.errors.QueryCanceled:
                connection.rollback()
                expect(connection.execute("select 1").fetchone()[0], 1)
                return
            finally:
                timer.join()
        expect("ran to its end", "57014")

    def op_cursor(self):
        with self.pool.connection() as connection, connection.cursor(name="rows") as cursor:
            cursor.itersize = 100
            cursor.execute("select generate_series(1, 1000)")
            expect(sum(row[0] for row in cursor), 500_500)

    def op_empty(self):
        with self.pool.connection() as connection:
            connection.execute("")

    def op_large(self):
        text = "x" * LARGE
        with self.pool.connection() as connection:
            expect(connection.execute("select %s::text || 'y'", [text]).fetchone()[0], text + "y")

    def op_nul(self):
        with self.pool.connection() as connection:
            try:
                connection.execute("select %s::text", ["a\0b"])
            except psycopg.DataError:
                connection.rollback()
                expect(connection.execute("select 1").fetchone()[0], 1)
                return
        expect("no error", "22021")

    def op_hold_cursor(self):
        with psycopg.connect(**self.worker.address(), autocommit=True) as connection:
            for _ in range(10):
                with connection.cursor(name="held", withhold=True) as cursor:
                    cursor.itersize = 100
                    cursor.execute("select generate_series(1, 1000)")
                    for _row in cursor:
                        pass
                time.sleep(0.01)


def main():
    run("psycopg", psycopg.__version__, Client)
