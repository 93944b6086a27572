"""asyncpg with its pool, as it comes."""

import asyncio
import time

import asyncpg

from rounds import LARGE, ROWS, SLEEP, STATEMENTS, Rounds, Worker, expect, operations_of, report, tell, values


class Client:
    def __init__(self, worker):
        self.worker = worker
        self.pool = None

    async def open(self):
        async def connect(*_, **options):
            return await asyncpg.connect(**{**options, **self.worker.login()})

        self.pool = await asyncpg.create_pool(min_size=1, max_size=2, connect=connect)

    async def alone(self, database=None):
        return await asyncpg.connect(**self.worker.login(database))

    async def op_login(self):
        connection = await self.alone()
        expect(await connection.fetchval("select 42"), 42)
        await connection.close()

    async def op_types(self):
        query = (
            "select $1::int8, $2::float8, $3::text, $4::bool, $5::bytea, $6::timestamptz, $7::numeric, $8::int4[],"
            " $9::text"
        )
        expect(tuple(await self.pool.fetchrow(query, *values())), values())

    async def op_prepared(self):
        for number in (self.worker.round % STATEMENTS, (self.worker.round * 7) % STATEMENTS):
            for _ in range(2):
                expect(await self.pool.fetchval(f"select $1::int4 + {number}", 1000), 1000 + number)

    async def op_many_prepared(self):
        async with self.pool.acquire() as connection:
            for number in range(self.worker.round * 20, self.worker.round * 20 + 20):
                statement = await connection.prepare(f"select $1::int4 + {number}")
                expect(await statement.fetchval(1000), 1000 + number)

    async def op_transaction(self):
        owner = self.worker.owner
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute("update ledger set amount = amount - 1 where owner = $1 and id = 1", owner)
            await connection.execute("update ledger set amount = amount + 1 where owner = $1 and id = 2", owner)
            savepoint = connection.transaction()
            await savepoint.start()
            await connection.execute("update ledger set amount = 0 where owner = $1", owner)
            await savepoint.rollback()
            expect(await connection.fetchval("select sum(amount)::int8 from ledger where owner = $1", owner), 2000)

    async def op_failure(self):
        async with self.pool.acquire() as connection:
            try:
                async with connection.transaction():
                    await connection.execute("insert into ledger values ($1, 1, 0)", self.worker.owner)
            except asyncpg.UniqueViolationError:
                expect(await connection.fetchval("select 1"), 1)
                return
        expect("no error", "23505")

    async def op_pipeline(self):
        async with self.pool.acquire() as connection:
            rows = await connection.fetchmany("select $1::int4", [(number,) for number in range(10)])
            expect([row[0] for row in rows], list(range(10)))

    async def op_copy(self):
        # of its own: see what docs/drivers.md says of COPY
        owner, connection = self.worker.owner, await self.alone()
        try:
            await connection.execute("delete from copied where owner = $1", owner)
            rows = [(owner, number, f"body {number}") for number in range(ROWS)]
            await connection.copy_records_to_table("copied", records=rows, columns=["owner", "id", "body"])
            found = bytearray()

            async def keep(data):
                found.extend(data)

            await connection.copy_from_query("select id from copied where owner = $1", owner, output=keep)
            expect(found.count(b"\n"), ROWS)
        finally:
            await connection.close()

    async def op_copy_refused(self):
        connection = await self.alone()

        async def source():
            yield b"nobody\tno number\tx\n"

        try:
            await connection.copy_to_table("copied", source=source(), columns=["owner", "id", "body"])
        except asyncpg.InvalidTextRepresentationError:
            expect(await connection.fetchval("select 1"), 1)
        else:
            expect("no error", "22P02")
        finally:
            await connection.close()

    async def op_listen(self):
        channel, told = self.worker.owner.replace("-", "_"), asyncio.Queue()
        listener = await self.alone(self.worker.listening)
        try:
            await listener.add_listener(channel, lambda *notification: told.put_nowait(notification[-1]))
            await self.pool.execute("select pg_notify($1, 'told')", channel)
            expect(await asyncio.wait_for(told.get(), 20), "told")
        finally:
            await listener.close()

    async def op_cancel(self):
        async with self.pool.acquire() as connection:
            # what a timeout of asyncpg does: it sends a cancel request
            try:
                await connection.execute(SLEEP, timeout=0.3)
            except TimeoutError:
                began = time.monotonic()
                expect(await connection.fetchval("select 1"), 1)
                if time.monotonic() - began > 8:
                    expect("ran to its end", "57014")
                return
        expect("ran to its end", "57014")

    async def op_cursor(self):
        async with self.pool.acquire() as connection, connection.transaction():
            total = 0
            async for row in connection.cursor("select generate_series(1, 1000)", prefetch=100):
                total += row[0]
            expect(total, 500_500)

    async def op_empty(self):
        await self.pool.execute("")

    async def op_large(self):
        text = "x" * LARGE
        expect(await self.pool.fetchval("select $1::text || 'y'", text), text + "y")

    async def op_nul(self):
        async with self.pool.acquire() as connection:
            try:
                await connection.fetchval("select $1::text", "a\0b")
            except asyncpg.CharacterNotInRepertoireError:
                expect(await connection.fetchval("select 1"), 1)
                return
        expect("no error", "22021")


async def work(rounds, worker, operations):
    client = Client(worker)
    await client.open()
    while not rounds.ended.is_set():
        for operation in operations:
            if rounds.ended.is_set():
                return
            began, failed = time.monotonic(), None
            try:
                await getattr(client, "op_" + operation)()
            except Exception as error:
                failed = error
            report(worker, operation, began, failed)
            await asyncio.sleep(0.02)
        worker.round += 1


async def all_of_them():
    rounds = Rounds()
    workers = [Worker("asyncpg", "pool", 0), Worker("asyncpg", "pool", 1), Worker("asyncpg", "direct", 0)]
    operations = operations_of(Client)
    tell({"driver": "asyncpg", "version": asyncpg.__version__, "operations": operations})
    await asyncio.gather(*(work(rounds, worker, operations) for worker in workers))


def main():
    asyncio.run(all_of_them())
