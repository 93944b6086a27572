# Images for the node: pause, pgbouncer and shop, packed from the trees; sluice, built by buildah from the Containerfile.
# shellcheck shell=bash

pack_images() { # DIRECTORY TOOL PGBOUNCER SHOP
  local into=$1 tool=$2 root
  root=$into/root
  mkdir "$root"
  cp "$tool" "$root/pause"
  "$tool" image "$into/pause.tar" sluice.test/pause:1 "$root" --entrypoint /pause
  image_root "$root" "$3"
  "$tool" image "$into/pgbouncer.tar" "sluice.test/pgbouncer:$PGBOUNCER_VERSION" "$root" --entrypoint /usr/sbin/pgbouncer --user 65532:65532
  image_root "$root" "$4"
  "$tool" image "$into/shop.tar" sluice.test/shop:1 "$root" --entrypoint /bin/sh --user 65532:65532
  rm -rf "$root"
}

# image_root ROOT TREE: ROOT becomes what TREE holds, with the few files that make it a system.
image_root() {
  rm -rf "$1"
  cp -al "$2" "$1"
  rm -rf "$1"/{bin.lab,unroot,packages}
  mkdir -p "$1"/{etc,tmp}
  chmod 1777 "$1/tmp"
  rm -f "$1"/etc/passwd
  printf 'root:x:0:0::/:/bin/sh\nnonroot:x:65532:65532::/tmp:/bin/sh\n' > "$1/etc/passwd"
}

# build_images: prints the directory with the archives of the lab's own images.
build_images() {
  local tool pgbouncer shop images
  tool=$(labtool_binary)
  pgbouncer=$(pgbouncer_tree)
  shop=$(shop_tree)
  images=$SLUICE_CACHE/images/$(key "$tool" "$pgbouncer" "$shop" "$(declare -f pack_images image_root)")
  once "$images" 2 pack_images "$tool" "$pgbouncer" "$shop"
  echo "$images"
}
