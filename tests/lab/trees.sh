# The trees of Debian packages that the lab runs or makes images of. A tree's directory `bin.lab` holds what others may run.
# shellcheck shell=bash

prepare_pgbouncer() {
  mkdir "$1/bin.lab"
  wrap "$1" usr/sbin/pgbouncer "$1/bin.lab/pgbouncer" unroot
  cp "$LAB/unroot" "$1/bin.lab/unroot"
}

# initdb and pg_ctl look for postgres beside themselves: wrappers take the place of the package's own programs.
prepare_postgres() {
  local bin=usr/lib/postgresql/$POSTGRES_VERSION/bin program
  rm -f "$1/usr/lib/postgresql/$POSTGRES_VERSION"/lib/llvmjit* # its LLVM is not unpacked
  # the package's default is a directory of the system
  sed -i "s|^#unix_socket_directories = .*|unix_socket_directories = ''|" "$1/usr/share/postgresql/$POSTGRES_VERSION/postgresql.conf.sample"
  mv "$1/$bin" "$1/$bin.real"
  mkdir "$1/$bin" "$1/bin.lab"
  for program in postgres initdb pg_ctl; do wrap "$1" "$bin.real/$program" "$1/$bin/$program" unroot; done
  for program in psql pgbench pg_isready pg_dump createdb; do wrap "$1" "$bin.real/$program" "$1/$bin/$program"; done
  for program in "$1/$bin"/*; do ln -s "${1%.aside}/$bin/${program##*/}" "$1/bin.lab/"; done
}

prepare_prometheus() {
  mkdir "$1/bin.lab"
  wrap "$1" usr/bin/prometheus "$1/bin.lab/prometheus"
  wrap "$1" usr/bin/promtool "$1/bin.lab/promtool"
}

prepare_shellcheck() {
  mkdir "$1/bin.lab"
  wrap "$1" usr/bin/shellcheck "$1/bin.lab/shellcheck"
}

# These start themselves again (/proc/self/exe) or are started by each other: no wrappers.
prepare_node() {
  local program programs=(usr/bin/{containerd,containerd-shim-runc-v2,ctr,ip} usr/sbin/{runc,nft})
  relink "$1" "${programs[@]}" usr/lib/cni/{bridge,host-local,loopback}
  mkdir "$1/bin.lab"
  for program in "${programs[@]}" usr/lib/cni; do ln -s "${1%.aside}/$program" "$1/bin.lab/"; done
}

prepare_buildah() {
  relink "$1" usr/bin/buildah
  mkdir "$1/bin.lab"
  ln -s "${1%.aside}/usr/bin/buildah" "$1/bin.lab/"
}

prepare_shop() {
  local applet
  mv "$1/usr/lib/postgresql/$POSTGRES_VERSION"/bin/{psql,pgbench} "$1/usr/bin/"
  (cd "$1" && rm -rf usr/lib/postgresql usr/share/postgresql usr/share/postgresql-common etc var)
  # /bin is /usr/bin here
  for applet in $("$1/usr/bin/busybox" --list); do
    [ -e "$1/usr/bin/$applet" ] || ln -s busybox "$1/usr/bin/$applet"
  done
}

pgbouncer_tree() { debian_tree pgbouncer "$PGBOUNCER_SUITE" pgbouncer "$PGBOUNCER_VERSION" prepare_pgbouncer; }
postgres_tree() { debian_tree postgres "$POSTGRES_SUITE" "postgresql-$POSTGRES_VERSION" "$POSTGRES_VERSION" prepare_postgres; }
prometheus_tree() { debian_tree prometheus "$PROMETHEUS_SUITE" prometheus "$PROMETHEUS_VERSION" prepare_prometheus; }
node_tree() { debian_tree node "$CONTAINERD_SUITE" containerd "$CONTAINERD_VERSION" prepare_node; }
buildah_tree() { debian_tree buildah "$BUILDAH_SUITE" buildah "$BUILDAH_VERSION" prepare_buildah; }
shop_tree() { debian_tree shop "$POSTGRES_SUITE" "postgresql-$POSTGRES_VERSION" "$POSTGRES_VERSION" prepare_shop; }
shellcheck_tree() { debian_tree shellcheck "$SHELLCHECK_SUITE" shellcheck "$SHELLCHECK_VERSION" prepare_shellcheck; }
