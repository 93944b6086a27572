//! PURE: the few statistics that the figures are made of.

/// The `q`-quantile (0 to 1) by linear interpolation between the order statistics; NaN of nothing.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let mut below = 0;
    // positions are counted, not converted: there are few samples
    while below < last && ((below + 1) as f64) <= q * last as f64 {
        below += 1;
    }
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (q * last as f64 - below as f64)
}

/// The middle value; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The column of a CSV text as numbers, of the rows that `keep` keeps.
///
/// A column that is missing or not a number is an error: it names the line.
pub fn column(csv: &str, name: &str, keep: impl Fn(&Row<'_>) -> bool) -> Result<Vec<f64>, String> {
    rows(csv)?.iter().filter(|row| keep(row)).map(|row| row.number(name)).collect()
}

/// One row of a CSV text with its header. No field is quoted: samples are numbers and plain words.
pub struct Row<'a> {
    header: Vec<&'a str>,
    fields: Vec<&'a str>,
    line: usize,
}

impl<'a> Row<'a> {
    /// A field.
    pub fn text(&self, name: &str) -> Result<&'a str, String> {
        let index = self.header.iter().position(|column| *column == name);
        index
            .and_then(|index| self.fields.get(index).copied())
            .ok_or_else(|| format!("samples, line {}: no column {name}", self.line))
    }

    /// A field that is a number.
    pub fn number(&self, name: &str) -> Result<f64, String> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("samples, line {}: {name} is {text:?}, not a number", self.line))
    }

    /// Whether a field has this value.
    pub fn is(&self, name: &str, value: &str) -> bool {
        self.text(name) == Ok(value)
    }
}

/// The rows of a CSV text, its first line being the header.
pub fn rows(csv: &str) -> Result<Vec<Row<'_>>, String> {
    let mut lines = csv.lines().enumerate();
    let (_, header) = lines.next().ok_or("no samples")?;
    let header: Vec<&str> = header.split(',').collect();
    Ok(lines
        .map(|(line, text)| Row { header: header.clone(), fields: text.split(',').collect(), line: line + 1 })
        .collect())
}
