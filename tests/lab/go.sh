# Kubernetes, etcd, helm, CoreDNS, VictoriaMetrics and Thanos, built from the Go module proxy by the wrapper modules in go/.
# shellcheck shell=bash

compile_go() { # DIRECTORY MODULE PACKAGE LDFLAGS TAGS
  (
    cd "$(of_set go "$2")"
    export GOMODCACHE=$SLUICE_CACHE/go/mod GOCACHE=$SLUICE_CACHE/go/build GOFLAGS='-mod=readonly -modcacherw -buildvcs=false'
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off
    nice go build -trimpath -tags "$5" -ldflags "-s -w $4" -o "$1/$2" "$3"
  )
}

# go_lacking: what is missing of Go, in words; nothing if it will do.
go_lacking() {
  local needed=1.26.6 found
  found=$(cd / && GOTOOLCHAIN=local go env GOVERSION 2> /dev/null) || found=
  if [ -z "$found" ]; then
    echo "Go $needed or newer (https://go.dev/dl)"
  elif [ "$(printf '%s\n' "$needed" "${found#go}" | sort -V | head -n 1)" != "$needed" ]; then
    echo "Go $needed or newer: this is ${found#go} (https://go.dev/dl)"
  fi
}

# go_binary MODULE PACKAGE GIGABYTES [LDFLAGS [TAGS]]: builds the set's MODULE and prints the path of the binary. A cold build needs GIGABYTES of disk.
go_binary() {
  local module=$1 package=$2 gigabytes=$3 ldflags=${4:-} tags=${5:-} source binary lacking
  source=$(of_set go "$module")
  lacking=$(go_lacking)
  [ -z "$lacking" ] || die "this level is built from Go modules and needs $lacking"
  binary=$SLUICE_CACHE/bin/$module-$(key "$(go env GOVERSION)" "$ARCH" "$ldflags" ${tags:+"$tags"} "$(digest "$source")")
  [ -e "$binary" ] || say "building $module (see README.md for how long that takes)"
  once "$binary" "$gigabytes" compile_go "$module" "$package" "$ldflags" "$tags"
  echo "$binary/$module"
}

labtool_binary() { go_binary labtool . 1; }
etcd_binary() { go_binary etcd . 2; }
helm_binary() {
  local module=helm.sh/helm/v${HELM_VERSION%%.*}
  go_binary helm "$module/cmd/helm" 3 "-X $module/internal/version.version=v$HELM_VERSION"
}
coredns_binary() { go_binary coredns . 3; }
victoria_metrics_binary() {
  go_binary victoria-metrics github.com/VictoriaMetrics/VictoriaMetrics/app/victoria-metrics 2 \
    "-X github.com/VictoriaMetrics/VictoriaMetrics/lib/buildinfo.Version=victoria-metrics-v$VICTORIA_METRICS_VERSION"
}
# the tag chooses how Prometheus' library keeps labels: Thanos stands on this one
thanos_binary() {
  go_binary thanos github.com/thanos-io/thanos/cmd/thanos 3 "-X github.com/prometheus/common/version.Version=$THANOS_VERSION" slicelabels
}
kubernetes_binary() {
  local package flags=()
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=(-X "$package.gitVersion=v$KUBERNETES_VERSION" -X "$package.gitMajor=1" -X "$package.gitTreeState=clean"
      -X "$package.gitMinor=$(cut -d. -f2 <<< "$KUBERNETES_VERSION")" -X "$package.buildDate=1970-01-01T00:00:00Z")
  done
  go_binary kubernetes . 8 "${flags[*]}"
}

# pinned MODULE REQUIREMENT VERSION: a wrapper module and the versions of the set must not disagree.
pinned() {
  local source
  source=$(of_set go "$1")
  grep -qE "$2 v${3//./\\.}( |\$)" "$source/go.mod" || die "$source/go.mod does not require $2 v$3, as the versions of the set $SLUICE_SET say"
}
