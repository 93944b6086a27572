# The cache: everything the lab makes lives under $SLUICE_CACHE, under a key of what it was made from.
# shellcheck shell=bash

say() { printf 'lab: %s\n' "$*" >&2; }
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }

# key TEXT...: a short name for what something is made from.
key() { printf '%s\n' "$@" | sha256sum | cut -c1-12; }

# digest PATH...: a key of the content of files and of the trees below directories.
digest() {
  find -L "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | awk '{print $1}' | sha256sum | cut -c1-12
}

# need_disk GIGABYTES: refuses in time, with the figure, instead of failing half-way.
need_disk() {
  local free
  free=$(df -Pk "$SLUICE_CACHE" | awk 'NR==2 {print int($4 / 1048576)}')
  [ "$free" -ge "$1" ] ||
    die "needs $1 GB free below $SLUICE_CACHE, there are $free. Free some, or set SLUICE_CACHE to a directory on a larger disk."
}

# once PATH GIGABYTES FUNCTION ARG...: makes PATH if it is not there. FUNCTION gets a new directory to fill (and ARGs);
# it is renamed to PATH when done, so nobody ever sees half of it. Others who want the same wait for the lock.
# Never call it where bash ignores errors (`if`, before `&&` or `||`): FUNCTION would go on after one.
once() {
  local path=$1 gigabytes=$2 make=$3
  shift 3
  [ -e "$path" ] && return
  mkdir -p "$(dirname "$path")"
  (
    flock 9
    [ -e "$path" ] && exit 0
    need_disk "$gigabytes"
    rm -rf "$path.aside"
    mkdir "$path.aside"
    "$make" "$path.aside" "$@"
    mv -T "$path.aside" "$path"
  ) 9> "$path.lock"
  [ -e "$path" ] # a failure inside the parentheses ends here
}

# cargo_target NAME: prints a directory for what cargo makes of these sources. Cargo knows what is old by times alone, whatever the
# checkout: of one whose files are older than what another left here nothing would be built again. So that part of it goes.
cargo_target() {
  local directory=$SLUICE_CACHE/target/$1
  mkdir -p "$directory"
  if [ "$(cat "$directory/checkout" 2> /dev/null)" != "$TOP" ]; then
    find "$directory" -maxdepth 4 -path '*/.fingerprint/sluice-*' -prune -exec rm -rf {} +
    echo "$TOP" > "$directory/checkout"
  fi
  echo "$directory"
}

# executable FILE: makes FILE, given on standard input, executable.
executable() { cat > "$1"; chmod 755 "$1"; }
