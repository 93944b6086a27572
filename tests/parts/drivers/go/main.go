// Runs pgx with its pool, as it comes, until the standard input ends: drivers pgx [OPERATION TO LEAVE OUT...].
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	rowsCopied = 2000
	large      = 1_000_000
	statements = 300
)

// wrong: the driver said yes and the answer is wrong.
type wrong string

func (w wrong) Error() string { return string(w) }

func expect(found, wanted any) error {
	if f, w := fmt.Sprint(found), fmt.Sprint(wanted); f != w {
		return wrong(fmt.Sprintf("%.200s instead of %.200s", f, w))
	}
	return nil
}

// worker is one client that stays: its way to the database, and its name in the tables.
type worker struct {
	way, owner, port string
	round            int
	pool             *pgxpool.Pool
}

func (w *worker) channel() string { return strings.ReplaceAll(w.owner, "-", "_") }

func (w *worker) address(database string) string {
	credentials, err := os.ReadFile(os.Getenv("DRIVERS_CREDENTIALS"))
	if err != nil {
		panic(err)
	}
	user, password, _ := strings.Cut(strings.TrimSpace(string(credentials)), "\n")
	return fmt.Sprintf("host=127.0.0.1 port=%s dbname=%s user='%s' password='%s'", w.port, database, user, password)
}

func (w *worker) open(ctx context.Context) error {
	config, err := pgxpool.ParseConfig(w.address(os.Getenv("DRIVERS_DATABASE")) + " pool_max_conns=2")
	if err != nil {
		return err
	}
	config.BeforeConnect = func(_ context.Context, login *pgx.ConnConfig) error {
		fresh, err := pgx.ParseConfig(w.address(login.Database))
		if err == nil {
			login.User, login.Password = fresh.User, fresh.Password
		}
		return err
	}
	w.pool, err = pgxpool.NewWithConfig(ctx, config)
	return err
}

// alone gives a connection of its own to do, and closes it.
func (w *worker) alone(ctx context.Context, database string, do func(*pgx.Conn) error) error {
	connection, err := pgx.Connect(ctx, w.address(database))
	if err != nil {
		return err
	}
	defer connection.Close(ctx)
	return do(connection)
}

func (w *worker) ask(ctx context.Context, query string, wanted any, arguments ...any) error {
	var found any
	if err := w.pool.QueryRow(ctx, query, arguments...).Scan(&found); err != nil {
		return err
	}
	return expect(found, wanted)
}

func code(err error) string {
	var refused *pgconn.PgError
	var untrue wrong
	switch {
	case errors.As(err, &refused):
		return refused.Code
	case errors.As(err, &untrue):
		return "WRONG"
	case errors.Is(err, context.DeadlineExceeded):
		return "DEADLINE"
	}
	return "ERROR"
}

// refused wants an error of this SQLSTATE, and a connection that works on.
func (w *worker) refused(ctx context.Context, err error, wanted string) error {
	if err == nil {
		return wrong("no error instead of " + wanted)
	}
	if code(err) != wanted {
		return err
	}
	return w.ask(ctx, "select 1", 1)
}

type operation struct {
	name string
	run  func(context.Context, *worker) error
}

var operations = []operation{
	{"cancel", cancel}, {"copy", copyBoth}, {"copy_refused", copyRefused}, {"cursor", cursor},
	{"describe_exec", describeExec}, {"empty", empty}, {"exec", execOnly}, {"failure", failure}, {"large", largeText}, {"listen", listen}, {"login", login}, {"many_prepared", manyPrepared},
	{"nul", nul}, {"pipeline", pipeline}, {"prepared", prepared}, {"simple_protocol", simpleProtocol}, {"transaction", transaction}, {"types", types},
}

func login(ctx context.Context, w *worker) error {
	return w.alone(ctx, os.Getenv("DRIVERS_DATABASE"), func(connection *pgx.Conn) error {
		var found int
		if err := connection.QueryRow(ctx, "select 42").Scan(&found); err != nil {
			return err
		}
		return expect(found, 42)
	})
}

func types(ctx context.Context, w *worker) error {
	at := time.Date(2026, 11, 28, 12, 30, 0, 0, time.UTC)
	query := "select $1::int8, $2::float8, $3::text, $4::bool, $5::bytea, $6::timestamptz, $7::numeric::text, $8::int4[], $9::text"
	var (
		integer int64
		float   float64
		text    string
		yes     bool
		bytes   []byte
		when    time.Time
		numeric string
		array   []int32
		null    *string
	)
	err := w.pool.QueryRow(ctx, query, int64(1)<<40, 1.5, "naïve ☃ 'quoted'", true, []byte{0, 255}, at, "1234567890.123456789", []int32{1, 2, 3}, nil).
		Scan(&integer, &float, &text, &yes, &bytes, &when, &numeric, &array, &null)
	if err != nil {
		return err
	}
	found := []any{integer, float, text, yes, bytes, when.UTC(), numeric, array, null == nil}
	return expect(found, []any{int64(1) << 40, 1.5, "naïve ☃ 'quoted'", true, []byte{0, 255}, at, "1234567890.123456789", []int32{1, 2, 3}, true})
}

