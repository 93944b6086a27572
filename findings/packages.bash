# Sourced by the findings: a temporary folder, and the pinned packages in it. Nothing of the product is used, only the lab's way to unpack
# Debian packages of a named suite. All ends with the script.
# shellcheck shell=bash
set -euo pipefail

work=$(mktemp -d)
started=()
finish() {
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2> /dev/null || :; done
  wait || :
  rm -rf "$work"
}
trap finish EXIT

# from_debian SET: PgBouncer and PostgreSQL of a set of tests/lab/versions, in the temporary folder; sets PATH
from_debian() {
  local lab bin tree
  lab=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/lab" && pwd)
  bin=$work/bin-$1
  mkdir "$bin"
  while read -r tree; do ln -s "$tree"/bin.lab/* "$bin/"; done < <(
    LAB=$lab SLUICE_CACHE=$work/packages SLUICE_SET=$1
    mkdir -p "$SLUICE_CACHE"
    # shellcheck source=/dev/null
    for part in cache set debian trees; do . "$lab/$part.sh"; done
    pgbouncer_tree
    postgres_tree
  )
  PATH=$bin:$PATH
}

# start LOG COMMAND...: in the background, ended with the script
start() {
  "${@:2}" > "$1" 2>&1 < /dev/null &
  started+=("$!")
}

# until_true SECONDS COMMAND...
until_true() {
  local deadline=$((SECONDS + $1))
  until "${@:2}" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || { echo "not within $1 s: ${*:2}" >&2; exit 1; }
    sleep 0.1
  done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# database: a PostgreSQL on loopback that trusts; sets $database, its port
database() {
  initdb -D "$work/data" -U postgres --auth=trust -E UTF8 --locale=C > "$work/initdb.log" 2>&1 || { cat "$work/initdb.log" >&2; exit 1; }
  database=$(free_port)
  start "$work/postgres.log" postgres -D "$work/data" -c listen_addresses=127.0.0.1 -c "port=$database" -c unix_socket_directories=
  until_true 30 pg_isready -q -h 127.0.0.1 -p "$database"
}
