//! Prometheus' text format, as far as tests read it.

use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All samples of a page; lines that are none are left out.
pub fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

/// The sum of the samples of a metric whose labels are at least these.
pub fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Sample| {
        sample.name == name && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|v| v == value))
    };
    samples.iter().filter(fits).map(|sample| sample.value).sum()
}

fn sample(line: &str) -> Option<Sample> {
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ')?;
        return Some(Sample { name: name.to_owned(), labels: BTreeMap::new(), value: number(value)? });
    };
    let (mut labels, mut rest) = (BTreeMap::new(), rest);
    while let Some((label, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (at, '"') => break at + 1,
                (_, other) => value.push(other),
            }
        };
        labels.insert(label.trim_start_matches([',', ' ']).to_owned(), value);
        rest = &after[end..];
        if rest.trim_start_matches(',').starts_with('}') {
            break;
        }
    }
    let value = number(rest.split_once('}')?.1.trim())?;
    Some(Sample { name: name.to_owned(), labels, value })
}

fn number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_when_labels_hold_quotes_and_braces_then_they_are_read_whole() {
        let page = "# HELP a b\na_total{x=\"1\",y=\"a\\\"},b\"} 3\na_total{x=\"1\"} 2\nplain 1.5 123\n";
        let samples = parse(page);
        assert_eq!(samples.len(), 3);
        assert_eq!(samples[0].labels["y"], "a\"},b");
        assert_eq!((sum(&samples, "a_total", &[("x", "1")]), sum(&samples, "plain", &[])), (5.0, 1.5));
    }
}
