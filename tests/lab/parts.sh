# The parts: PgBouncer, PostgreSQL and Prometheus as plain executables for any caller, root or not.
# shellcheck shell=bash

prepare_pgbouncer() {
  mkdir "$1/wrapped"
  wrap "$1" usr/sbin/pgbouncer "$1/wrapped/pgbouncer" unroot
  cp "$LAB/unroot" "$1/wrapped/unroot"
}

# initdb and pg_ctl look for postgres beside themselves: wrappers take the place of the package's own programs.
prepare_postgres() {
  local bin=usr/lib/postgresql/$POSTGRES_VERSION/bin program
  rm -f "$1/usr/lib/postgresql/$POSTGRES_VERSION"/lib/llvmjit* # its LLVM is not unpacked
  # the package's default is a directory of the system
  sed -i "s|^#unix_socket_directories = .*|unix_socket_directories = ''|" "$1/usr/share/postgresql/$POSTGRES_VERSION/postgresql.conf.sample"
  mv "$1/$bin" "$1/$bin.real"
  mkdir "$1/$bin" "$1/wrapped"
  for program in postgres initdb pg_ctl; do wrap "$1" "$bin.real/$program" "$1/$bin/$program" unroot; done
  for program in psql pgbench pg_isready pg_dump createdb; do wrap "$1" "$bin.real/$program" "$1/$bin/$program"; done
  for program in "$1/$bin"/*; do ln -s "${1%.aside}/$bin/${program##*/}" "$1/wrapped/"; done
}

prepare_prometheus() {
  mkdir "$1/wrapped"
  wrap "$1" usr/bin/prometheus "$1/wrapped/prometheus"
  wrap "$1" usr/bin/promtool "$1/wrapped/promtool"
}

# The trees, one command each, as other files need them too (images are made from them).
pgbouncer_tree() { debian_tree pgbouncer "$PGBOUNCER_SUITE" pgbouncer "$PGBOUNCER_VERSION" prepare_pgbouncer; }
postgres_tree() { debian_tree postgres "$POSTGRES_SUITE" "postgresql-$POSTGRES_VERSION" "$POSTGRES_VERSION" prepare_postgres; }
prometheus_tree() { debian_tree prometheus "$PROMETHEUS_SUITE" prometheus "$PROMETHEUS_VERSION" prepare_prometheus; }

link_parts() { # DIRECTORY TREE...
  local into=$1 tree
  shift
  for tree in "$@"; do ln -s "$tree"/wrapped/* "$into/"; done
}

# build_parts: prints the directory that holds all programs of the parts.
build_parts() {
  local pgbouncer postgres prometheus bin
  pgbouncer=$(pgbouncer_tree)
  postgres=$(postgres_tree)
  prometheus=$(prometheus_tree)
  bin=$SLUICE_CACHE/parts/$(key "$pgbouncer" "$postgres" "$prometheus")
  once "$bin" 1 link_parts "$pgbouncer" "$postgres" "$prometheus"
  echo "$bin"
}
