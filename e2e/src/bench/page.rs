//! The table of ratios, and the page in `docs/`.

use super::{measure::Measurement, peers::Peer};
use anyhow::{Context, Result};
use std::{fmt::Write as _, path::Path};

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// The heading of the table on standard output.
pub fn heading() -> String {
    format!(
        "{:34} {:>10} {:>24} {:>9} {:>9} {:>9} {:>24}",
        "case", "leno", "CPU by request: envoy", "nginx", "haproxy", "rps", "p99 of envoy's, memory"
    )
}

fn of(rows: &[Measurement], peer: Peer) -> Option<&Measurement> {
    rows.iter().find(|row| row.proxy == peer.name())
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    Some(ours? / theirs.filter(|&value| value > 0.0)?)
}

fn times(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}x"))
}

/// A case as a line: Leno's CPU time, what part of each peer's that is, and the rates, latencies and memory against Envoy's.
pub fn line(case: &str, rows: &[Measurement]) -> String {
    let Some(own) = of(rows, Peer::Leno) else { return format!("{case:34} {:>10}", "-") };
    let cpu = |peer| times(ratio(own.cpu_us_per_request, of(rows, peer).and_then(|row| row.cpu_us_per_request)));
    let envoy = of(rows, Peer::Envoy);
    let memory = ratio(Some(own.rss_bytes as f64), envoy.map(|row| row.rss_bytes as f64));
    format!(
        "{case:34} {:>10} {:>24} {:>9} {:>9} {:>9} {:>14} {:>9}",
        own.cpu_us_per_request.map_or_else(|| "-".to_owned(), |us| format!("{us:.1} us")),
        cpu(Peer::Envoy),
        cpu(Peer::Nginx),
        cpu(Peer::Haproxy),
        times(ratio(own.rps, envoy.and_then(|row| row.rps))),
        times(ratio(own.p99_us, envoy.and_then(|row| row.p99_us))),
        times(memory),
    )
}

fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

/// CPU time by request that is the proxy's own and not the kernel's, in microseconds.
fn own_code(row: &Measurement) -> Option<f64> {
    Some(row.cpu_us_per_request? - row.kernel_us_per_request?)
}

/// The measured part of the page.
fn tables(rows: &[Measurement], versions: &[(Peer, String)], missing: &[String]) -> Result<String> {
    let mut text = String::new();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    writeln!(text, "On {cores} cores, {}.\n", std::env::consts::ARCH)?;
    for (peer, version) in versions {
        // Envoy begins with the path by which it was called, which says nothing to others.
        let version = version.split_once("  version: ").map_or(version.as_str(), |(_, version)| version);
        writeln!(text, "- {}: {}", peer.name(), version.replace('|', "/"))?;
    }
    writeln!(
        text,
        "\n| case | proxy | CPU µs | of Envoy's | kernel µs | own code of Envoy's | requests/s | p50 µs | p99 µs | p99.9 µs | memory MiB | system calls | spread |"
    )?;
    writeln!(text, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    let mut last = "";
    for row in rows {
        let envoy = rows.iter().find(|other| other.case == row.case && other.proxy == Peer::Envoy.name());
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {} | {} |",
            if row.case == last { "" } else { row.case },
            row.proxy,
            figure(row.cpu_us_per_request, 1),
            times(ratio(row.cpu_us_per_request, envoy.and_then(|row| row.cpu_us_per_request))),
            figure(row.kernel_us_per_request, 1),
            times(ratio(own_code(row), envoy.and_then(own_code))),
            figure(row.rps, 0),
            figure(row.p50_us, 0),
            figure(row.p99_us, 0),
            figure(row.p999_us, 0),
            row.rss_bytes as f64 / f64::from(1 << 20),
            figure(row.syscalls_per_request, 1),
            figure(row.spread, 2),
        )?;
        last = row.case;
    }
    for line in missing {
        writeln!(text, "\nNot measured: {line}")?;
    }
    Ok(text)
}

/// Puts the tables between the marks of the page.
///
/// # Errors
/// Where the page is not there or has no marks.
pub fn write(path: &Path, rows: &[Measurement], versions: &[(Peer, String)], missing: &[String]) -> Result<()> {
    let page = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("{} has no {BEGIN}", path.display()))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{} has no {END}", path.display()))?;
    let tables = tables(rows, versions, missing)?;
    Ok(std::fs::write(path, format!("{before}{BEGIN}\n\n{tables}\n{END}{after}"))?)
}
