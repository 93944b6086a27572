#!/usr/bin/env python3
"""Runs the sizing of Sluice, the reference and its peers over all traces and keeps one line of raw figures per run.

  bench.py --sluice BINARY --traces DIR --out SAMPLES.csv [--only PART,PART] [--policies NAME,NAME] [--jobs N]

A run is one policy on one trace in one cadence with one idle timeout. While `sluice` runs, the reference sees the same
observations: `apart` counts the ticks in which the two sizes differ by more than 1.
"""
import argparse
import csv
import glob
import multiprocessing
import os
import sys

import adaptive
import sim

HERE = os.path.dirname(os.path.abspath(__file__))
# what a policy is told comes from the counters that PgBouncer has (counters.py); dispatch: from when transactions got their connections
CADENCES = {name + way: dict(cadence, counters=counters) for way, counters in (("", "pooler"), ("-dispatch", "dispatch"))
            for name, cadence in (("agent", sim.MODES["agent"]), ("operator30", dict(interval_s=30.0)), ("operator15", dict(interval_s=15.0)))}
COLUMNS = ("policy cadence idle_timeout_s trace duration_s arrivals cost_conn_s open_conn_s busy_conn_s oracle_conn_s oracle_floor oracle_budget "
           "viol_frac p99_wait_ms connections_opened resizes policy_errors ticks apart").split()
# policy, cadence, idle timeout
RUNS = [
    ("sluice", "agent", 600), ("sluice", "operator15", 600), ("sluice", "operator30", 600), ("sluice", "agent", 30),
    ("reference", "operator30", 600), ("reference", "agent", 600),
    ("sluice", "agent-dispatch", 600), ("sluice", "operator30-dispatch", 600),
    ("sluice-target-utilization", "operator30", 600), ("sluice-load-factor", "operator30", 600),
    ("static-maximum", "operator30", 600), ("static-maximum", "operator30", 30), ("static-maximum", "operator30", 10), ("static-maximum", "operator30", 5),
    ("static-best", "operator30", 600),
]  # a static size does not depend on the cadence
FLAGS = {"sluice": "", "sluice-target-utilization": " --algorithm target-utilization", "sluice-load-factor": " --algorithm load-factor"}


def oracle_of(path):
    stem = os.path.splitext(os.path.basename(path))[0] + ".json"
    folder = os.path.dirname(os.path.abspath(path))
    for place in (os.environ.get("SLUICE_ORACLES"), os.path.join(folder, "oracle"), os.path.join(folder, "..", "sizing-sim", "oracle"),
                  os.path.join(HERE, "oracle")):
        if place and os.path.exists(os.path.join(place, stem)):
            return sim.load_oracle_file(os.path.join(place, stem))
    return None


class Watched:
    """The policy, with the reference looking over its shoulder."""
    def __init__(self, policy):
        self.policy, self.reference, self.ticks, self.apart = policy, adaptive.Adaptive(), 0, 0

    def __call__(self, o):
        answer, expected = self.policy(o), self.reference(o)["size"]
        self.ticks += 1
        self.apart += abs(answer["size"] - min(max(expected, o["min_size"]), o["max_size"])) > 1
        return answer


def run(job):
    sluice, path, (policy, cadence, idle) = job
    overrides = dict(CADENCES[cadence], server_idle_timeout_s=float(idle))
    oracle = oracle_of(path)
    external = watched = None
    if policy in FLAGS:
        external = sim.External(sluice + " decide" + FLAGS[policy])
        decide = watched = Watched(external) if policy == "sluice" and idle == 600 else external
    elif policy == "reference":
        decide = adaptive.Adaptive()
    else:
        best = (oracle or {}).get("best_static") if policy == "static-best" else None
        if best:
            overrides["init_size"] = best["size"]
        decide = sim.builtin("static", n=best["size"] if best else None)
    result = sim.Sim(path, overrides).run(decide)
    if external:
        external.close()
    row = dict(result, policy=policy, cadence=cadence, idle_timeout_s=idle)
    row.update(ticks=getattr(watched, "ticks", ""), apart=getattr(watched, "apart", ""))
    row.update(oracle_conn_s=oracle["cost_conn_s"] if oracle else "", oracle_floor=oracle["viol_floor"] if oracle else "",
               oracle_budget=oracle["viol_budget"] if oracle else "")
    return {k: "%.9g" % row[k] if isinstance(row[k], float) else row[k] for k in COLUMNS}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--sluice", required=True)
    ap.add_argument("--traces", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--only", default="")
    ap.add_argument("--policies", default="")
    ap.add_argument("--jobs", type=int, default=os.cpu_count())
    a = ap.parse_args()
    paths = sorted(p for p in glob.glob(os.path.join(a.traces, "*.csv")) if any(x in os.path.basename(p) for x in a.only.split(",")))
    runs = [r for r in RUNS if not a.policies or r[0] in a.policies.split(",")]
    if not paths or not runs:
        sys.exit("bench.py: nothing to run: %d traces in %s, %d policies" % (len(paths), a.traces, len(runs)))
    jobs = [(a.sluice, p, r) for r in runs for p in sorted(paths, key=os.path.getsize, reverse=True)]
    rows = []
    order = {r: i for i, r in enumerate(RUNS)}

    def write():
        rows.sort(key=lambda r: (order[(r["policy"], r["cadence"], r["idle_timeout_s"])], r["trace"]))
        with open(a.out, "w", newline="") as f:
            w = csv.DictWriter(f, COLUMNS, lineterminator="\n")
            w.writeheader()
            w.writerows(rows)
    with multiprocessing.Pool(a.jobs) as pool:
        for row in pool.imap_unordered(run, jobs):
            rows.append(row)
            write()  # what was measured is kept, whatever happens to the rest
            print("%d/%d %s %s %s %s" % (len(rows), len(jobs), row["policy"], row["cadence"], row["idle_timeout_s"], row["trace"]), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
