-- What the shop needs in its database. Run it once: psql -d shop -f examples/shop/schema.sql

CREATE TABLE IF NOT EXISTS orders (id bigserial PRIMARY KEY, placed_at timestamptz NOT NULL DEFAULT now());

-- How long one order takes, in milliseconds, on average. The demo makes the database slower by changing it.
CREATE TABLE IF NOT EXISTS pace (milliseconds double precision NOT NULL);
INSERT INTO pace SELECT 100 WHERE NOT EXISTS (SELECT FROM pace);

-- Keeps its server connection busy for a random time around that: exponential, cut off at five times the mean.
CREATE OR REPLACE FUNCTION work() RETURNS void LANGUAGE sql AS $$
  SELECT pg_sleep(least(-ln(1 - random()), 5) * milliseconds / 1000) FROM pace
$$;