func prepared(ctx context.Context, w *worker) error {
	for _, number := range []int{w.round % statements, w.round * 7 % statements} {
		for range 2 {
			if err := w.ask(ctx, fmt.Sprintf("select $1::int4 + %d", number), 1000+number, 1000); err != nil {
				return err
			}
		}
	}
	return nil
}

func manyPrepared(ctx context.Context, w *worker) error {
	for number := w.round * 20; number < w.round*20+20; number++ {
		if err := w.ask(ctx, fmt.Sprintf("select $1::int4 + %d", number), 1000+number, 1000); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) mode(ctx context.Context, mode pgx.QueryExecMode) error {
	for number := range 20 {
		if err := w.ask(ctx, fmt.Sprintf("select $1::int4 + %d", number), 1000+number, mode, 1000); err != nil {
			return err
		}
	}
	return nil
}

func describeExec(ctx context.Context, w *worker) error {
	return w.mode(ctx, pgx.QueryExecModeDescribeExec)
}
func execOnly(ctx context.Context, w *worker) error { return w.mode(ctx, pgx.QueryExecModeExec) }
func simpleProtocol(ctx context.Context, w *worker) error {
	return w.mode(ctx, pgx.QueryExecModeSimpleProtocol)
}

func transaction(ctx context.Context, w *worker) error {
	return pgx.BeginFunc(ctx, w.pool, func(outer pgx.Tx) error {
		if _, err := outer.Exec(ctx, "update ledger set amount = amount - 1 where owner = $1 and id = 1", w.owner); err != nil {
			return err
		}
		if _, err := outer.Exec(ctx, "update ledger set amount = amount + 1 where owner = $1 and id = 2", w.owner); err != nil {
			return err
		}
		inner, err := outer.Begin(ctx)
		if err != nil {
			return err
		}
		if _, err := inner.Exec(ctx, "update ledger set amount = 0 where owner = $1", w.owner); err != nil {
			return err
		}
		if err := inner.Rollback(ctx); err != nil {
			return err
		}
		var total int64
		if err := outer.QueryRow(ctx, "select sum(amount)::int8 from ledger where owner = $1", w.owner).Scan(&total); err != nil {
			return err
		}
		return expect(total, 2000)
	})
}

func failure(ctx context.Context, w *worker) error {
	err := pgx.BeginFunc(ctx, w.pool, func(inside pgx.Tx) error {
		_, err := inside.Exec(ctx, "insert into ledger values ($1, 1, 0)", w.owner)
		return err
	})
	return w.refused(ctx, err, "23505")
}

func pipeline(ctx context.Context, w *worker) error {
	batch := &pgx.Batch{}
	for number := range 10 {
		batch.Queue("select $1::int4", number).QueryRow(func(row pgx.Row) error {
			var found int
			if err := row.Scan(&found); err != nil {
				return err
			}
			return expect(found, number)
		})
	}
	return w.pool.SendBatch(ctx, batch).Close()
}

// Of its own: see what docs/drivers.md says of COPY.
func copyBoth(ctx context.Context, w *worker) error {
	return w.alone(ctx, os.Getenv("DRIVERS_DATABASE"), func(connection *pgx.Conn) error {
		if _, err := connection.Exec(ctx, "delete from copied where owner = $1", w.owner); err != nil {
			return err
		}
		source := pgx.CopyFromSlice(rowsCopied, func(row int) ([]any, error) {
			return []any{w.owner, row, fmt.Sprintf("body %d", row)}, nil
		})
		if _, err := connection.CopyFrom(ctx, pgx.Identifier{"copied"}, []string{"owner", "id", "body"}, source); err != nil {
			return err
		}
		var out strings.Builder
		query := fmt.Sprintf("copy (select id from copied where owner = '%s') to stdout", w.owner)
		if _, err := connection.PgConn().CopyTo(ctx, &out, query); err != nil {
			return err
		}
		return expect(strings.Count(out.String(), "\n"), rowsCopied)
	})
}

func copyRefused(ctx context.Context, w *worker) error {
	return w.alone(ctx, os.Getenv("DRIVERS_DATABASE"), func(connection *pgx.Conn) error {
		source := strings.NewReader("nobody\tno number\tx\n")
		_, err := connection.PgConn().CopyFrom(ctx, source, "copy copied (owner, id, body) from stdin")
		if code(err) == "22P02" {
			_, err = connection.Exec(ctx, "select 1")
		}
		return err
	})
}

func listen(ctx context.Context, w *worker) error {
	database := os.Getenv("DRIVERS_DATABASE")
	if w.way == "pool" {
		database = os.Getenv("DRIVERS_ALIAS")
	}
	return w.alone(ctx, database, func(listener *pgx.Conn) error {
		if _, err := listener.Exec(ctx, "listen "+w.channel()); err != nil {
			return err
		}
		if _, err := w.pool.Exec(ctx, "select pg_notify($1, 'told')", w.channel()); err != nil {
			return err
		}
		notification, err := listener.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		return expect(notification.Payload, "told")
	})
}

// A deadline closes the connection by default; the request that cancels is asked for here.
func cancel(ctx context.Context, w *worker) error {
	connection, err := w.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer connection.Release()
	asked := make(chan error, 1)
	time.AfterFunc(300*time.Millisecond, func() { asked <- connection.Conn().PgConn().CancelRequest(ctx) })
	_, err = connection.Exec(ctx, "select pg_sleep(10)")
	if failed := <-asked; failed != nil {
		return failed
	}
	if err == nil {
		return wrong("ran to its end instead of 57014")
	}
	if code(err) != "57014" {
		return err
	}
	_, err = connection.Exec(ctx, "select 1")
	return err
}

func cursor(ctx context.Context, w *worker) error {
	return pgx.BeginFunc(ctx, w.pool, func(inside pgx.Tx) error {
		if _, err := inside.Exec(ctx, "declare rows cursor for select generate_series(1, 1000)"); err != nil {
			return err
		}
		total := 0
		for range 10 {
			rows, err := inside.Query(ctx, "fetch 100 from rows")
			if err != nil {
				return err
			}
			numbers, err := pgx.CollectRows(rows, pgx.RowTo[int])
			if err != nil {
				return err
			}
			for _, number := range numbers {
				total += number
			}
		}
		return expect(total, 500_500)
	})
}

func empty(ctx context.Context, w *worker) error {
	_, err := w.pool.Exec(ctx, "")
	return err
}

func largeText(ctx context.Context, w *worker) error {
	text := strings.Repeat("x", large)
	return w.ask(ctx, "select $1::text || 'y'", text+"y", text)
}

func nul(ctx context.Context, w *worker) error {
	var found string
	return w.refused(ctx, w.pool.QueryRow(ctx, "select $1::text", "a\x00b").Scan(&found), "22021")
}

var printing sync.Mutex

func tell(line map[string]any) {
	printing.Lock()
	defer printing.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(line); err != nil {
		panic(err)
	}
}

func report(w *worker, name string, began time.Time, err error) {
	line := map[string]any{"way": w.way, "worker": w.owner, "operation": name, "milliseconds": time.Since(began).Milliseconds(), "code": nil, "message": nil}
	if err != nil {
		line["code"], line["message"] = code(err), fmt.Sprintf("%.500s", err)
	}
	tell(line)
}

func main() {
	version := ""
	information, _ := debug.ReadBuildInfo()
	for _, module := range information.Deps {
		if module.Path == "github.com/jackc/pgx/v5" {
			version = strings.TrimPrefix(module.Version, "v")
		}
	}
	operations = slices.DeleteFunc(operations, func(one operation) bool { return slices.Contains(os.Args[2:], one.name) })
	names := make([]string, 0, len(operations))
	for _, one := range operations {
		names = append(names, one.name)
	}
	tell(map[string]any{"driver": os.Args[1], "version": version, "operations": names})
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	var all sync.WaitGroup
	for _, one := range []*worker{
		{way: "pool", owner: "pgx-pool-0", port: os.Getenv("DRIVERS_POOL_PORT")},
		{way: "pool", owner: "pgx-pool-1", port: os.Getenv("DRIVERS_POOL_PORT")},
		{way: "direct", owner: "pgx-direct-0", port: os.Getenv("DRIVERS_DIRECT_PORT")},
	} {
		all.Add(1)
		go func() {
			defer all.Done()
			work(one, ended)
		}()
	}
	all.Wait()
}

func work(w *worker, ended chan struct{}) {
	if err := w.open(context.Background()); err != nil {
		panic(err)
	}
	for {
		for _, one := range operations {
			select {
			case <-ended:
				return
			case <-time.After(20 * time.Millisecond):
			}
			ctx, done := context.WithTimeout(context.Background(), 35*time.Second)
			began := time.Now()
			err := one.run(ctx, w)
			done()
			report(w, one.name, began, err)
		}
		w.round++
	}
}
