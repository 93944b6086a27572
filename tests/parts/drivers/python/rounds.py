"""What the Python drivers share: where to connect, what a round asks for, and the lines that tell of it."""

import datetime
import decimal
import json
import os
import sys
import threading
import time

ROWS = 2000
LARGE = 1_000_000
SLEEP = "select pg_sleep(10)"
STATEMENTS = 300


class Wrong(Exception):
    """The driver said yes and the answer is wrong."""

    sqlstate = "WRONG"


def expect(found, wanted):
    if found != wanted:
        raise Wrong(f"{found!r:.200} instead of {wanted!r:.200}")


class Worker:
    """One client that stays: its way to the database, and its name in the tables."""

    def __init__(self, driver, way, number):
        self.driver, self.way = driver, way
        self.owner = f"{driver}-{way}-{number}"
        self.port = int(os.environ[f"DRIVERS_{way.upper()}_PORT"])
        self.database = os.environ["DRIVERS_DATABASE"]
        self.listening = os.environ["DRIVERS_ALIAS"] if way == "pool" else self.database
        self.round = 0

    def login(self, database=None):
        """Where to connect and as whom, as of now."""
        with open(os.environ["DRIVERS_CREDENTIALS"], encoding="utf-8") as file:
            user, password = file.read().splitlines()
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": user,
            "password": password,
            "database": database or self.database,
        }

    def address(self, database=None):
        """The same in the words of libpq."""
        login = self.login(database)
        login["dbname"] = login.pop("database")
        return login


def values():
    """A value of each type that applications send most."""
    return (
        2**40,
        1.5,
        "naïve \u2603 'quoted'",
        True,
        b"\0\xff",
        datetime.datetime(2026, 11, 28, 12, 30, tzinfo=datetime.timezone.utc),
        decimal.Decimal("12345678901234567890.123456789"),
        [1, 2, 3],
        None,
    )


printing = threading.Lock()


def tell(line):
    with printing:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def describe(error):
    """SQLSTATE and words of an error, also of one that another error wraps."""
    cause = error
    while cause is not None:
        code = getattr(cause, "sqlstate", None)
        if code:
            return code, str(error)
        cause = getattr(cause, "orig", None) or cause.__cause__
    return type(error).__name__, str(error)


def report(worker, operation, began, error):
    code, message = describe(error) if error else (None, None)
    tell(
        {
            "way": worker.way,
            "worker": worker.owner,
            "operation": operation,
            "milliseconds": round((time.monotonic() - began) * 1000),
            "code": code,
            "message": message and message[:500],
        }
    )


class Rounds:
    """Runs the operations of a driver, one after the other, until the standard input ends."""

    def __init__(self):
        self.ended = threading.Event()
        threading.Thread(target=self.await_end, daemon=True).start()

    def await_end(self):
        while sys.stdin.read(1):
            pass
        self.ended.set()

    def pause(self):
        return self.ended.wait(0.02)


def operations_of(client):
    """Its operations, less those that the command line leaves out."""
    names = [name.removeprefix("op_") for name in vars(client) if name.startswith("op_")]
    return [name for name in names if name not in sys.argv[2:]]


def run(driver, version, make):
    """Threads that run rounds, for drivers that block. `make` gets a worker and has a method for each operation."""
    rounds = Rounds()
    workers = [Worker(driver, "pool", 0), Worker(driver, "pool", 1), Worker(driver, "direct", 0)]
    operations = operations_of(make)
    tell({"driver": driver, "version": version, "operations": operations})

    def work(worker):
        client = make(worker)
        while not rounds.ended.is_set():
            for operation in operations:
                if rounds.ended.is_set():
                    break
                began, failed = time.monotonic(), None
                try:
                    getattr(client, "op_" + operation)()
                except Exception as error:
                    failed = error
                report(worker, operation, began, failed)
                rounds.pause()
            worker.round += 1

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
