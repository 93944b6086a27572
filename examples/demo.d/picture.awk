# Draws the series of a demo as SVG. Input: CSV with the columns time (Unix seconds), series, value.
# Variable phases: "SECONDS=NAME SECONDS=NAME ...", where the background changes.
BEGIN {
  FS = ","
  width = 1000; height = 420; left = 50; right = 110; top = 30; bottom = 40
  split("share limit held target demand waiting leaked", order, " ")
  colour["share"] = "#b9c6d2"; colour["limit"] = "#1f77b4"; colour["held"] = "#17becf"; colour["target"] = "#2ca02c"
  colour["demand"] = "#ff7f0e"; colour["waiting"] = "#d62728"; colour["leaked"] = "#9467bd"
  # sizes hold until the next sample, loads are measured
  steps["share"] = steps["limit"] = steps["target"] = 1
}
NR > 1 && NF == 3 {
  if (!from || $1 < from) from = $1
  if ($1 > to) to = $1
  if ($3 > most) most = $3
  count[$2]++
  time[$2, count[$2]] = $1
  value[$2, count[$2]] = $3
}
function x(seconds) { return left + (seconds - from) / (to - from) * (width - left - right) }
function y(connections) { return height - bottom - connections / most * (height - top - bottom) }
END {
  if (to <= from) { print "picture.awk: no data" > "/dev/stderr"; exit 1 }
  grid = most > 50 ? 10 : most > 20 ? 5 : 2
  most = (int(most / grid) + 1) * grid
  printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, height
  printf "<title>Server connections of pool shop during the demo</title>\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height
  parts = split(phases, phase, " ")
  for (i = 1; i <= parts; i++) {
    split(phase[i], this, "="); begin = this[1] < from ? from : this[1]; end = to
    if (i < parts) { split(phase[i + 1], next_, "="); end = next_[1] }
    printf "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/><text x=\"%.1f\" y=\"%d\" fill=\"#555\">%s</text>\n", \
      x(begin), top, x(end) - x(begin), height - top - bottom, i % 2 ? "#f7f7f7" : "#ececec", x(begin) + 4, top - 8, this[2]
  }
  for (n = 0; n <= most; n += grid)
    printf "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" fill=\"#555\">%d</text>\n", \
      left, width - right, y(n), y(n), left - 6, y(n) + 4, n
  for (s = 0; s <= to - from; s += 30)
    printf "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"#555\">%d:%02d</text>\n", x(from + s), height - bottom + 18, int(s / 60), s % 60
  printf "<text x=\"%d\" y=\"%d\" fill=\"#555\">server connections over time (minutes)</text>\n", left, height - 6
  for (o = 1; o <= 7; o++) {
    name = order[o]
    if (!count[name]) continue
    line = ""
    for (i = 1; i <= count[name]; i++) {
      if (i > 1 && name in steps) line = line sprintf(" %.1f,%.1f", x(time[name, i]), y(value[name, i - 1]))
      line = line sprintf(" %.1f,%.1f", x(time[name, i]), y(value[name, i]))
    }
    printf "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" points=\"%s\"/>\n", colour[name], name == "target" ? 2.5 : 1.5, line
    printf "<line x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\" stroke=\"%s\" stroke-width=\"3\"/><text x=\"%d\" y=\"%d\">%s</text>\n", \
      width - right + 10, width - right + 30, top + o * 20, top + o * 20, colour[name], width - right + 36, top + o * 20 + 4, name
  }
  print "</svg>"
}
