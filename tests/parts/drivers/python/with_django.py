"""Django with psycopg 3, as it comes."""

import threading

import django
from django.conf import settings

from rounds import LARGE, ROWS, SLEEP, STATEMENTS, expect, run


def database(name):
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "CONN_MAX_AGE": None}


# each way has a set of settings, and each worker is a thread with connections of its own
settings.configure(
    DATABASES={"default": database(""), "pool": database(""), "direct": database(""), "pool_listening": database(""),
               "direct_listening": database("")},
    USE_TZ=True,
    INSTALLED_APPS=[],
)
django.setup()

from django.db import IntegrityError, OperationalError, connections, models, transaction


class Copied(models.Model):
    id = models.IntegerField(primary_key=True)
    owner = models.TextField()
    body = models.TextField()

    class Meta:
        app_label = "drivers"
        managed = False
        db_table = "copied"


class Client:
    def __init__(self, worker):
        self.worker = worker
        self.name = worker.way

    def connection(self, name=None, listening=False):
        connection = connections[name or self.name]
        if connection.connection is None:
            login = self.worker.login(self.worker.listening if listening else None)
            words = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "NAME": "database"}
            connection.settings_dict.update({word: login[key] for word, key in words.items()})
        else:
            # as a request begins
            connection.health_check_done = False
            connection.close_if_unusable_or_obsolete()
            if connection.connection is None:
                return self.connection(name, listening)
        return connection

    def scalar(self, query, parameters=None):
        with self.connection().cursor() as cursor:
            cursor.execute(query, parameters)
            return cursor.fetchone()[0]

    def op_login(self):
        self.connection().close()
        expect(self.scalar("select 42"), 42)

    def op_prepared(self):
        for number in (self.worker.round % STATEMENTS, (self.worker.round * 7) % STATEMENTS):
            for _ in range(6):
                expect(self.scalar(f"select %s::int4 + {number}", [1000]), 1000 + number)

    def op_transaction(self):
        self.connection()
        with transaction.atomic(using=self.name):
            owner = self.worker.owner
            with connections[self.name].cursor() as cursor:
                cursor.execute("update ledger set amount = amount - 1 where owner = %s and id = 1", [owner])
                cursor.execute("update ledger set amount = amount + 1 where owner = %s and id = 2", [owner])
                savepoint = transaction.savepoint(using=self.name)
                cursor.execute("update ledger set amount = 0 where owner = %s", [owner])
                transaction.savepoint_rollback(savepoint, using=self.name)
                cursor.execute("select sum(amount)::int8 from ledger where owner = %s", [owner])
                expect(cursor.fetchone()[0], 2000)

    def op_failure(self):
        self.connection()
        try:
            with transaction.atomic(using=self.name), connections[self.name].cursor() as cursor:
                cursor.execute("insert into ledger values (%s, 1, 0)", [self.worker.owner])
        except IntegrityError:
            expect(self.scalar("select 1"), 1)
            return
        expect("no error", "23505")

    def op_many_rows(self):
        self.connection()
        own = Copied.objects.using(self.name).filter(owner=self.worker.owner)
        with transaction.atomic(using=self.name):
            own.delete()
            Copied.objects.using(self.name).bulk_create(
                [Copied(id=number, owner=self.worker.owner, body="x") for number in range(ROWS // 4)]
            )
        expect(own.count(), ROWS // 4)

    def op_listen(self):
        channel = self.worker.owner.replace("-", "_")
        listener = self.connection(self.name + "_listening", listening=True)
        with listener.cursor() as cursor:
            cursor.execute(f"listen {channel}")
        self.scalar("select pg_notify(%s, 'told')", [channel])
        told = list(listener.connection.notifies(timeout=20, stop_after=1))
        expect([notify.payload for notify in told], ["told"])
        listener.close()

    def op_cancel(self):
        connection = self.connection()
        connection.ensure_connection()
        timer = threading.Timer(0.3, connection.connection.cancel_safe)
        timer.start()
        try:
            self.scalar(SLEEP)
        except OperationalError as error:
            expect(error.__cause__.sqlstate, "57014")
            expect(self.scalar("select 1"), 1)
            return
        finally:
            timer.join()
        expect("ran to its end", "57014")

    def op_cursor(self):
        self.connection()
        with transaction.atomic(using=self.name):
            rows = Copied.objects.using(self.name).filter(owner="everybody")
            expect(sum(row.id for row in rows.iterator(chunk_size=100)), 500_500)

    def op_iterator(self):
        self.connection()
        for _ in range(10):
            rows = Copied.objects.using(self.name).filter(owner="everybody")
            expect(sum(row.id for row in rows.iterator(chunk_size=50)), 500_500)

    def op_large(self):
        given = "x" * LARGE
        expect(self.scalar("select %s::text || 'y'", [given]), given + "y")


def main():
    run("django", django.__version__, Client)
