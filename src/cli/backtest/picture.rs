//! A run as a picture: demand, size and waiting clients over time, in plain SVG.

use std::fmt::Write;

use super::{replay::RunMoment, trace::Recorded};

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
/// Columns at most: more points than pixels help nobody.
const COLUMNS: usize = 900;

/// What is drawn.
pub struct Picture<'a> {
    /// Above it.
    pub title: &'a str,
    /// The second line.
    pub subtitle: &'a str,
    /// The run, one moment a second.
    pub course: &'a [RunMoment],
    /// Offered load of every second: busy connections if nobody had to wait.
    pub demand: &'a [f64],
    /// What the pool really had; empty when it was not recorded.
    pub recorded: &'a [Recorded],
}

/// One line of a panel.
struct Curve<'a> {
    name: &'a str,
    colour: &'a str,
    points: Vec<(f64, f64)>,
    filled: bool,
}

/// A part of the picture with its own scale.
struct Panel<'a> {
    top: f64,
    height: f64,
    label: &'a str,
    curves: Vec<Curve<'a>>,
}

impl Picture<'_> {
    /// The picture as SVG.
    pub fn render(&self) -> String {
        let end = self.course.last().map_or(1.0, |moment| moment.t).max(1.0);
        let of =
            |value: fn(&RunMoment) -> f64| columns(end, self.course.iter().map(|moment| (moment.t, value(moment))));
        let demand = columns(end, self.demand.iter().enumerate().map(|(t, demand)| (t as f64, *demand)));
        let mut sizes = vec![
            Curve { name: "busy", colour: "#9ecae1", points: of(|m| m.busy), filled: true },
            Curve { name: "demand", colour: "#e6550d", points: demand, filled: false },
            Curve { name: "size", colour: "#08519c", points: of(|m| m.size), filled: false },
        ];
        let mut waits = vec![Curve { name: "waiting", colour: "#a50f15", points: of(|m| m.waiting), filled: true }];
        if !self.recorded.is_empty() {
            let of = |value: fn(&Recorded) -> f64| {
                columns(end, self.recorded.iter().filter(|r| r.t <= end).map(|r| (r.t, value(r))))
            };
            sizes.push(Curve { name: "size as it was", colour: "#636363", points: of(|r| r.size), filled: false });
            waits.push(Curve { name: "as it was", colour: "#636363", points: of(|r| r.waiting), filled: false });
        }
        let panels = [
            Panel { top: 70.0, height: 280.0, label: "server connections", curves: sizes },
            Panel { top: 390.0, height: 110.0, label: "clients waiting", curves: waits },
        ];
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 545\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"16\" font-weight=\"bold\">{}</text>\n\
             <text x=\"{LEFT}\" y=\"42\" fill=\"#555\">{}</text>\n",
            escaped(self.title),
            escaped(self.subtitle)
        );
        for panel in &panels {
            panel.draw(&mut svg, end);
        }
        let _ = writeln!(svg, "</svg>");
        svg
    }
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String, end: f64) {
        let largest = self.curves.iter().flat_map(|curve| &curve.points).map(|point| point.1).fold(1.0, f64::max);
        let step = nice_step(largest / 4.0);
        let most = (largest / step).ceil() * step;
        let bottom = self.top + self.height;
        let x = |t: f64| LEFT + (WIDTH - LEFT - RIGHT) * t / end;
        let y = |value: f64| bottom - self.height * value / most;
        let mut mark = 0.0;
        while mark <= most + step / 2.0 {
            let at = y(mark);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            );
            mark += step;
        }
        let hours = nice_hours(end);
        let mut t = 0.0;
        while t <= end {
            let at = x(t);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{bottom}\" x2=\"{at:.1}\" y2=\"{}\" stroke=\"#999\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 4.0,
                bottom + 17.0,
                time_label(t)
            );
            t += hours;
        }
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">{}</text>", self.top - 8.0, self.label);
        let width = |curve: &Curve| 8.0 * curve.name.len() as f64 + 22.0;
        let mut legend = WIDTH - RIGHT - self.curves.iter().map(width).sum::<f64>();
        for curve in &self.curves {
            let mut path = String::new();
            for (i, (t, value)) in curve.points.iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, x(*t), y(*value));
            }
            let (first, last) = (curve.points.first().map_or(0.0, |p| p.0), curve.points.last().map_or(0.0, |p| p.0));
            if curve.filled && !path.is_empty() {
                let _ = write!(path, "L{:.1} {bottom:.1}L{:.1} {bottom:.1}Z", x(last), x(first));
                let _ = writeln!(svg, "<path d=\"{path}\" fill=\"{}\" stroke=\"none\"/>", curve.colour);
            } else if !path.is_empty() {
                let _ = writeln!(
                    svg,
                    "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.4\" stroke-linejoin=\"round\"/>",
                    curve.colour
                );
            }
            let _ = writeln!(
                svg,
                "<rect x=\"{legend}\" y=\"{}\" width=\"12\" height=\"6\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>",
                self.top - 15.0,
                curve.colour,
                legend + 16.0,
                self.top - 8.0,
                curve.name
            );
            legend += width(curve);
        }
    }
}

/// The largest value of each column of time: what matters is what did not fit.
fn columns(end: f64, points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut out: Vec<(f64, f64)> = Vec::new();
    let mut column = usize::MAX;
    for (t, value) in points {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
        let here = (t / end * COLUMNS as f64) as usize;
        match out.last_mut() {
            Some(last) if here == column => last.1 = last.1.max(value),
            _ => {
                column = here;
                out.push((t, value));
            }
        }
    }
    out
}

/// 1, 2 or 5 times a power of ten, and at least 1.
fn nice_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.max(1.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

fn nice_hours(end: f64) -> f64 {
    let steps = [60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 21_600.0, 43_200.0, 86_400.0, 604_800.0];
    steps.into_iter().find(|step| end / step <= 12.0).unwrap_or(604_800.0)
}

fn time_label(t: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative
    let minutes = (t / 60.0).round() as u64;
    let (hours, minutes) = (minutes / 60, minutes % 60);
    if hours >= 48 { format!("{}d{:02}h", hours / 24, hours % 24) } else { format!("{hours}:{minutes:02}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
