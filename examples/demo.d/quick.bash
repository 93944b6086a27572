# The data plane alone, as plain processes on loopback: what examples/demo --quick builds, starts and drives. Sourced by it.
# The applications, PostgreSQL, Prometheus, the agents and their PgBouncers are what they are in a cluster. The operator is its own
# functions in examples/demo.d/operator.rs; pods are directories.
# SLUICE_DEMO_BIN: a directory with its programs, instead of compiling them; SLUICE_DEMO_SECONDS: how long each part of the story takes,
# instead of what it needs.
# shellcheck shell=bash disable=SC2154,SC2034 # the variables of examples/demo

late_window=5s # five scrapes
pods=(shop-1 shop-2 shop-3)
run=       # what runs keeps its files here
running=() # its processes, in the order in which they began
declare -A port_of=() load_of=()

# of its own: another build on this machine, also of this checkout, has no part in it
export CARGO_TARGET_DIR=$PWD/target/quick CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never

# what it does not need is not compiled: what talks with an API server, checks of arithmetic, unwinding
programs=(--no-default-features --package sluice --package sluice-demo)
export CARGO_PROFILE_DEV_PANIC=abort CARGO_PROFILE_DEV_OVERFLOW_CHECKS=false CARGO_PROFILE_DEV_DEBUG_ASSERTIONS=false

bin=${SLUICE_DEMO_BIN:-$CARGO_TARGET_DIR/debug}

in_lab() { command "$@"; }
psql() { in_lab psql -qX -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$database" -U postgres "$@"; }

build() {
  local fetching host
  need_free 3 "$PWD"
  if [ -n "${SLUICE_DEMO_BIN:-}" ]; then
    eval "$($lab env quick)"
    return
  fi
  [ -d target/quick ] || say "The first run compiles Sluice, unoptimised, into target/quick (1 GB): about a minute and a half on two cores."
  # waits for the network while cargo waits for the cores; told of below
  $lab build quick > "$out/packages.log" 2>&1 < /dev/null &
  fetching=$!
  step "Fetching Sluice's crates" "10 s" cargo fetch --locked
  host=$(rustc -vV | sed -n 's/^host: //p')
  crates=$(cargo tree --locked --offline "${programs[@]}" --edges normal,build --target "$host" --prefix none --format '{p}' | sed 's/ (\*)$//' | sort -u | wc -l)
  step "Compiling Sluice" "90 s" cargo build --locked --offline "${programs[@]}" --bin sluice-agent --bin demo-operator
  crates=
  wait $fetching || :
  step "PgBouncer, PostgreSQL, Prometheus" "30 s" $lab build quick
  eval "$($lab env quick)"
}

# spawn NAME PROGRAM...: starts a process that ends with the demo.
spawn() {
  local name=$1
  shift
  "$@" > "$run/log/$name" 2>&1 < /dev/null &
  running+=($!)
}

# free_port: a port of loopback that nobody listens on.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    case " ${ports[*]} " in *" $port "*) continue ;; esac
    if ! (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
      ports+=("$port")
      free=$port
      return
    fi
  done
}

# until_true WHAT COMMAND...
until_true() {
  local what=$1 deadline=$((SECONDS + 60))
  shift
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "not within 60 s: $what"
    sleep 0.1
  done
}

# has_read: whether a figure of each pod and of the operator is there.
has_read() {
  in_lab promtool query instant "$prometheus" "count(sluice_limit) == ${#pods[@]} and on() sluice_operator_share" | grep -q '=> '
}

# file_in MANIFEST NAME: a file of the ConfigMap that is last in the manifest.
file_in() { awk -v name="  $2: |" '$0 == name {on = 1; next} on && !/^    / {exit} on {print substr($0, 5)}' "$1"; }

# target PORT LABEL=VALUE...: what Prometheus would discover of a pod with this port
target() {
  local port=$1 label labels=''
  shift
  for label; do labels+="${labels:+, }\"__meta_kubernetes_${label%%=*}\": \"${label#*=}\""; done
  printf '{"targets": ["127.0.0.1:%s"], "labels": {%s}}' "$port" "$labels"
}

start() {
  local ports=() targets=() free pod agents='' metrics
  # the way to the network is over; what follows stays on loopback
  unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy
  run=$(mktemp -d)
  chmod 755 "$run"
  mkdir "$run/log"
  for pod in database prometheus_port metrics; do free_port; printf -v "$pod" %s "$free"; done
  prometheus=http://127.0.0.1:$prometheus_port

  initdb --username=postgres --auth=trust --encoding=UTF8 --locale=C -D "$run/postgres" > "$run/log/initdb" 2>&1
  spawn postgres postgres -D "$run/postgres" -p "$database" -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off
  until_true "PostgreSQL answers" psql -c 'SELECT 1'
  psql -c "CREATE ROLE shop LOGIN PASSWORD 'change-me'" -c 'CREATE DATABASE shop OWNER shop'
  psql -d shop -f examples/shop/schema.sql -c 'ALTER TABLE orders OWNER TO shop' -c 'ALTER TABLE pace OWNER TO shop' > /dev/null

  for pod in "${pods[@]}"; do
    free_port
    port_of[$pod]=$free
    free_port
    agents+="${agents:+ }--pod $pod=${port_of[$pod]}:$free"
    targets+=("$(target "$free" namespace=shop pod_name="$pod" pod_container_port_name=sluice-metrics)")
  done
  targets+=("$(target "$metrics" pod_label_app_kubernetes_io_name=sluice pod_label_app_kubernetes_io_component=operator \
    pod_container_port_name=metrics)")
  (IFS=,; printf '[%s]' "${targets[*]}") > "$run/targets.json"
  SLUICE_SCRAPE=1s $lab scrape-configuration "$run/targets.json" > "$run/prometheus.yaml"
  spawn prometheus prometheus --config.file="$run/prometheus.yaml" --storage.tsdb.path="$run/prometheus" \
    --web.listen-address="127.0.0.1:$prometheus_port"
  until_true "Prometheus answers" in_lab promtool query instant "$prometheus" 'vector(1)'
  # shellcheck disable=SC2086 # words
  spawn operator "$bin/demo-operator" --pool examples/shop/3-connectionpool.yaml --directory "$run/pods" \
    --database-port "$database" --login shop:change-me --prometheus "$prometheus" --http-bind "127.0.0.1:$metrics" $agents
  until_true "the operator writes the first grants" test -e "$run/pods/${pods[-1]}/config/grant"
  for pod in $agents; do
    case $pod in *=*) ;; *) continue ;; esac
    spawn "${pod%%=*}" "$bin/sluice-agent" run --pod-uid "${pod%%=*}" --pod-name "${pod%%=*}" --pod-namespace shop \
      --injection "$(cat "$run/pods/${pod%%=*}/injection")" --listen "127.0.0.1:${pod##*:}" --grace-seconds 3 \
      --config-dir "$run/pods/${pod%%=*}/config" --run-dir "$run/pods/${pod%%=*}/run" --state-dir "$run/pods/${pod%%=*}/state"
  done
  export PGPASSWORD=change-me
  for pod in "${pods[@]}"; do
    until_true "a query through the pooler of $pod is answered" command psql -qX -h 127.0.0.1 -p "${port_of[$pod]}" -U shop -d shop -c 'SELECT 1'
  done
  until_true "Prometheus has read every pod and the operator" has_read
  file_in examples/shop/4-deployment.yaml order.sql > "$run/order.sql"
  file_in examples/leak/deployment.yaml report.sql > "$run/report.sql"
  say "PostgreSQL, Prometheus, and three agents with their PgBouncers: ready"
}

