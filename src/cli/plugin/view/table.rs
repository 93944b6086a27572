//! A table as kubectl prints one: headers in capitals, columns three spaces apart.

/// Spaces between two columns.
const GAP: usize = 3;
/// What stands where there is nothing.
pub const ABSENT: &str = "-";

/// Headers and rows.
#[derive(Clone, Debug, Default)]
pub struct TextTable {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table with these headers and no rows.
    pub fn new(headers: &[&str]) -> Self {
        Self { headers: headers.iter().map(|header| (*header).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How wide each column is, in characters.
    pub fn widths(&self) -> Vec<usize> {
        let all = || self.rows.iter().chain([&self.headers]);
        let columns = all().map(Vec::len).max().unwrap_or_default();
        (0..columns).map(|at| all().filter_map(|row| row.get(at)).map(|cell| width(cell)).max().unwrap_or(0)).collect()
    }

    /// Headers and rows, one line each, with its line break.
    pub fn text(&self) -> String {
        let widths = self.widths();
        self.rows.iter().fold(line(&self.headers, &widths), |text, row| text + &line(row, &widths))
    }
}

/// One row of a table whose columns are so wide, with its line break.
pub fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (at, cell) in cells.iter().enumerate() {
        line.push_str(cell);
        if at + 1 < cells.len() {
            let wanted = widths.get(at).copied().unwrap_or_default();
            line.extend(std::iter::repeat_n(' ', wanted.saturating_sub(width(cell)) + GAP));
        }
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// A value, or what stands where there is none.
pub fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| ABSENT.to_owned(), |value| value.to_string())
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_their_last() {
        let mut table = TextTable::new(&["NAME", "SIZE"]);
        table.push(vec!["├─ shöp".to_owned(), cell(Some(3))]);
        table.push(vec!["b".to_owned(), cell(None::<u32>)]);
        table.push(vec!["c".to_owned(), String::new()]);
        assert_eq!(table.text(), "NAME      SIZE\n├─ shöp   3\nb         -\nc\n");
    }
}
