# The whole of Sluice on a one-node Kubernetes: what examples/demo builds, starts and drives. Sourced by it.
# shellcheck shell=bash disable=SC2154,SC2034 # its variables

late_window=15s # three scrapes
started=no

in_lab() { $lab exec -- "$@"; }
psql() { in_lab psql -qX -v ON_ERROR_STOP=1 "$@"; }

build() {
  step "Kubernetes, PostgreSQL, Prometheus" "15 min" $lab build node
  step "Sluice and its image" "5 min" $lab build image
  echo "$versions" > "$stamp"
}

start() {
  local address
  ! $lab status > /dev/null 2>&1 || fail "a demo is up already: examples/demo --down"
  started=yes
  step "One node with PostgreSQL and Prometheus" "10 s" $lab up node
  address=$(in_lab printenv PGHOST)
  prometheus=http://$address:9090

  psql -c "CREATE ROLE shop LOGIN PASSWORD 'change-me'" -c 'CREATE DATABASE shop OWNER shop'
  in_lab env PGUSER=shop PGPASSWORD=change-me PGDATABASE=shop psql -qX -v ON_ERROR_STOP=1 -f examples/shop/schema.sql > /dev/null

  # the database runs outside the cluster: a Service without a selector gives it the name that the examples use
  in_lab kubectl apply -f - > /dev/null <<SERVICE
apiVersion: v1
kind: Namespace
metadata: {name: db}
---
apiVersion: v1
kind: Service
metadata: {name: pg-main-rw, namespace: db}
spec: {ports: [{port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pg-main-rw, namespace: db, labels: {kubernetes.io/service-name: pg-main-rw}}
addressType: IPv4
ports: [{port: 5432}]
endpoints: [{addresses: ["$address"]}]
SERVICE

  step "helm install sluice charts/sluice" "20 s" in_lab helm install sluice charts/sluice \
    --namespace sluice-system --create-namespace --wait --timeout 3m \
    --set image.repository=sluice.test/sluice --set image.tag="$($lab image-tag)" \
    --set pgbouncer.image="$($lab pgbouncer-image)" \
    --set prometheus.servers.default.url="$prometheus" --set tickSeconds=5
  step "kubectl apply -f examples/shop" "10 s" in_lab sh -c \
    'kubectl apply -f examples/shop && kubectl -n shop rollout status deployment/shop --timeout=2m'
}

scale() { in_lab kubectl -n shop scale deployment/shop --replicas="$1" > /dev/null; }
orders() { in_lab kubectl -n shop set env deployment/shop ORDERS_PER_SECOND="$1" > /dev/null; }

story() {
  phase quiet "Quiet: two pods, 8 orders a second each"
  watch_for 40 quiet

  phase rush "Rush: six pods"
  scale 6
  watch_for 30 rush
  phase rollout "Rolling update: three times the orders"
  orders 24
  watch_for 45 rollout

  phase slow "The database takes twice as long"
  pace 200
  watch_for 40 slow
  pace 100

  phase leak "Quiet again, and a report that forgets to commit"
  scale 2
  orders 8
  in_lab kubectl apply -f examples/leak > /dev/null
  watch_for 60 leak

  before_change=$(date +%s)
  phase change "Three pods, and a change that gives each query 300 ms, which one order in twenty passes"
  in_lab kubectl delete -f examples/leak --wait=false > /dev/null
  scale 3
  orders 16
  in_lab kubectl -n shop rollout status deployment/shop --timeout=2m > /dev/null
  watch_for 30 change
  bad_change
}

# bad_change: the configuration of the poolers becomes worse; it is judged on one pod, and goes back by itself.
bad_change() {
  local until=$((SECONDS + 180)) said='' now
  in_lab kubectl -n shop patch connectionpool shop --type=merge --patch '{"spec": {
    "pgbouncer": {"parameters": {"query_timeout": "0.3"}},
    "rollout": {"analysis": {"metrics": [{"name": "Errors"}, {"name": "TransactionTime"}]}}}}'
  while [ $SECONDS -lt $until ]; do
    now=$(in_lab kubectl -n shop get connectionpool shop \
      -o 'jsonpath={range .status.conditions[?(@.type=="Progressing")]}{.reason}: {.message}{end}')
    [ "$now" = "$said" ] || say "    $now"
    said=$now
    case $now in AnalysisFailed:* | AnalysisInconclusive:*) break ;; esac
    row change
    sleep 2
  done
  watch_for 15 back
}

last_words() {
  headline "kubectl describe connectionpool shop"
  in_lab kubectl -n shop describe connectionpool shop
  headline "kubectl sluice rollout history shop"
  ln -sf "$SLUICE_CACHE/images/sluice-$($lab image-tag)/sluice" "$out/kubectl-sluice"
  in_lab "$out/kubectl-sluice" rollout history shop -n shop
}

save_logs() {
  [ $started = yes ] || return 1
  in_lab kubectl get pods -A -o wide || :
  in_lab kubectl get events -A --sort-by=.lastTimestamp || :
  in_lab kubectl -n sluice-system logs deployment/sluice --all-pods --tail=200 || :
  in_lab kubectl -n shop logs deployment/shop -c sluice --tail=100 || :
}

stop() { # CODE
  [ $started = yes ] || return 0
  if [ "$keep" = yes ] && [ "$1" = 0 ]; then
    cat <<KEPT

Everything still runs. Look around with SLUICE_LAB=demo tests/lab/lab exec -- COMMAND, for example
  SLUICE_LAB=demo tests/lab/lab exec -- kubectl -n shop get connectionpools,pods
and end it with
  examples/demo --down
KEPT
  else
    echo "Taking down what was started."
    $lab down || :
  fi
}
