//! Figures out of a page of metrics, as an agent serves it.

use crate::contract::metrics;

/// The sum of a series over its labels, of those in a state where one is named; none where the page has none of them.
pub fn figure(page: &str, name: &str, state: Option<&str>) -> Option<f64> {
    let of_series = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once('}')?,
            None => ("", rest),
        };
        let is_meant = state.is_none_or(|state| labels.contains(&format!("{}=\"{state}\"", metrics::STATE)));
        value.strip_prefix(' ').filter(|_| is_meant)?.split(' ').next()?.parse::<f64>().ok()
    };
    page.lines().filter_map(of_series).filter(|value| value.is_finite()).reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_summed_over_its_labels_and_no_longer_name_is_taken_for_it() {
        let page = "# TYPE sluice_limit gauge\nsluice_limit{slot=\"blue\"} 3\nsluice_limit{slot=\"green\"} 2 1764331200\nsluice_limits 99\n\
            sluice_client_connections{state=\"waiting\"} 1\nsluice_client_connections{state=\"active\"} 7\nsluice_share NaN\n";
        assert_eq!(figure(page, metrics::LIMIT, None), Some(5.0));
        assert_eq!(figure(page, metrics::CLIENT_CONNECTIONS, Some("waiting")), Some(1.0));
        assert_eq!(figure(page, metrics::CLIENT_CONNECTIONS, None), Some(8.0));
        assert_eq!(figure(page, metrics::SHARE, None), None, "no number is no figure");
        assert_eq!(figure("", metrics::LIMIT, None), None);
    }
}
