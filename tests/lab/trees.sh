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

# A PgBouncer without socket activation, as Alpine and others build it: from Debian's source, with the machine's compiler.
# libevent is linked in; TLS and c-ares are left out.
compile_pgbouncer_plain() { # DIRECTORY
  local into=$1 source=$1/pgbouncer-$PGBOUNCER_PLAIN_VERSION log=${1%.aside}.log conf
  mkdir "$into/bin.lab" "$into/libevent"
  debian_download "$into" "$LIBEVENT_SUITE" libevent-dev
  dpkg-deb --fsys-tarfile "$into"/libevent-dev_*.deb | tar -x --no-same-owner -C "$into/libevent"
  conf=$(apt_for "$PGBOUNCER_PLAIN_SUITE")
  APT_CONFIG=$conf /usr/lib/apt/apt-helper download-file \
    "$(debian_mirror)pool/main/p/pgbouncer/pgbouncer_$PGBOUNCER_PLAIN_VERSION.orig.tar.gz" "$source.tar.gz" "SHA256:$PGBOUNCER_PLAIN_SHA256" \
    > "$log" 2>&1 || { cat "$log" >&2; die "could not download the source of PgBouncer $PGBOUNCER_PLAIN_VERSION"; }
  tar -xzf "$source.tar.gz" --no-same-owner -C "$into"
  (
    cd "$source" &&
      LIBEVENT_CFLAGS="-I$into/libevent/usr/include -I$into/libevent/usr/include/$TRIPLET" \
        LIBEVENT_LIBS="$into/libevent/usr/lib/$TRIPLET/libevent.a -lpthread" \
        nice ./configure --without-systemd --without-openssl --without-cares --without-pam &&
      nice make -j2 pgbouncer
  ) >> "$log" 2>&1 || { tail -n 20 "$log" >&2; die "could not build PgBouncer: it takes a C compiler and make; see $log"; }
  cp "$source/pgbouncer" "$LAB/unroot" "$into/"
  rm -rf "$source" "$source.tar.gz" "$into/libevent" "$into"/*.deb "$log"
  executable "$into/bin.lab/pgbouncer-plain" <<WRAPPER
#!/bin/sh
exec '${into%.aside}/unroot' '${into%.aside}/pgbouncer' "\$@"
WRAPPER
}

pgbouncer_plain_tree() {
  local tree
  tree=$SLUICE_CACHE/debian/pgbouncer-plain-$(key "$PGBOUNCER_PLAIN_VERSION" "$ARCH" "$(cat "$LAB/unroot")" "$(declare -f compile_pgbouncer_plain)")
  [ -e "$tree" ] || say "building PgBouncer $PGBOUNCER_PLAIN_VERSION without socket activation"
  once "$tree" 1 compile_pgbouncer_plain
  echo "$tree"
}

pgbouncer_tree() { debian_tree pgbouncer "$PGBOUNCER_SUITE" pgbouncer "$PGBOUNCER_VERSION" prepare_pgbouncer; }
postgres_tree() { debian_tree postgres "$POSTGRES_SUITE" "postgresql-$POSTGRES_VERSION" "$POSTGRES_VERSION" prepare_postgres; }
prometheus_tree() { debian_tree prometheus "$PROMETHEUS_SUITE" prometheus "$PROMETHEUS_VERSION" prepare_prometheus; }
node_tree() { debian_tree node "$CONTAINERD_SUITE" containerd "$CONTAINERD_VERSION" prepare_node; }
buildah_tree() { debian_tree buildah "$BUILDAH_SUITE" buildah "$BUILDAH_VERSION" prepare_buildah; }
shop_tree() { debian_tree shop "$POSTGRES_SUITE" "postgresql-$POSTGRES_VERSION" "$POSTGRES_VERSION" prepare_shop; }
shellcheck_tree() { debian_tree shellcheck "$SHELLCHECK_SUITE" shellcheck "$SHELLCHECK_VERSION" prepare_shellcheck; }
