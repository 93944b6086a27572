# The set of versions that a lab is made of: oldest or newest. What both share lies beside the directories of the sets.
# shellcheck shell=bash

# use_set SET: reads the versions of a set.
use_set() {
  SLUICE_SET=$1
  case $SLUICE_SET in
    oldest | newest) ;;
    *) die "SLUICE_SET=$SLUICE_SET: the sets are oldest and newest" ;;
  esac
  # shellcheck source=versions/common.env
  . "$LAB/versions/common.env"
  # shellcheck source=versions/newest.env
  . "$LAB/versions/$SLUICE_SET.env"
}

# print_set: the set and its versions for the environment of tests, as shell assignments.
print_set() {
  printf 'export SLUICE_SET=%q SLUICE_PGBOUNCER_VERSION=%q SLUICE_POSTGRES_VERSION=%q SLUICE_PROMETHEUS_VERSION=%q SLUICE_KUBERNETES_VERSION=%q\n' \
    "$SLUICE_SET" "$PGBOUNCER_VERSION" "$POSTGRES_VERSION" "$PROMETHEUS_VERSION" "$KUBERNETES_VERSION"
}

# of_set KIND NAME: where the set has its own KIND/SET/NAME, that; otherwise KIND/NAME, which both sets share.
of_set() {
  local own=$LAB/$1/$SLUICE_SET/$2
  if [ -e "$own" ]; then echo "$own"; else echo "$LAB/$1/$2"; fi
}

# the newest, because that is what people install, and what tests/run runs whole
use_set "${SLUICE_SET:-newest}"
