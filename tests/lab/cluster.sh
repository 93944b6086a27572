# The components: API server and etcd (level api), then a whole node (level node).
# shellcheck shell=bash

# RFC 2544 test range: exists only inside the network namespace
NODE_IP=198.18.0.1
POD_CIDR=198.18.16.0/20
SERVICE_CIDR=198.19.0.0/20
SERVICE_IP=198.19.0.1

in_lab() { # COMMAND...: a command in the network namespace with the administrator's kubeconfig
  local entry
  enter net
  KUBECONFIG=$RUN/kubeconfig/admin "${entry[@]}" "$@"
}

prepare_run() {
  mkdir -p "$RUN"/{pids,log,commands,certs,kubeconfig}
  chmod 711 "$RUN"
  [ -f "$RUN/certs/apiserver.crt" ] ||
    "$BIN/labtool" certs "$RUN/certs" localhost 127.0.0.1 $NODE_IP $SERVICE_IP \
      kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local
  # one static token for each component
  cat > "$RUN/tokens.csv" <<'TOKENS'
admin-token,admin,1,"system:masters"
controllers-token,system:kube-controller-manager,2
scheduler-token,system:kube-scheduler,3
proxy-token,system:kube-proxy,4
node0-token,system:node:node0,5,"system:nodes"
coredns-token,lab:coredns,6,"system:masters"
prometheus-token,lab:prometheus,7,"system:masters"
TOKENS
  local user
  for user in admin controllers scheduler proxy node0 coredns; do
    cat > "$RUN/kubeconfig/$user" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://127.0.0.1:6443", certificate-authority: $RUN/certs/ca.crt}}]
users: [{name: $user, user: {token: $user-token}}]
contexts: [{name: lab, context: {cluster: lab, user: $user}}]
current-context: lab
CONFIG
  done
  # every request with its answer, without bodies: tests read from it who was refused and which rights were used
  cat > "$RUN/audit-policy.yaml" <<'POLICY'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
POLICY
}

up_api() {
  prepare_run
  make_namespaces
  start etcd "$BIN/etcd" --name lab --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level warn --quota-backend-bytes 4294967296 \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster lab=http://127.0.0.1:2380
  start kube-apiserver "$BIN/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --secure-port 6443 --bind-address 0.0.0.0 \
    --advertise-address $NODE_IP --service-cluster-ip-range $SERVICE_CIDR --authorization-mode Node,RBAC \
    --tls-cert-file "$RUN/certs/apiserver.crt" --tls-private-key-file "$RUN/certs/apiserver.key" \
    --token-auth-file "$RUN/tokens.csv" --allow-privileged=true --profiling=false \
    --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$RUN/certs/sa.key" \
    --service-account-signing-key-file "$RUN/certs/sa.key" --enable-admission-plugins NodeRestriction \
    --kubelet-preferred-address-types InternalIP --audit-policy-file "$RUN/audit-policy.yaml" --audit-log-path "$RUN/audit.log"
  wait_for 60 "API server ready" in_lab kubectl get --raw /readyz
}

up_node() {
  ! rootless || die "the node level needs root"
  up_api
  if [ ! -d /sys/class/net/node0 ] && ! in_lab ip link show node0 > /dev/null 2>&1; then
    # a bridge carries the address, for kernels without dummy devices; a default route must exist, it leads nowhere
    in_lab sh -ec "ip link add node0 type bridge; ip addr add $NODE_IP/32 dev node0; ip link set node0 up
      ip route add default dev node0; echo 1 > /proc/sys/net/ipv4/ip_forward"
  fi
  start kube-controller-manager "$BIN/kube-controller-manager" --kubeconfig "$RUN/kubeconfig/controllers" \
    --use-service-account-credentials --service-account-private-key-file "$RUN/certs/sa.key" --root-ca-file "$RUN/certs/ca.crt" \
    --leader-elect=false --allocate-node-cidrs=false --bind-address 127.0.0.1
  start kube-scheduler "$BIN/kube-scheduler" --kubeconfig "$RUN/kubeconfig/scheduler" --leader-elect=false --bind-address 127.0.0.1
  start_containerd
  start_postgres
  start_prometheus
  start_coredns
  start_kubelet
  start kube-proxy "$BIN/kube-proxy" --kubeconfig "$RUN/kubeconfig/proxy" --proxy-mode nftables --hostname-override node0 \
    --cluster-cidr $POD_CIDR --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0
  wait_for 60 "node ready" in_lab kubectl wait --for=condition=Ready node/node0 --timeout=0
  wait_for 60 "default service account" in_lab kubectl get serviceaccount default
  wait_for 30 "PostgreSQL ready" in_lab pg_isready -q -h $NODE_IP
  wait_for 30 "Prometheus ready" in_lab promtool query instant http://$NODE_IP:9090 1
  wait_for 30 "DNS ready" in_lab grep -q CoreDNS- "$RUN/log/coredns.log"
}

# containerd_config_MAJOR SNAPSHOTTER: its configuration, whose sections have other names since 2.0
containerd_config_1() {
  cat <<CONFIG
version = 2
root = "$RUN/containerd/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.tracing", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "$RUN/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "sluice.test/pause:1"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$BIN/cni"
    conf_dir = "$RUN/cni/conf"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$1"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
CONFIG
}

