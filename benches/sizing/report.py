#!/usr/bin/env python3
"""Turns raw figures into tables:   report.py SAMPLES.csv > figures.md"""
import csv
import math
import sys

NAMES = {
    ("sluice", "agent", "600"): "Adaptive, agent, idle timeout 600 s", ("sluice", "agent", "30"): "Adaptive, agent, 30 s",
    ("sluice", "operator15", "600"): "Adaptive, operator, tick 15 s", ("sluice", "operator30", "600"): "Adaptive, operator, tick 30 s",
    ("sluice", "agent-dispatch", "600"): "Adaptive, agent, 600 s, told what was dispatched",
    ("sluice", "operator30-dispatch", "600"): "Adaptive, operator, tick 30 s, told what was dispatched",
    ("reference", "agent", "600"): "reference, agent, 600 s", ("reference", "operator30", "600"): "reference, operator, tick 30 s",
    ("sluice-target-utilization", "operator30", "600"): "TargetUtilization 70 %, operator, tick 30 s",
    ("sluice-load-factor", "operator30", "600"): "LoadFactor, operator, tick 30 s",
    ("static-maximum", "operator30", "600"): "static maximum, 600 s", ("static-maximum", "operator30", "30"): "static maximum, 30 s",
    ("static-maximum", "operator30", "10"): "static maximum, 10 s", ("static-maximum", "operator30", "5"): "static maximum, 5 s",
    ("static-best", "operator30", "600"): "best static size of each trace, with hindsight",
}


def main():
    with open(sys.argv[1]) as f:
        rows = [r for r in csv.DictReader(f) if r["oracle_conn_s"]]
    groups = {}
    for r in rows:
        groups.setdefault((r["policy"], r["cadence"], r["idle_timeout_s"]), []).append(r)

    def geometric(values):
        values = list(values)
        return math.exp(sum(math.log(max(v, 1e-9)) for v in values) / len(values))

    def hours(r):
        return float(r["duration_s"]) / 3600

    def kept(r):
        return float(r["viol_frac"]) <= float(r["oracle_budget"]) + 1e-12

    def excess(r):
        return 100 * max(0.0, float(r["viol_frac"]) - float(r["oracle_floor"]))
    print("# Sizing: cost, service level and churn\n")
    print("| policy | cost | open | opens/h | SLO met | mean excess % | worst excess % | resizes/h |\n|---|---|---|---|---|---|---|---|")
    for key, name in NAMES.items():
        g = groups.get(key)
        if not g:
            continue
        print("| %s | %.3f | %.3f | %.0f | %d/%d | %.2f | %.1f | %.0f |" % (
            name, geometric(float(r["cost_conn_s"]) / float(r["oracle_conn_s"]) for r in g),
            geometric(float(r["open_conn_s"]) / float(r["oracle_conn_s"]) for r in g),
            geometric(float(r["connections_opened"]) / hours(r) for r in g), sum(map(kept, g)), len(g),
            sum(map(excess, g)) / len(g), max(map(excess, g)), sum(float(r["resizes"]) / hours(r) for r in g) / len(g)))
    watched = [r for r in rows if r["ticks"]]
    ticks, apart = (sum(int(r[k]) for r in watched) for k in ("ticks", "apart"))
    print("\nOn the same observations as the reference, sizes more than 1 apart: %d of %d ticks." % (apart, ticks))
    print("\n| trace | agent: cost | excess % | operator 30 s: cost | excess % | operator 15 s: cost | excess % |\n|---|---|---|---|---|---|---|")
    for trace in sorted({r["trace"] for r in rows}):
        cells = []
        for cadence in ("agent", "operator30", "operator15"):
            for r in groups.get(("sluice", cadence, "600"), []):
                if r["trace"] == trace:
                    cells += ["%.2f" % (float(r["cost_conn_s"]) / float(r["oracle_conn_s"])), "%.2f%s" % (excess(r), "" if kept(r) else " !")]
        print("| %s | %s |" % (trace, " | ".join(cells)))
    print("\n`!`: the service level was missed.")


if __name__ == "__main__":
    main()
