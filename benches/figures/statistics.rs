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

/// Samples that came together, and are drawn together: each value, and how often it was met.
pub type Block = Vec<(f64, f64)>;

/// The `q`-quantile of all samples of these blocks: the smallest value that so many do not exceed; NaN of nothing.
pub fn block_quantile(blocks: &[Block], q: f64) -> f64 {
    let levels = levels([blocks]);
    let counts = counts(&levels, blocks);
    level(&levels, &sum(&counts, 0..blocks.len(), levels.len()), q)
}

/// A ratio, and between what it lies with a probability of 90 %: it is larger than `low`, and smaller than `high`, with one of 95 %.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    /// Lower bound.
    pub low: f64,
    /// As measured.
    pub measured: f64,
    /// Upper bound.
    pub high: f64,
}

/// The `q`-quantile during something, as a multiple of what it is without: of that is known what it was before and after, and it was
/// somewhere between.
///
/// The percentile bootstrap: blocks are drawn anew, with replacement, of each of the three; and with each draw the place of what is
/// compared with between before and after (on the scale of logarithms). So the interval grows with what a machine drifts meanwhile. The
/// draws are the same for the same samples.
pub fn quantile_ratio(q: f64, during: &[Block], before: &[Block], after: &[Block]) -> Ratio {
    const DRAWS: usize = 2000;
    let levels = levels([during, before, after]);
    let all = [during, before, after].map(|blocks| counts(&levels, blocks));
    let of = |blocks: &[Vec<(usize, f64)>], drawn: &mut dyn Iterator<Item = usize>| {
        level(&levels, &sum(blocks, drawn, levels.len()), q)
    };
    let [now, one, other] = all.each_ref().map(|blocks| of(blocks, &mut (0..blocks.len())));
    let mut random = Random(1);
    let mut ratios: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let [now, one, other] = all.each_ref().map(|blocks| {
                let mut drawn = (0..blocks.len()).map(|_| random.below(blocks.len()));
                of(blocks, &mut drawn)
            });
            now / (other * (one / other).powf(random.next()))
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    Ratio {
        low: ratios[DRAWS / 20],
        measured: now / (other * (one / other).sqrt()),
        high: ratios[DRAWS - 1 - DRAWS / 20],
    }
}

/// All values that there are, in order.
fn levels<const N: usize>(all: [&[Block]; N]) -> Vec<f64> {
    let mut levels: Vec<f64> = all.into_iter().flatten().flatten().map(|(value, _)| *value).collect();
    levels.sort_by(f64::total_cmp);
    levels.dedup();
    levels
}

/// The blocks by the number of each value's level.
fn counts(levels: &[f64], blocks: &[Block]) -> Vec<Vec<(usize, f64)>> {
    let level = |value: &f64| levels.partition_point(|level| level.total_cmp(value).is_lt());
    blocks.iter().map(|block| block.iter().map(|(value, count)| (level(value), *count)).collect()).collect()
}

fn sum(blocks: &[Vec<(usize, f64)>], drawn: impl Iterator<Item = usize>, levels: usize) -> Vec<f64> {
    let mut sum = vec![0.0; levels];
    for (level, count) in drawn.flat_map(|block| &blocks[block]) {
        sum[*level] += count;
    }
    sum
}

fn level(levels: &[f64], counts: &[f64], q: f64) -> f64 {
    let wanted = q * counts.iter().sum::<f64>();
    let mut seen = 0.0;
    let found = levels.iter().zip(counts).find(|(_, count)| {
        seen += **count;
        **count > 0.0 && seen >= wanted
    });
    found.map_or(f64::NAN, |(level, _)| *level)
}

/// Numbers that look random and are the same each time: the generator `SplitMix64` of Steele, Lea and Flood.
struct Random(u64);

impl Random {
    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // as many bits as a number of this kind has
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Below `end`, which is small.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it is not negative, and smaller than an index
    fn below(&mut self, end: usize) -> usize {
        ((self.next() * end as f64) as usize).min(end.saturating_sub(1))
    }
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
