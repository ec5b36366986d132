//! The established load generators: what they are told, and what their words mean.

use super::client::Samples;
use anyhow::{Context, Result, ensure};
use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

fn run(core: Option<usize>, program: &str, arguments: &[String]) -> Result<String> {
    let mut command = match core {
        Some(core) => {
            let mut tied = Command::new("taskset");
            tied.args(["-c", &core.to_string(), program]);
            tied
        }
        None => Command::new(program),
    };
    let output = command.args(arguments).stdin(Stdio::null()).output().with_context(|| format!("no {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}\n{text}{errors}", output.status);
    Ok(text)
}

/// What wrk says.
#[derive(Debug, PartialEq)]
pub struct Wrk {
    /// Requests that were answered.
    pub done: u64,
    /// Answers that were not 2xx, and errors of sockets.
    pub failed: u64,
    /// Requests a second.
    pub rate: f64,
    /// Microseconds.
    pub p50: f64,
    /// Microseconds.
    pub p99: f64,
}

/// As many requests as can be over so many HTTP/1.1 connections; `closing` opens one for every request.
///
/// # Errors
/// Where wrk is not there or says something else.
pub fn wrk(
    core: Option<usize>,
    scheme: &str,
    to: SocketAddr,
    path: &str,
    connections: usize,
    seconds: u64,
    closing: bool,
) -> Result<Wrk> {
    let mut arguments =
        vec!["-t1".to_owned(), format!("-c{connections}"), format!("-d{seconds}s"), "--latency".to_owned()];
    if closing {
        arguments.extend(["-H".to_owned(), "Connection: close".to_owned()]);
    }
    arguments.push(format!("{scheme}://{to}{path}"));
    parse_wrk(&run(core, "wrk", &arguments)?)
}

fn parse_wrk(text: &str) -> Result<Wrk> {
    let after = |start: &str| text.lines().find_map(|line| line.trim().strip_prefix(start)).map(str::trim);
    let time = |name: &str| after(name).and_then(microseconds).with_context(|| format!("wrk tells no {name}:\n{text}"));
    let done = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    let errors = after("Socket errors:").unwrap_or_default();
    let sockets: u64 = errors.split(',').filter_map(|part| part.split_whitespace().last()?.parse::<u64>().ok()).sum();
    let other: u64 = after("Non-2xx or 3xx responses:").and_then(|count| count.parse().ok()).unwrap_or_default();
    Ok(Wrk {
        done: done.with_context(|| format!("wrk tells no count:\n{text}"))?,
        failed: sockets + other,
        rate: after("Requests/sec:").and_then(|rate| rate.parse().ok()).context("wrk tells no rate")?,
        p50: time("50%")?,
        p99: time("99%")?,
    })
}

/// wrk's times: `12.34us`, `1.20ms`, `1.02s`.
fn microseconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return number.parse::<f64>().ok().map(|number| number * factor);
        }
    }
    None
}

/// Requests of the run that finds the rate.
const FIRST: u64 = 1000;
/// The most requests of a run.
const MOST: f64 = 2e6;

/// HTTP/2 load.
pub struct H2load<'a> {
    /// The core that it is tied to.
    pub core: Option<usize>,
    /// The proxy.
    pub to: SocketAddr,
    /// The path.
    pub path: &'a str,
    /// Connections.
    pub connections: usize,
    /// Streams on each at a time.
    pub streams: usize,
    /// Requests a second altogether; none for as many as can be.
    pub rate: Option<f64>,
    /// The file that makes the body of a gRPC request.
    pub message: Option<&'a Path>,
    /// The file for its log.
    pub log: &'a Path,
}

impl H2load<'_> {
    /// Sends for about so long. The count comes from a short run before it, which counts too: h2load's own limit of time
    /// now and then ends without a request.
    ///
    /// # Errors
    /// Where h2load is not there or nothing succeeds.
    pub fn run(&self, time: Duration) -> Result<Samples> {
        if let Some(rate) = self.rate {
            return self.send((rate * time.as_secs_f64()) as u64);
        }
        let first = self.send(FIRST)?;
        let left = time.as_secs_f64() - first.seconds;
        if left <= 0.0 {
            return Ok(first);
        }
        let seconds = first.seconds;
        let second = self.send((first.rate() * left).clamp(FIRST as f64, MOST) as u64)?;
        let seconds = seconds + second.seconds;
        Ok(Samples { seconds, ..Samples::sum([first, second]) })
    }

    fn send(&self, count: u64) -> Result<Samples> {
        if self.log.exists() {
            std::fs::remove_file(self.log)?;
        }
        let mut arguments = vec![
            "-t1".to_owned(),
            format!("-c{}", self.connections),
            format!("-m{}", self.streams),
            format!("-n{}", count.max(self.connections as u64)),
            format!("--log-file={}", self.log.display()),
        ];
        if let Some(rate) = self.rate {
            arguments.push(format!("--rps={:.2}", rate / self.connections as f64));
        }
        if let Some(message) = self.message {
            arguments.extend([
                format!("-d{}", message.display()),
                "-Hcontent-type: application/grpc".to_owned(),
                "-Hte: trailers".to_owned(),
            ]);
        }
        arguments.push(format!("http://{}{}", self.to, self.path));
        let words = run(self.core, "h2load", &arguments)?;
        let samples = parse_log(&std::fs::read_to_string(self.log).unwrap_or_default());
        ensure!(samples.done > 0, "h2load: no request succeeded:\n{words}");
        Ok(samples)
    }
}

/// Lines of start, status and microseconds.
fn parse_log(text: &str) -> Samples {
    let mut samples = Samples::default();
    let (mut begin, mut end) = (u64::MAX, 0);
    for line in text.lines() {
        let mut columns = line.split('\t');
        let start: u64 = columns.next().and_then(|start| start.parse().ok()).unwrap_or_default();
        let (status, took) = (columns.next(), columns.next().and_then(|took| took.parse().ok()));
        match (status, took) {
            (Some("200"), Some(took)) => {
                samples.done += 1;
                samples.latencies.push(took);
                begin = begin.min(start);
                end = end.max(start + u64::from(took));
            }
            _ => samples.failed += 1,
        }
    }
    samples.latencies.sort_unstable();
    samples.seconds = end.saturating_sub(begin) as f64 / 1e6;
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_wrk_when_it_has_finished_then_its_figures() {
        let text = "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Latency Distribution\n     \
                    50%  412.00us\n     75%    0.90ms\n     90%    1.00ms\n     99%    1.52ms\n  12345 requests in 2.00s, \
                    13.0MB read\n  Socket errors: connect 0, read 3, write 0, timeout 1\n  Non-2xx or 3xx responses: \
                    2\nRequests/sec:   6172.10\nTransfer/sec:      6.1MB\n";
        let wrk = parse_wrk(text).unwrap();
        assert_eq!(wrk, Wrk { done: 12345, failed: 6, rate: 6172.1, p50: 412.0, p99: 1520.0 });
    }

    #[test]
    fn parse_log_when_some_failed_then_they_are_counted_apart() {
        let samples = parse_log("1\t200\t30\n2\t503\t10\n3\t200\t20\n");
        assert_eq!((samples.done, samples.failed, samples.seconds), (2, 1, 0.000_030));
        assert_eq!(samples.latencies, [20, 30]);
    }
}
