#!/usr/bin/env python3
"""Records what the reference implementation observes and decides, for tests/pure/golden.

  record.py TRACE.csv MODE OUT.csv [FROM_SECONDS TO_SECONDS]

One line per sample (s) and per decision (d) that rests on the samples before it:
  s,t,waiting,active,transactions,transaction_seconds,wait_seconds,assignments
  d,t,replicas,current,target,size       size = what adaptive.py answered, clamped
"""
import sys

import adaptive
import sim


def main():
    path, mode, out = sys.argv[1:4]
    until = float(sys.argv[4]) if len(sys.argv) > 4 else float("inf")
    s, reference = sim.Sim(path, dict(sim.MODES[mode], counters="dispatch")), adaptive.Adaptive()
    c = s.cfg
    lines = ["# %s mode=%s interval_s=%g min=%d max=%d wait_ms=%g target=%g" % (
        c["name"], mode, c["interval_s"], c["min_size"], c["max_size"], c["slo_wait_ms"], c["slo_target"])]

    def policy(o):
        for q in o["samples"]:  # what is written is what is decided on
            for k in ("xact_time_total_s", "wait_time_total_s"):
                q[k] = round(q[k], 3)
        a = reference(o)
        if o["t"] <= until:
            for q in o["samples"]:
                lines.append("s,%.10g,%d,%d,%d,%.10g,%.10g,%d" % (
                    q["t"], q["cl_waiting"], q["sv_active"], q["xact_count_total"], q["xact_time_total_s"], q["wait_time_total_s"],
                    q["server_assignments_total"]))
            lines.append("d,%.10g,%d,%d,%d,%d" % (o["t"], o["replicas"], o["current_size"], o["target_size"],
                                                  min(max(a["size"], o["min_size"]), o["max_size"])))
        return a
    s.run(policy)
    with open(out, "w") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
