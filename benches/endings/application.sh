# An application at work on its database, for the container of a pod: connections made for one question, connections that live three
# seconds, and transactions of two. Nothing is tried twice. Told to end, it takes up nothing new and finishes what it is at.
# A byte in /tally/POD.SORT for each that went well, a line in /tally/POD.lost for each that did not, and /tally/POD.ended at last.
# ENDS_AFTER: seconds after which it has done its work, as a Job's does.
mine=/tally/$(hostname)
export PGCONNECT_TIMEOUT=10

lost() { printf '%s %s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')" >> "$mine.lost"; }

work() { # SORT STATEMENTS PAUSE
  while [ ! -e /tmp/end ]; do
    if said=$(printf '%s\n' "$2" | psql -qXAt -v ON_ERROR_STOP=1 2>&1); then
      case $said in
        *[!42[:space:]]*) lost "$1" "wrong answer: $said" ;;
        *) printf x >> "$mine.$1" ;;
      esac
    else
      lost "$1" "$said"
    fi
    sleep "$3"
  done
}

trap ': > /tmp/end' TERM INT
third=$(for _ in $(seq 30); do echo 'SELECT 42 FROM pg_sleep(0.1);'; done)
work short 'SELECT 42;' 0.1 &
work short 'SELECT 42;' 0.1 &
work long "$third" 0 &
work long "$third" 0 &
work transaction 'BEGIN; INSERT INTO done DEFAULT VALUES; SELECT 42 FROM pg_sleep(2); COMMIT;' 0 &
if [ -n "${ENDS_AFTER:-}" ]; then
  { sleep "$ENDS_AFTER"; : > /tmp/end; } &
fi
# a signal ends the wait, not the work
while [ ! -e /tmp/end ]; do wait || :; done
wait || :
: > "$mine.ended"
