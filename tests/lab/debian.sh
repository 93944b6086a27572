# Debian packages, downloaded with private apt directories and unpacked: nothing is installed, no root.
# shellcheck shell=bash

ARCH=$(dpkg --print-architecture 2>/dev/null || echo amd64)
case $ARCH in
  amd64) TRIPLET=x86_64-linux-gnu ;;
  arm64) TRIPLET=aarch64-linux-gnu ;;
  *) die "no lab for the architecture $ARCH" ;;
esac

# debian_mirror: the Debian mirror that this machine is configured with.
debian_mirror() {
  # shellcheck disable=SC2016 # apt's own variables
  apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(CODENAME)' 'Created-By: Packages' 2>/dev/null |
    awk '$1 ~ /\/debian\/?$/ {print $1; exit}' | grep . ||
    die "apt on this machine names no Debian mirror (an address that ends in /debian): add one to its sources"
}

# apt_for SUITE: prepares private apt directories for SUITE and prints the path of their apt.conf.
apt_for() {
  local suite=$1 dir=$SLUICE_CACHE/apt/$1-$ARCH mirror
  command -v apt-get > /dev/null || die "apt-get is not there: the lab takes PgBouncer, PostgreSQL and others from Debian packages"
  mkdir -p "$dir/lists/partial" "$dir/archives/partial"
  # the machine's own way to the network (proxies and the like), and nothing else of its configuration
  apt-config dump 2>/dev/null | grep '^Acquire::' > "$dir/apt.conf" || :
  cat >> "$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::State "$dir";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir";
Dir::Cache::archives "$dir/archives";
APT::Architecture "$ARCH";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
CONF
  : > "$dir/status"
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -f "$keyring" ] || die "$keyring is not there: install the package debian-archive-keyring"
  mirror=$(debian_mirror)
  echo "deb [signed-by=$keyring] $mirror $suite main" > "$dir/sources.list"
  echo "$dir/apt.conf"
}

# debian_download DIRECTORY SUITE PACKAGE...
debian_download() {
  local into=$1 suite=$2 conf log
  shift 2
  conf=$(apt_for "$suite")
  log=${conf%/*}/download.log
  (
    flock 8
    cd "$into"
    export APT_CONFIG=$conf
    # try the lists at hand first; a mirror that has moved on answers 404 and wants fresh ones
    [ -n "$(find "${conf%/*}/lists" -maxdepth 1 -name '*Packages*' -print -quit)" ] && apt-get -qq download "$@" > "$log" 2>&1 && exit
    apt-get -qq update > "$log" 2>&1 && apt-get -qq download "$@" >> "$log" 2>&1 && exit
    cat "$log" >&2
    die "could not download Debian packages ($suite)"
  ) 8> "$SLUICE_CACHE/apt/$suite-$ARCH/lock"
}

unpack_debian() { # DIRECTORY LIST SUITE PREPARE
  local into=$1 link deb
  mkdir "$into/debs"
  # shellcheck disable=SC2046 # one word, one package
  debian_download "$into/debs" "$3" $(grep -v '^#' "$2")
  # one merged /usr, as on an installed system
  mkdir -p "$into"/usr/{bin,sbin,lib,lib64}
  for link in bin sbin lib lib64; do ln -s "usr/$link" "$into/$link"; done
  for deb in "$into"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner --keep-directory-symlink -C "$into"
  done
  (cd "$into/debs" && printf '%s\n' *.deb) > "$into/packages"
  rm -rf "$into"/debs "$into"/usr/share/{doc,man,perl5,lintian,bash-completion,bug,info}
  # of all translations those of the server: a test speaks another language with it
  [ ! -d "$into/usr/share/locale" ] || find "$into/usr/share/locale" -type f ! -name 'postgres-*.mo' -delete
  "$4" "$into"
}

# debian_tree NAME SUITE PACKAGE VERSION PREPARE: unpacks the set's NAME.list and prints the directory. VERSION is what the version of
# PACKAGE must start with. The function PREPARE gets the directory last; it will be moved to the same path without ".aside".
debian_tree() {
  local list tree found
  list=$(of_set debian "$1.list")
  tree=$SLUICE_CACHE/debian/$1-$(key "$2" "$4" "$ARCH" "$(cat "$list" "$LAB/debian.sh" "$LAB/unroot")" "$(declare -f "$5")")
  [ -e "$tree" ] || say "unpacking Debian packages: $1 ($2)"
  once "$tree" 2 unpack_debian "$list" "$2" "$5"
  found=$(grep "^$3_" "$tree/packages") || :
  case $found in
    "$3_$4"* | "$3_"*%3a"$4"*) echo "$tree" ;;
    *) die "Debian $2 has ${found:-no $3}, the lab expects $3 $4: see versions/$SLUICE_SET.env" ;;
  esac
}

# wrap DIRECTORY PROGRAM FILE [unroot]: FILE becomes an executable that runs PROGRAM (a path below DIRECTORY) by the loader and with
# the libraries of DIRECTORY, whatever the machine's own C library is; with "unroot" not as root.
wrap() {
  local tree=${1%.aside} loader unroot=
  loader=$(cd "$1" && find usr/lib64 usr/lib "usr/lib/$TRIPLET" -maxdepth 1 -name 'ld-linux-*.so.*' -print -quit)
  [ -n "$loader" ] || die "no loader in $1"
  [ -z "${4:-}" ] || { cp "$LAB/unroot" "$1/unroot"; unroot="'$tree/unroot' "; }
  executable "$3" <<WRAPPER
#!/bin/sh
exec $unroot'$tree/$loader' --argv0 '${3/.aside/}' --library-path '$tree/usr/lib/$TRIPLET' '$tree/$2' "\$@"
WRAPPER
}

# relink DIRECTORY PROGRAM...: makes programs below DIRECTORY find loader and libraries there without a wrapper, for those that
# start themselves again by /proc/self/exe.
relink() {
  local from=$1 tree=${1%.aside} loader program
  shift
  loader=$(cd "$from" && find usr/lib64 usr/lib "usr/lib/$TRIPLET" -maxdepth 1 -name 'ld-linux-*.so.*' -print -quit)
  for program in "$@"; do
    # from the unpacked tree, so nothing of the machine is needed for it either
    "$from/$loader" --library-path "$from/usr/lib/$TRIPLET" "$from/usr/bin/patchelf" \
      --set-interpreter "$tree/$loader" --force-rpath --set-rpath "$tree/usr/lib/$TRIPLET" "$from/$program"
  done
}
