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

# --- the product's own image

# image_tag: names the image after what it is built from, so that a change of the sources is a change of the image.
image_tag() { digest "$TOP/src" "$TOP/Cargo.toml" "$TOP/Cargo.lock" "$TOP/rust-toolchain.toml" "$TOP/Containerfile"; }

# product_archive: where the archive of the image of these sources is, built or not.
product_archive() { echo "$SLUICE_CACHE/images/sluice-$(image_tag)/sluice.tar"; }

# build_image: builds the product's image with buildah from the Containerfile.
build_image() { once "$(dirname "$(product_archive)")" 4 make_image; }

make_image() { # DIRECTORY
  local into=$1 buildah triple tag
  tag=sluice.test/sluice:$(image_tag)
  buildah=$(buildah_tree)/bin.lab/buildah
  triple=$(uname -m)-unknown-linux-gnu
  say "building $tag"
  (
    # one at a time: another checkout would take out of the directory what this one is about to use
    flock 6
    cd "$TOP"
    # optimised, but not to the last: this image is built again after each change
    CARGO_TARGET_DIR=$(cargo_target image)
    export CARGO_TARGET_DIR RUSTFLAGS='-C target-feature=+crt-static' CARGO_INCREMENTAL=0
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    nice cargo build --release --locked --bins --target "$triple"
    cp "$CARGO_TARGET_DIR/$triple"/release/{sluice,sluice-agent} "$into/"
  ) 6> "$SLUICE_CACHE/image-build.lock"
  # a storage of its own, no registry, no configuration of the system
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$into/policy.json"
  : > "$into/registries.conf"
  local store=(--root "$into/store/root" --runroot "$into/store/run" --storage-driver vfs --registries-conf "$into/registries.conf")
  "$buildah" "${store[@]}" build --isolation chroot --signature-policy "$into/policy.json" --timestamp 0 --quiet \
    --build-arg BINARIES=. --file "$TOP/Containerfile" --tag "$tag" "$into" > /dev/null
  "$buildah" "${store[@]}" push --signature-policy "$into/policy.json" --quiet "$tag" "docker-archive:$into/sluice.tar:$tag"
  rm -rf "$into/store" "$into/policy.json" "$into/registries.conf"
}
