# The drivers that tests/parts/drivers runs, each language with what its lock file names: built by the language's own package client.
# shellcheck shell=bash

DRIVERS=$TOP/tests/parts/drivers

build_go_drivers() { # DIRECTORY
  (
    cd "$DRIVERS/go"
    export GOMODCACHE=$SLUICE_CACHE/go/mod GOCACHE=$SLUICE_CACHE/go/build GOFLAGS='-mod=readonly -modcacherw -buildvcs=false'
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off
    nice go build -trimpath -o "$1/run" .
  )
}

build_java_drivers() { # DIRECTORY
  nice mvn --quiet --batch-mode --file "$DRIVERS/java/pom.xml" -Dmaven.repo.local="$SLUICE_CACHE/maven" \
    dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$1/jars" >&2
  nice javac -d "$1/classes" -cp "$1/jars/*" "$DRIVERS"/java/src/*.java
  executable "$1/run" <<WRAPPER
#!/bin/sh
exec java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp '${1%.aside}/classes:${1%.aside}/jars/*' Drivers "\$@"
WRAPPER
}

build_node_drivers() { # DIRECTORY
  cp "$DRIVERS"/node/*.mjs "$DRIVERS"/node/package*.json "$1/"
  (cd "$1" && nice npm ci --silent --no-audit --no-fund --ignore-scripts --cache "$SLUICE_CACHE/npm" >&2)
  executable "$1/run" <<WRAPPER
#!/bin/sh
exec node --no-deprecation '${1%.aside}/main.mjs' "\$@"
WRAPPER
}

build_python_drivers() { # DIRECTORY
  cp "$DRIVERS"/python/*.py "$1/"
  nice python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --no-compile \
    --root-user-action ignore --cache-dir "$SLUICE_CACHE/pip" --target "$1/packages" --requirement "$DRIVERS/python/requirements.txt" >&2
  executable "$1/run" <<WRAPPER
#!/bin/sh
PYTHONPATH='${1%.aside}/packages' PYTHONDONTWRITEBYTECODE=1 exec python3 '${1%.aside}/main.py' "\$@"
WRAPPER
}

build_rust_drivers() { # DIRECTORY
  (
    cd "$DRIVERS/rust"
    CARGO_TARGET_DIR=$SLUICE_CACHE/target/drivers CARGO_INCREMENTAL=0 nice cargo build --quiet --locked
  )
  cp "$SLUICE_CACHE/target/drivers/debug/drivers" "$1/run"
}

# drivers_lacking LANGUAGE: what this machine lacks for it, in words; nothing if it lacks nothing.
drivers_lacking() {
  case $1 in
    go) go_lacking ;;
    java) if ! { command -v javac && command -v mvn; } > /dev/null; then echo "javac and mvn"; fi ;;
    node) if ! { command -v node && command -v npm; } > /dev/null; then echo "node and npm"; fi ;;
    python) python3 -c 'import sys, pip; sys.exit(sys.version_info < (3, 10))' 2> /dev/null || echo "Python 3.10 or newer with pip" ;;
    rust) ;;
  esac
}

# drivers_toolchain LANGUAGE: what a build of it depends on beside its files.
drivers_toolchain() {
  case $1 in
    go) go env GOVERSION ;;
    java) javac -version ;;
    node) node --version ;;
    python) python3 --version ;;
    rust) rustc --version ;;
  esac
}

link_drivers() { # DIRECTORY LANGUAGE=TREE...
  local into=$1 pair
  shift
  for pair in "$@"; do ln -s "${pair#*=}/run" "$into/${pair%%=*}"; done
}

# drivers_directory: builds what this machine can and prints the directory that holds one program for each language. What is left
# out is named, and with CI=true it is a failure.
drivers_directory() {
  local language lacking tree trees=()
  for language in go java node python rust; do
    lacking=$(drivers_lacking "$language")
    if [ -n "$lacking" ]; then
      [ "${CI:-}" != true ] || die "CI tests the drivers of every language, and $language needs $lacking"
      say "left out: the drivers of $language (they need $lacking)"
      continue
    fi
    tree=$SLUICE_CACHE/drivers/$language-$(key "$ARCH" "$(drivers_toolchain "$language")" "$(digest "$DRIVERS/$language")" "$(declare -f "build_${language}_drivers")")
    [ -e "$tree" ] || say "building the drivers of $language"
    once "$tree" 2 "build_${language}_drivers"
    trees+=("$language=$tree")
  done
  tree=$SLUICE_CACHE/drivers/all-$(key "${trees[@]}")
  once "$tree" 1 link_drivers "${trees[@]}"
  echo "$tree"
}
