import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.io.IOException;
import java.io.StringReader;
import java.io.StringWriter;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Timer;
import java.util.TimerTask;
import java.util.stream.Collectors;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

/** Runs pgjdbc with HikariCP, as they come, until the standard input ends: Drivers pgjdbc [OPERATION TO LEAVE OUT...]. */
public class Drivers {
  static final int ROWS = 2000, LARGE = 1_000_000, STATEMENTS = 300;
  static volatile boolean ended;

  interface Operation {
    void run(Worker worker) throws Exception;
  }

  interface Asked<T> {
    T of(Connection connection) throws Exception;
  }

  static final Map<String, Operation> OPERATIONS = new LinkedHashMap<>();

  static {
    OPERATIONS.put("login", Drivers::login);
    OPERATIONS.put("types", Drivers::types);
    OPERATIONS.put("prepared", Drivers::prepared);
    OPERATIONS.put("many_prepared", Drivers::manyPrepared);
    OPERATIONS.put("transaction", Drivers::transaction);
    OPERATIONS.put("serializable", Drivers::serializable);
    OPERATIONS.put("failure", Drivers::failure);
    OPERATIONS.put("pipeline", Drivers::pipeline);
    OPERATIONS.put("copy", Drivers::copy);
    OPERATIONS.put("copy_refused", Drivers::copyRefused);
    OPERATIONS.put("listen", Drivers::listen);
    OPERATIONS.put("cancel", Drivers::cancel);
    OPERATIONS.put("cursor", Drivers::cursor);
    OPERATIONS.put("metadata", Drivers::metadata);
    OPERATIONS.put("empty", Drivers::empty);
    OPERATIONS.put("large", Drivers::large);
    OPERATIONS.put("nul", Drivers::nul);
  }

  /** The driver said yes and the answer is wrong. */
  static class Wrong extends RuntimeException {
    Wrong(String message) {
      super(message);
    }
  }

  static void expect(Object found, Object wanted) {
    if (!String.valueOf(found).equals(String.valueOf(wanted)))
      throw new Wrong(shorten(String.valueOf(found), 200) + " instead of " + shorten(String.valueOf(wanted), 200));
  }

  static String shorten(String text, int length) {
    return text.substring(0, Math.min(length, text.length()));
  }

  /** One client that stays: its way to the database, and its name in the tables. */
  static class Worker {
    final String way, owner, port;
    final HikariDataSource pool;
    int round;

    Worker(String way, int number) throws IOException {
      this.way = way;
      owner = "pgjdbc-" + way + "-" + number;
      port = System.getenv("DRIVERS_" + way.toUpperCase() + "_PORT");
      HikariConfig config = new HikariConfig();
      config.setJdbcUrl(url(System.getenv("DRIVERS_DATABASE")));
      config.setMaximumPoolSize(2);
      config.setUsername(credentials().get(0));
      config.setPassword(credentials().get(1));
      pool = new HikariDataSource(config);
    }

    String url(String database) {
      return "jdbc:postgresql://127.0.0.1:" + port + "/" + database;
    }

    String listening() {
      return System.getenv(way.equals("pool") ? "DRIVERS_ALIAS" : "DRIVERS_DATABASE");
    }

    Connection alone(String database) throws Exception {
      List<String> credentials = credentials();
      return DriverManager.getConnection(url(database), credentials.get(0), credentials.get(1));
    }

    <T> T borrow(Asked<T> asked) throws Exception {
      List<String> credentials = credentials();
      // what new connections of the pool log in with
      pool.getHikariConfigMXBean().setUsername(credentials.get(0));
      pool.getHikariConfigMXBean().setPassword(credentials.get(1));
      try (Connection connection = pool.getConnection()) {
        return asked.of(connection);
      }
    }

    <T> T within(Asked<T> asked) throws Exception {
      return borrow(connection -> {
        connection.setAutoCommit(false);
        try {
          T answer = asked.of(connection);
          connection.commit();
          return answer;
        } catch (Exception error) {
          connection.rollback();
          throw error;
        } finally {
          connection.setAutoCommit(true);
        }
      });
    }
  }