containerd_config_2() {
  cat <<CONFIG
version = 3
root = "$RUN/containerd/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "$RUN/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "$1"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "sluice.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["$BIN/cni"]
    conf_dir = "$RUN/cni/conf"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
CONFIG
}

start_containerd() {
  mkdir -p "$RUN"/{containerd,cni/conf}
  local snapshotter=overlayfs
  [ "$(stat -f -c %T "$RUN")" != overlayfs ] || snapshotter=native # an overlay cannot lie on an overlay
  "containerd_config_${CONTAINERD_VERSION%%.*}" "$snapshotter" > "$RUN/containerd/config.toml"
  cat > "$RUN/cni/conf/10-pods.conflist" <<CONFIG
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$RUN/cni/ipam"}}]}
CONFIG
  start containerd "$BIN/containerd" -c "$RUN/containerd/config.toml"
  wait_for 30 "containerd ready" ctr_lab version
  local image
  for image in "$IMAGES"/*.tar "$(product_archive)"; do
    [ ! -f "$image" ] || load "$image"
  done
  lap "images loaded"
}

ctr_lab() {
  local entry
  enter net mount pid ipc
  "${entry[@]}" "$BIN/ctr" --address "$RUN/containerd/containerd.sock" --namespace k8s.io "$@"
}

load() { ctr_lab images import --all-platforms "$1" > /dev/null; } # ARCHIVE

start_kubelet() {
  make_cgroups
  : > "$RUN/resolv.conf"
  mkdir -p "$RUN/manifests"
  cat > "$RUN/kubelet.yaml" <<CONFIG
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /sluice-$SLUICE_LAB
failCgroupV1: false
containerRuntimeEndpoint: unix://$RUN/containerd/containerd.sock
clusterDomain: cluster.local
clusterDNS: [$NODE_IP]
resolvConf: $RUN/resolv.conf
failSwapOn: false
syncFrequency: 1m
configMapAndSecretChangeDetectionStrategy: Watch
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
maxPods: 200
serializeImagePulls: false
enforceNodeAllocatable: []
enableControllerAttachDetach: false
volumePluginDir: $RUN/kubelet-plugins
staticPodPath: $RUN/manifests
podLogsDir: $RUN/podlogs
shutdownGracePeriod: 0s
CONFIG
  start kubelet "$BIN/kubelet" --config "$RUN/kubelet.yaml" --kubeconfig "$RUN/kubeconfig/node0" --root-dir "$RUN/kubelet" \
    --cert-dir "$RUN/kubelet-pki" --hostname-override node0 --node-ip $NODE_IP --runtime-cgroups=/ --kubelet-cgroups=/
}

start_postgres() {
  if [ ! -f "$RUN/postgres/PG_VERSION" ]; then
    "$BIN/initdb" -D "$RUN/postgres" -U postgres --auth=scram-sha-256 --pwfile=<(echo postgres) -E UTF8 --locale=C \
      > "$RUN/log/initdb.log" 2>&1 || die "initdb failed: $(tail -n 3 "$RUN/log/initdb.log")"
    echo "host all all 0.0.0.0/0 scram-sha-256" >> "$RUN/postgres/pg_hba.conf"
  fi
  start postgres "$BIN/postgres" -D "$RUN/postgres" -c listen_addresses=$NODE_IP -c unix_socket_directories= -c max_connections=200 -c fsync=off \
    -c dynamic_shared_memory_type=mmap
}

# scrape_configuration TARGETS: the one that ships, with its limits; its pods come out of a file, for Debian's Prometheus is built without
# the discovery of Kubernetes. SLUICE_SCRAPE: another interval.
scrape_configuration() {
  local changes=(-e "s|^\( *\)kubernetes_sd_configs:\$|\1file_sd_configs: [{files: [$1]}]|" -e '/^ *- role: pod$/d')
  [ -z "${SLUICE_SCRAPE:-}" ] || changes+=(-e "s|^\( *scrape_interval:\) .*|\1 $SLUICE_SCRAPE|")
  sed "${changes[@]}" "$TOP/examples/prometheus/scrape-config.yaml"
}

start_prometheus() {
  scrape_configuration "$RUN/targets.json" > "$RUN/prometheus.yaml"
  start targets "$BIN/labtool" targets https://127.0.0.1:6443 "$RUN/certs/ca.crt" prometheus-token "$RUN/targets.json"
  start prometheus "$BIN/prometheus" --config.file="$RUN/prometheus.yaml" --storage.tsdb.path="$RUN/prometheus" \
    --web.listen-address=$NODE_IP:9090 --web.enable-lifecycle
}

start_coredns() {
  cat > "$RUN/Corefile" <<CONFIG
cluster.local in-addr.arpa {
  bind $NODE_IP
  errors
  kubernetes {
    kubeconfig $RUN/kubeconfig/coredns
    pods insecure
    ttl 5
  }
}
sluice.test {
  bind $NODE_IP
  hosts {
    $NODE_IP postgres.sluice.test prometheus.sluice.test
  }
}
. {
  bind $NODE_IP
  template ANY ANY {
    rcode NXDOMAIN
  }
}
CONFIG
  start coredns "$BIN/coredns" -conf "$RUN/Corefile"
}
