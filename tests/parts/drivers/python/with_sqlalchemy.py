"""SQLAlchemy with psycopg, as it comes."""

import threading

import sqlalchemy
from sqlalchemy import event, text

from rounds import LARGE, ROWS, SLEEP, STATEMENTS, expect, run, values


class Client:
    def __init__(self, worker):
        self.worker = worker
        self.engine = self.make(worker.database)

    def make(self, database):
        engine = sqlalchemy.create_engine("postgresql+psycopg://", pool_size=1, max_overflow=1)

        @event.listens_for(engine, "do_connect")
        def connect(dialect, record, arguments, parameters):
            parameters.update(self.worker.address(database))

        return engine

    def op_login(self):
        engine = self.make(self.worker.database)
        with engine.connect() as connection:
            expect(connection.scalar(text("select 42")), 42)
        engine.dispose()

    def op_types(self):
        query = text(
            "select cast(:a as int8), cast(:b as float8), cast(:c as text), cast(:d as bool), cast(:e as bytea),"
            " cast(:f as timestamptz), cast(:g as numeric), cast(:h as int4[]), cast(:i as text)"
        )
        with self.engine.connect() as connection:
            row = connection.execute(query, dict(zip("abcdefghi", values()))).fetchone()
            expect(tuple(row), values())

    def op_prepared(self):
        for number in (self.worker.round % STATEMENTS, (self.worker.round * 7) % STATEMENTS):
            for _ in range(6):
                with self.engine.connect() as connection:
                    found = connection.scalar(text(f"select cast(:a as int4) + {number}"), {"a": 1000})
                    expect(found, 1000 + number)

    def op_transaction(self):
        owner = {"owner": self.worker.owner}
        with self.engine.begin() as connection:
            connection.execute(text("update ledger set amount = amount - 1 where owner = :owner and id = 1"), owner)
            connection.execute(text("update ledger set amount = amount + 1 where owner = :owner and id = 2"), owner)
            savepoint = connection.begin_nested()
            connection.execute(text("update ledger set amount = 0 where owner = :owner"), owner)
            savepoint.rollback()
            total = connection.scalar(text("select cast(sum(amount) as int8) from ledger where owner = :owner"), owner)
            expect(total, 2000)

    def op_failure(self):
        try:
            with self.engine.begin() as connection:
                connection.execute(text("insert into ledger values (:owner, 1, 0)"), {"owner": self.worker.owner})
        except sqlalchemy.exc.IntegrityError:
            with self.engine.connect() as connection:
                expect(connection.scalar(text("select 1")), 1)
            return
        expect("no error", "23505")

    def op_many_rows(self):
        rows = [{"owner": self.worker.owner, "id": number, "body": "x"} for number in range(ROWS // 4)]
        table = sqlalchemy.table(
            "copied", *(sqlalchemy.column(name) for name in ("owner", "id", "body"))
        )
        with self.engine.begin() as connection:
            connection.execute(text("delete from copied where owner = :owner"), {"owner": self.worker.owner})
            connection.execute(sqlalchemy.insert(table), rows)

    def op_listen(self):
        channel = self.worker.owner.replace("-", "_")
        engine = self.make(self.worker.listening)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as listener:
            listener.execute(text(f"listen {channel}"))
            with self.engine.begin() as connection:
                connection.execute(text("select pg_notify(:channel, 'told')"), {"channel": channel})
            told = list(listener.connection.driver_connection.notifies(timeout=20, stop_after=1))
            expect([notify.payload for notify in told], ["told"])
        engine.dispose()

    def op_cancel(self):
        with self.engine.connect() as connection:
            timer = threading.Timer(0.3, connection.connection.driver_connection.cancel_safe)
            timer.start()
            try:
                connection.execute(text(SLEEP))
            except sqlalchemy.exc.OperationalError as error:
                expect(error.orig.sqlstate, "57014")
                connection.rollback()
                expect(connection.scalar(text("select 1")), 1)
                return
            finally:
                timer.join()
        expect("ran to its end", "57014")

    def op_cursor(self):
        with self.engine.connect().execution_options(yield_per=100) as connection:
            expect(sum(row[0] for row in connection.execute(text("select generate_series(1, 1000)"))), 500_500)

    def op_large(self):
        given = "x" * LARGE
        with self.engine.connect() as connection:
            expect(connection.scalar(text("select cast(:a as text) || 'y'"), {"a": given}), given + "y")

    def op_serializable(self):
        with self.engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
            expect(connection.scalar(text("show transaction_isolation")), "serializable")
        with self.engine.connect() as connection:
            expect(connection.scalar(text("show transaction_isolation")), "read committed")


def main():
    run("sqlalchemy", sqlalchemy.__version__, Client)
