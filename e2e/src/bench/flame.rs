//! Where the time goes: a flame graph of our proxy under load.

use super::{
    backend,
    cases::{CASES, Load},
    measure::{Bench, OTHER_CORE},
    peers::Peer,
};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

/// What to look at.
#[derive(Debug, clap::Args)]
pub struct Flame {
    /// The program `leno-proxy`, with symbols and frame pointers.
    #[arg(long, value_name = "FILE")]
    pub leno: PathBuf,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// The case of the benchmark whose load it has.
    #[arg(long, default_value = "http1-1k-c32", value_name = "NAME")]
    pub case: String,
    /// Where the picture goes; the folded stacks go beside it.
    #[arg(long, default_value = "target/bench/flame.svg", value_name = "FILE")]
    pub out: PathBuf,
}

/// Draws it.
///
/// # Errors
/// Where perf is not there or may not look, or there is no such case.
pub fn flamegraph(options: &Flame) -> Result<bool> {
    let loaded = |load| !matches!(load, Load::Nothing | Load::Idle(_));
    let case = CASES.iter().find(|case| case.name == options.case && loaded(case.load)).with_context(|| {
        let names: Vec<&str> = CASES.iter().filter(|case| loaded(case.load)).map(|case| case.name).collect();
        format!("--case {}: there is no such case with a load; there are {}", options.case, names.join(", "))
    })?;
    let folder = tempfile::Builder::new().prefix("leno-flame-").tempdir()?;
    let (programs, pki) = super::programs(&options.leno, Some(&options.leno), folder.path())?;
    let time = Duration::from_secs(options.seconds) + Duration::from_secs(1);
    let bench = Bench { programs, backend: backend::start(OTHER_CORE)?, pki, time, calls: false };
    let running = bench.start(case, Peer::Leno)?.context("it cannot do that")?;
    let (to, pids) = (running.listen, running.pids());
    let data = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| bench.load(case, to, None, time));
        thread::sleep(Duration::from_millis(500));
        let data = folder.path().join("perf.data");
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let mut record = Command::new("perf");
        record.args(["record", "-q", "-F", "997", "-e", "cpu-clock", "-g", "-p", &pids.join(","), "-o"]).arg(&data);
        record.args(["--", "sleep", &options.seconds.to_string()]);
        let output = record.stdin(Stdio::null()).output().context("perf (Debian: linux-perf) is not there")?;
        ensure!(output.status.success(), "perf record: {}", String::from_utf8_lossy(&output.stderr));
        load.join().map_err(|_| anyhow::anyhow!("the load ended"))??;
        Ok(data)
    })?;
    let script =
        Command::new("perf").args(["script", "-F", "ip,sym", "-i"]).arg(&data).stdin(Stdio::null()).output()?;
    ensure!(script.status.success(), "perf script: {}", String::from_utf8_lossy(&script.stderr));
    let folded = fold(&String::from_utf8_lossy(&script.stdout));
    ensure!(!folded.is_empty(), "perf saw nothing");
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let lines: Vec<String> = folded.iter().map(|(stack, count)| format!("{stack} {count}")).collect();
    std::fs::write(options.out.with_extension("folded"), lines.join("\n"))?;
    std::fs::write(&options.out, draw(&folded)?)?;
    println!("{}", options.out.display());
    for (name, share) in own_time(&folded).into_iter().take(25) {
        println!("{:5.1} %  {name}", share * 100.0);
    }
    Ok(true)
}

/// perf's stacks (a blank line between them, the innermost first), counted.
fn fold(script: &str) -> BTreeMap<String, u64> {
    let mut folded = BTreeMap::new();
    for stack in script.split("\n\n") {
        let mut frames: Vec<&str> = stack
            .lines()
            .filter_map(|line| line.trim().split_once(' ').map(|(_, symbol)| symbol.trim()))
            .filter(|symbol| !symbol.is_empty())
            .collect();
        if !frames.is_empty() {
            frames.reverse();
            let names: Vec<String> = frames.iter().map(|name| name.replace(';', ":")).collect();
            *folded.entry(names.join(";")).or_default() += 1;
        }
    }
    folded
}

/// What functions use themselves, most first.
fn own_time(folded: &BTreeMap<String, u64>) -> Vec<(String, f64)> {
    let total: u64 = folded.values().sum();
    let mut own: BTreeMap<&str, u64> = BTreeMap::new();
    for (stack, count) in folded {
        *own.entry(stack.rsplit(';').next().unwrap_or_default()).or_default() += count;
    }
    let mut own: Vec<(String, f64)> =
        own.into_iter().map(|(name, count)| (name.to_owned(), count as f64 / total.max(1) as f64)).collect();
    own.sort_by(|a, b| b.1.total_cmp(&a.1));
    own
}

#[derive(Default)]
struct Node {
    count: u64,
    children: BTreeMap<String, Node>,
}

const WIDTH: f64 = 1400.0;
const HEIGHT: f64 = 16.0;

fn draw(folded: &BTreeMap<String, u64>) -> Result<String> {
    let mut root = Node::default();
    let mut depth = 1;
    for (stack, count) in folded {
        root.count += count;
        let mut node = &mut root;
        for (level, name) in stack.split(';').enumerate() {
            node = node.children.entry(name.to_owned()).or_default();
            node.count += count;
            depth = depth.max(level + 2);
        }
    }
    let high = depth as f64 * HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{high}\" font-family=\"monospace\" \
         font-size=\"11\">\n"
    );
    paint(&mut svg, "all", &root, 0.0, high - HEIGHT, WIDTH / root.count.max(1) as f64, root.count)?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn paint(svg: &mut String, name: &str, node: &Node, x: f64, y: f64, scale: f64, total: u64) -> Result<()> {
    let width = node.count as f64 * scale;
    if width < 0.5 {
        return Ok(());
    }
    let escaped = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let hue = name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte))) % 50;
    let share = node.count as f64 * 100.0 / total.max(1) as f64;
    let fits = (width / 7.0) as usize;
    let short: String = if fits > 3 { name.chars().take(fits - 1).collect() } else { String::new() };
    let short = short.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    writeln!(
        svg,
        "<g><title>{escaped} {share:.1} %</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"15\" \
         fill=\"hsl({hue},80%,65%)\"/><text x=\"{:.1}\" y=\"{:.1}\">{short}</text></g>",
        x + 2.0,
        y + 11.5
    )?;
    let mut left = x;
    for (name, child) in &node.children {
        paint(svg, name, child, left, y - HEIGHT, scale, total)?;
        left += child.count as f64 * scale;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fold_when_stacks_repeat_then_they_are_counted_from_the_outside_in() {
        let script = "    1 inner\n    2 outer\n\n    1 inner\n    2 outer\n\n    3 outer\n\n";
        let folded = fold(script);
        assert_eq!(folded.get("outer;inner"), Some(&2));
        assert_eq!(own_time(&folded)[0].0, "inner");
        assert!(draw(&folded).unwrap().contains("<title>inner 66.7 %</title>"));
    }
}