# orders POD NUMBER: so many orders a second, as examples/shop places them.
orders() {
  local pod=$1
  if [ -n "${load_of[$pod]:-}" ]; then
    kill "${load_of[$pod]}" 2> /dev/null || :
    wait "${load_of[$pod]}" 2> /dev/null || :
  fi
  pgbench --no-vacuum --file="$run/order.sql" --client=30 --rate="$2" --latency-limit=2000 --time=86400 \
    -h 127.0.0.1 -p "${port_of[$pod]}" -U shop shop >> "$run/log/orders-$pod" 2>&1 < /dev/null &
  load_of[$pod]=$!
}

story() {
  local pod
  phase quiet "Quiet: three pods, 8 orders a second each"
  for pod in "${pods[@]}"; do orders "$pod" 8; done
  watch_for "${SLUICE_DEMO_SECONDS:-12}" quiet

  phase rush "Rush: eight times the orders, all of the rest at shop-1"
  orders shop-1 64
  watch_for "${SLUICE_DEMO_SECONDS:-24}" rush

  phase slow "The database takes twice as long"
  pace 200
  watch_for "${SLUICE_DEMO_SECONDS:-18}" slow
  pace 100

  phase leak "Quiet again, and a report beside shop-3 that forgets to commit"
  orders shop-1 8
  pgbench --no-vacuum --file="$run/report.sql" --client=3 --time=86400 -h 127.0.0.1 -p "${port_of[shop-3]}" -U shop shop \
    > "$run/log/report" 2>&1 < /dev/null &
  load_of[report]=$!
  watch_for "${SLUICE_DEMO_SECONDS:-30}" leak
}

last_words() {
  headline "What the operator decided"
  awk -v began="$began" '{at = $1 - began; $1 = ""; printf "%5d:%02d %s\n", int(at / 60), at % 60, $0}' "$run/log/operator"
}

rest() {
  [ "$keep" = yes ] || return 0
  cat <<KEPT

Everything still runs, until Ctrl-C:
  Prometheus    $prometheus
  PostgreSQL    psql -h 127.0.0.1 -p $database -U postgres shop
  its poolers   PGPASSWORD=change-me psql -h 127.0.0.1 -U shop shop -p PORT, PORT one of ${port_of[*]}
  programs      $SLUICE_LAB_BIN
KEPT
  sleep infinity &
  running+=($!)
  wait $!
}

save_logs() {
  [ -n "$run" ] || return 1
  tail -n 50 "$run"/log/*
}

stop() {
  local process
  [ -n "$run" ] || return 0
  # who began last ends first; PostgreSQL ends at once with SIGINT
  for process in "${load_of[@]}"; do kill "$process" 2> /dev/null || :; done
  for ((process = ${#running[@]} - 1; process > 0; process--)); do kill "${running[process]}" 2> /dev/null || :; done
  for ((process = ${#running[@]} - 1; process > 0; process--)); do wait "${running[process]}" 2> /dev/null || :; done
  if [ ${#running[@]} -gt 0 ]; then
    kill -INT "${running[0]}" 2> /dev/null || :
    wait "${running[0]}" 2> /dev/null || :
  fi
  rm -rf "$run"
}
