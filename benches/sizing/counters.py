"""The counters that PgBouncer has, and what the agent makes of them: the rules of src/agent/decide/busy.rs and
src/agent/decide/counters.rs.

PgBouncer counts a transaction with its first message, its wait when it gets a server connection, and its time, the wait included, when
it ends. The simulator counts from dispatch; with `counters="pooler"` a policy sees what an agent exports that reads such counters once a second.
The rule knows server connections by their numbers and clients by their names; here a transaction is known by when it began to run.
"""
SPREAD, LONGEST_PAUSE = 2.0, 5.0
# a transaction is known to run on once it has been seen at two readings that say that the database was not heard
SURE = 2.0


class Agent:
    def __init__(self):
        self.last = None       # time of the last reading, assigned, wait, ended, doubt, linked, open
        self.pairs = {}        # begin -> [estimated wait, counted]
        self.owed = 0.0
        self.busy_s = 0.0
        self.ended = self.abandoned = 0
        self.seen = (0, 0.0)  # assigned, wait_s
        self.off = (0, 0, 0.0, 0.0, 0)

    def read(self, t, running, queue_s, opened, waiting, begun, assigned, time_s, wait_s):
        """`running`: when what runs began, with its end; `queue_s`: since when every pod's queue has not been empty."""
        last_t, was_assigned, was_wait, was_ended, was_doubt, was_linked, was_open = self.last or (0.0, 0, 0.0, 0.0, 0.0, 0, 0)
        since = t - last_t
        began = assigned - was_assigned
        waited = (wait_s - was_wait) / began if began > 0 else 0.0
        queued = waiting > 0 and queue_s >= since
        follows = 0.0 < since <= LONGEST_PAUSE
        before, pairs, new, unsure, grown = self.pairs, {}, [], [], 0.0
        for which in running:
            pair = before.pop(which, None)
            if pair is None:
                pair = [waited, 0.0]
                new.append(pair)
            elif follows and (queued or which[0] <= last_t - SURE):
                pair[1] += since
                grown += since
            else:
                unsure.append(pair)
            pairs[which] = pair
        if follows and len(unsure) > began:
            unsure.sort(key=lambda pair: -pair[1])
            for pair in unsure[:len(unsure) - began]:
                pair[1] += since
                grown += since
        doubt = sum(min(pair[0], SPREAD) for pair in pairs.values())
        ended = time_s - wait_s + sum(pair[0] for pair in pairs.values())
        came = ended - was_ended
        came -= max(0.0, min(sum(pair[1] for pair in before.values()), came + doubt + was_doubt + max(self.owed, 0.0)))
        linked = len(pairs)
        if queued:
            worked = (was_linked + linked) * since / 2
            begun_s = min(max(worked - grown - came, 0.0), len(new) * since)
            for pair in new:
                pair[1] = begun_s / len(new)
            self.owed += came + grown + begun_s - worked
        else:
            self.owed += came + grown
            worked = min(max(self.owed, 0.0), max(opened, was_open) * since)
            self.owed -= worked
        self.owed = max(self.owed, -doubt - was_doubt)
        self.busy_s += worked
        self.ended = max(self.ended, assigned - linked)
        self.abandoned = max(self.abandoned, begun - assigned - waiting)
        self.seen = (assigned, wait_s)
        self.last = (t, assigned, wait_s, ended, doubt, linked, opened)
        self.pairs = pairs

    def restarted(self):
        """The agent's own counters begin anew."""
        self.off = (self.ended, self.abandoned, self.busy_s, self.seen[1], self.seen[0])

    def counters(self):
        o = self.off
        return dict(xact_count_total=self.ended - o[0], xact_abandoned_total=self.abandoned - o[1], xact_time_total_s=self.busy_s - o[2],
                    wait_time_total_s=self.seen[1] - o[3], server_assignments_total=self.seen[0] - o[4])