  static List<String> credentials() throws IOException {
    return Files.readAllLines(Path.of(System.getenv("DRIVERS_CREDENTIALS")));
  }

  static Object value(Connection connection, String query, Object... parameters) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement(query)) {
      for (int i = 0; i < parameters.length; i++) statement.setObject(i + 1, parameters[i]);
      try (ResultSet rows = statement.executeQuery()) {
        rows.next();
        return rows.getObject(1);
      }
    }
  }

  static int update(Connection connection, String query, Object... parameters) throws SQLException {
    try (PreparedStatement statement = connection.prepareStatement(query)) {
      for (int i = 0; i < parameters.length; i++) statement.setObject(i + 1, parameters[i]);
      return statement.executeUpdate();
    }
  }

  static void refused(Asked<?> asked, Connection connection, String wanted) throws Exception {
    try {
      asked.of(connection);
    } catch (SQLException error) {
      if (wanted.equals(error.getSQLState())) return;
      throw error;
    }
    expect("no error", wanted);
  }

  static void login(Worker worker) throws Exception {
    try (Connection connection = worker.alone(System.getenv("DRIVERS_DATABASE"))) {
      expect(value(connection, "select 42"), 42);
    }
  }

  static void types(Worker worker) throws Exception {
    String query = "select ?::int8, ?::float8, ?::text, ?::bool, ?::bytea, ?::timestamptz, ?::numeric, ?::int4[], ?::text";
    worker.borrow(connection -> {
      try (PreparedStatement statement = connection.prepareStatement(query)) {
        OffsetDateTime at = OffsetDateTime.parse("2026-11-28T12:30:00Z");
        statement.setLong(1, 1L << 40);
        statement.setDouble(2, 1.5);
        statement.setString(3, "naïve ☃ 'quoted'");
        statement.setBoolean(4, true);
        statement.setBytes(5, new byte[] {0, -1});
        statement.setObject(6, at);
        statement.setBigDecimal(7, new BigDecimal("12345678901234567890.123456789"));
        statement.setArray(8, connection.createArrayOf("int4", new Integer[] {1, 2, 3}));
        statement.setString(9, null);
        try (ResultSet rows = statement.executeQuery()) {
          rows.next();
          Array array = rows.getArray(8);
          expect(rows.getLong(1) + " " + rows.getDouble(2) + " " + rows.getString(3) + " " + rows.getBoolean(4), (1L << 40) + " 1.5 naïve ☃ 'quoted' true");
          expect(List.of(rows.getBytes(5)[0], rows.getBytes(5)[1]), List.of(0, -1));
          expect(rows.getObject(6, OffsetDateTime.class).toInstant(), at.toInstant());
          expect(rows.getBigDecimal(7) + " " + List.of((Integer[]) array.getArray()) + " " + rows.getString(9), "12345678901234567890.123456789 [1, 2, 3] null");
        }
      }
      return null;
    });
  }

  static void prepared(Worker worker) throws Exception {
    // prepared at the server from the fifth time on
    for (int number : new int[] {worker.round % STATEMENTS, worker.round * 7 % STATEMENTS}) {
      worker.borrow(connection -> {
        for (int time = 0; time < 7; time++) expect(value(connection, "select ?::int4 + " + number, 1000), 1000 + number);
        return null;
      });
    }
  }

  static void manyPrepared(Worker worker) throws Exception {
    for (int number = worker.round * 10; number < worker.round * 10 + 10; number++) {
      int plus = number;
      for (int time = 0; time < 6; time++)
        worker.borrow(connection -> {
          expect(value(connection, "select ?::int4 + " + plus, 1000), 1000 + plus);
          return null;
        });
    }
  }

  static void transaction(Worker worker) throws Exception {
    worker.within(connection -> {
      update(connection, "update ledger set amount = amount - 1 where owner = ? and id = 1", worker.owner);
      update(connection, "update ledger set amount = amount + 1 where owner = ? and id = 2", worker.owner);
      Savepoint savepoint = connection.setSavepoint("inner_one");
      update(connection, "update ledger set amount = 0 where owner = ?", worker.owner);
      connection.rollback(savepoint);
      expect(value(connection, "select sum(amount)::int8 from ledger where owner = ?", worker.owner), 2000);
      return null;
    });
  }

  /** What a framework does for a transaction that asks for another isolation or to be read only. */
  static void serializable(Worker worker) throws Exception {
    worker.borrow(connection -> {
      connection.setReadOnly(true);
      connection.setAutoCommit(false);
      try {
        expect(value(connection, "show transaction_read_only"), "on");
      } finally {
        connection.rollback();
        connection.setAutoCommit(true);
        connection.setReadOnly(false);
      }
      expect(value(connection, "show transaction_read_only"), "off");
      return null;
    });
  }

  static void failure(Worker worker) throws Exception {
    worker.borrow(connection -> {
      refused(it -> update(it, "insert into ledger values (?, 1, 0)", worker.owner), connection, "23505");
      expect(value(connection, "select 1"), 1);
      return null;
    });
  }

  static void pipeline(Worker worker) throws Exception {
    worker.borrow(connection -> {
      try (PreparedStatement statement = connection.prepareStatement("update ledger set amount = amount + ? where owner = ? and id = 3")) {
        for (int number = 0; number < 10; number++) {
          statement.setInt(1, number);
          statement.setString(2, worker.owner);
          statement.addBatch();
        }
        expect(statement.executeBatch().length, 10);
      }
      return null;
    });
  }

  static void copy(Worker worker) throws Exception {
    worker.borrow(connection -> {
      update(connection, "delete from copied where owner = ?", worker.owner);
      CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
      StringBuilder rows = new StringBuilder();
      for (int number = 0; number < ROWS; number++) rows.append(worker.owner).append('\t').append(number).append("\tbody ").append(number).append('\n');
      expect(copies.copyIn("copy copied (owner, id, body) from stdin", new StringReader(rows.toString())), ROWS);
      StringWriter out = new StringWriter();
      copies.copyOut("copy (select id from copied where owner = '" + worker.owner + "') to stdout", out);
      expect(out.toString().lines().count(), ROWS);
      return null;
    });
  }

  static void copyRefused(Worker worker) throws Exception {
    worker.borrow(connection -> {
      CopyManager copies = connection.unwrap(PGConnection.class).getCopyAPI();
      refused(it -> copies.copyIn("copy copied (owner, id, body) from stdin", new StringReader("nobody\tno number\tx\n")), connection, "22P02");
      expect(value(connection, "select 1"), 1);
      return null;
    });
  }

  static void listen(Worker worker) throws Exception {
    String channel = worker.owner.replace('-', '_');
    try (Connection listener = worker.alone(worker.listening()); Statement statement = listener.createStatement()) {
      statement.execute("listen " + channel);
      worker.borrow(connection -> value(connection, "select pg_notify(?, 'told')::text", channel));
      var told = listener.unwrap(PGConnection.class).getNotifications(20_000);
      expect(told == null || told.length == 0 ? "nothing" : told[0].getParameter(), "told");
    }
  }

  static void cancel(Worker worker) throws Exception {
    worker.borrow(connection -> {
      try (Statement statement = connection.createStatement()) {
        Timer timer = new Timer(true);
        timer.schedule(new TimerTask() {
          @Override
          public void run() {
            try {
              statement.cancel();
            } catch (SQLException error) {
              throw new RuntimeException(error);
            }
          }
        }, 300);
        refused(it -> statement.executeQuery("select pg_sleep(10)"), connection, "57014");
        timer.cancel();
      }
      expect(value(connection, "select 1"), 1);
      return null;
    });
  }

  static void cursor(Worker worker) throws Exception {
    worker.within(connection -> {
      try (Statement statement = connection.createStatement()) {
        statement.setFetchSize(100);
        int total = 0;
        try (ResultSet rows = statement.executeQuery("select generate_series(1, 1000)")) {
          while (rows.next()) total += rows.getInt(1);
        }
        expect(total, 500_500);
      }
      return null;
    });
  }

  static void metadata(Worker worker) throws Exception {
    worker.borrow(connection -> {
      try (ResultSet columns = connection.getMetaData().getColumns(null, "public", "ledger", null)) {
        int count = 0;
        while (columns.next()) count++;
        expect(count, 3);
      }
      return null;
    });
  }

  static void empty(Worker worker) throws Exception {
    worker.borrow(connection -> {
      try (Statement statement = connection.createStatement()) {
        statement.execute("");
      }
      return null;
    });
  }

  static void large(Worker worker) throws Exception {
    String text = "x".repeat(LARGE);
    worker.borrow(connection -> {
      expect(((String) value(connection, "select ?::text || 'y'", text)).length(), LARGE + 1);
      return null;
    });
  }

  static void nul(Worker worker) throws Exception {
    worker.borrow(connection -> {
      refused(it -> value(it, "select ?::text", "a\0b"), connection, "22021");
      expect(value(connection, "select 1"), 1);
      return null;
    });
  }

  static String quoted(String text) {
    if (text == null) return "null";
    StringBuilder out = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') out.append('\\').append(c);
      else if (c < ' ') out.append(String.format("\\u%04x", (int) c));
      else out.append(c);
    }
    return out.append('"').toString();
  }

  static synchronized void tell(String line) {
    System.out.println(line);
    System.out.flush();
  }

  static void work(Worker worker) {
    for (; !ended; worker.round++) {
      for (Map.Entry<String, Operation> operation : OPERATIONS.entrySet()) {
        if (ended) return;
        long began = System.nanoTime();
        String code = null, message = null;
        try {
          operation.getValue().run(worker);
        } catch (Exception error) {
          code = error instanceof SQLException refused && refused.getSQLState() != null ? refused.getSQLState() : error instanceof Wrong ? "WRONG" : error.getClass().getSimpleName();
          Throwable cause = error;
          while (cause.getCause() != null) cause = cause.getCause();
          message = shorten(error.getMessage() + (cause == error ? "" : ": " + cause.getMessage()), 500);
        }
        tell("{\"way\":\"" + worker.way + "\",\"worker\":\"" + worker.owner + "\",\"operation\":\"" + operation.getKey() + "\",\"milliseconds\":" + (System.nanoTime() - began) / 1_000_000 + ",\"code\":" + quoted(code) + ",\"message\":" + quoted(message) + "}");
        try {
          Thread.sleep(20);
        } catch (InterruptedException interrupted) {
          return;
        }
      }
    }
  }

  public static void main(String[] arguments) throws Exception {
    OPERATIONS.keySet().removeAll(List.of(arguments).subList(1, arguments.length));
    String names = OPERATIONS.keySet().stream().map(Drivers::quoted).collect(Collectors.joining(","));
    String version = org.postgresql.Driver.class.getPackage().getImplementationVersion();
    if (version == null) version = new org.postgresql.Driver().getMajorVersion() + "." + new org.postgresql.Driver().getMinorVersion();
    tell("{\"driver\":\"pgjdbc\",\"version\":" + quoted(version) + ",\"operations\":[" + names + "]}");
    List<Thread> threads = new ArrayList<>();
    for (Worker worker : List.of(new Worker("pool", 0), new Worker("pool", 1), new Worker("direct", 0))) {
      Thread thread = new Thread(() -> work(worker));
      thread.start();
      threads.add(thread);
    }
    while (System.in.read() >= 0) {}
    ended = true;
    for (Thread thread : threads) thread.join();
    System.exit(0);
  }
}
