//! The control thread's side: sums what the workers counted and writes it in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use regex::Regex;
use tokio::sync::mpsc;

use super::counters::Counters;
use super::display::Display;
use super::envoy::Stat;
use super::histogram::{BOUNDS, Summed};
use super::logbuffer::{self, Batch, LogBuffer, MAX_BATCHES};
use super::process::{self, thousandths};
use super::shard::{Published, Shard, Values};

/// The control thread's handle on every worker's metrics and logs. Clones are the same.
#[derive(Clone)]
pub struct Telemetry {
    workers: Arc<[Arc<Published>]>,
    batches: Arc<Mutex<Option<mpsc::Receiver<Batch>>>>,
    counters: Counters,
    display: Arc<Display>,
}

#[derive(Default)]
struct HttpSum {
    requests: u64,
    duration: Summed,
    request_bytes: Summed,
    response_bytes: Summed,
}

#[derive(Default)]
struct TcpSum {
    opened: u64,
    closed: u64,
    sent: u64,
    received: u64,
}

impl Telemetry {
    /// Makes one shard a worker, in order.
    pub fn new(workers: usize) -> (Telemetry, Vec<Shard>) {
        let (sender, batches) = mpsc::channel(MAX_BATCHES * workers.max(1));
        let published: Vec<Arc<Published>> = (0..workers).map(|_| Arc::default()).collect();
        let shards = published.iter().map(|p| Shard::new(p.clone(), LogBuffer::new(sender.clone()))).collect();
        let batches = Arc::new(Mutex::new(Some(batches)));
        let workers = published.into();
        (Telemetry { workers, batches, counters: Counters::default(), display: Arc::default() }, shards)
    }

    /// Tells these numbers as well.
    pub fn telling(self, counters: Counters) -> Self {
        Self { counters, ..self }
    }

    /// Shows statistics as a configuration says.
    pub fn showing(self, display: Arc<Display>) -> Self {
        Self { display, ..self }
    }

    /// How statistics are shown.
    pub fn display(&self) -> &Display {
        &self.display
    }

    /// The numbers that are not the workers' own.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Every worker's share.
    pub(super) fn workers(&self) -> &[Arc<Published>] {
        &self.workers
    }

    /// Writes the workers' access log lines where they belong until the last worker has ended. Meant to be called
    /// once; a second call returns at once.
    pub async fn write_logs(&self) {
        self.write_logs_to(std::io::stdout()).await;
    }

    /// Like [`Telemetry::write_logs`], with another place for standard output.
    pub async fn write_logs_to(&self, out: impl std::io::Write + Send + 'static) {
        let batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(batches) = batches {
            logbuffer::write_batches(batches, out).await;
        }
    }

    /// All metrics of this module and of the process in Prometheus' text format (version 0.0.4).
    pub fn render(&self) -> String {
        let mut out = Exposition::default();
        self.write_traffic(&mut out);
        self.write_stats(&mut out, true, Vec::new(), None);
        process::write(&mut out);
        out.finish()
    }

    /// As [`Self::render`], with Envoy's statistics that are zero, unless `used` is set, and with `more` of them; with a filter only
    /// those of Envoy whose names have a match.
    pub fn render_all(&self, used: bool, more: Vec<Stat>, filter: Option<&Regex>) -> String {
        let mut out = Exposition::default();
        if filter.is_none() {
            self.write_traffic(&mut out);
        }
        self.write_stats(&mut out, used, more, filter);
        if filter.is_none() {
            process::write(&mut out);
        }
        out.finish()
    }

    /// Appends the traffic's metrics: sorted by label text, so that equal counts give equal text.
    pub fn write_traffic(&self, out: &mut Exposition) {
        let mut http: BTreeMap<String, HttpSum> = BTreeMap::new();
        let mut tcp: BTreeMap<String, TcpSum> = BTreeMap::new();
        for worker in self.workers.iter() {
            let series = worker.series.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for series in series {
                match &series.values {
                    Values::Http(_, values) => {
                        let sum = http.entry(series.labels.clone()).or_default();
                        sum.requests += values.requests.get();
                        sum.duration.add(&values.duration);
                        sum.request_bytes.add(&values.request_bytes);
                        sum.response_bytes.add(&values.response_bytes);
                    }
                    Values::Tcp(values) => {
                        let sum = tcp.entry(series.labels.clone()).or_default();
                        sum.opened += values.opened.get();
                        sum.closed += values.closed.get();
                        sum.sent += values.sent.get();
                        sum.received += values.received.get();
                    }
                }
            }
        }
        out.family("istio_requests_total", "counter", "Requests.");
        for (labels, sum) in &http {
            out.sample_text("istio_requests_total", labels, &sum.requests.to_string());
        }
        let histograms: [(&str, &str, fn(&HttpSum) -> &Summed); 3] = [
            ("istio_request_duration_milliseconds", "Duration of requests.", |sum| &sum.duration),
            ("istio_request_bytes", "Size of requests, head and body.", |sum| &sum.request_bytes),
            ("istio_response_bytes", "Size of responses, head and body.", |sum| &sum.response_bytes),
        ];
        for (name, help, of) in histograms {
            out.family(name, "histogram", help);
            for (labels, sum) in &http {
                out.histogram(name, labels, of(sum));
            }
        }
        let counters: [(&str, &str, fn(&TcpSum) -> u64); 4] = [
            ("istio_tcp_connections_opened_total", "TCP connections opened.", |sum| sum.opened),
            ("istio_tcp_connections_closed_total", "TCP connections closed.", |sum| sum.closed),
            ("istio_tcp_sent_bytes_total", "Bytes sent to the client.", |sum| sum.sent),
            ("istio_tcp_received_bytes_total", "Bytes received from the client.", |sum| sum.received),
        ];
        for (name, help, of) in counters {
            out.family(name, "counter", help);
            for (labels, sum) in &tcp {
                // A label set with response flags only ever counts closed connections.
                if of(sum) > 0 || labels.contains("response_flags=\"-\"") {
                    out.sample_text(name, labels, &of(sum).to_string());
                }
            }
        }
        let total = |of: fn(&Published) -> u64| self.workers.iter().map(|worker| of(worker)).sum::<u64>();
        out.family("leno_proxy_metric_overflow_total", "counter", "Records counted without their labels.");
        out.sample("leno_proxy_metric_overflow_total", &[], total(|worker| worker.overflow.get()));
        out.family("leno_proxy_access_log_dropped_lines_total", "counter", "Access log lines lost.");
        out.sample("leno_proxy_access_log_dropped_lines_total", &[], total(|worker| worker.dropped_log_lines.get()));
        out.family("leno_proxy_spans_sent_total", "counter", "Spans that a collector has taken.");
        out.sample("leno_proxy_spans_sent_total", &[], total(|worker| worker.sent_spans.get()));
        out.family("leno_proxy_spans_dropped_total", "counter", "Spans lost.");
        out.sample("leno_proxy_spans_dropped_total", &[], total(|worker| worker.dropped_spans.get()));
        out.family("leno_proxy_workers", "gauge", "Worker threads.");
        out.sample("leno_proxy_workers", &[], self.workers.len() as u64);
    }
}

/// Text in Prometheus' format under construction; others append their own families with it.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Begins a family without a line of help.
    pub fn kind(&mut self, name: &str, kind: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
    }

    /// Adds a sample, escaping label values.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let mut text = String::new();
        for (label, value) in labels {
            super::labels::push_label(&mut text, label, value);
        }
        self.sample_text(name, &text, &value.to_string());
    }

    pub(super) fn sample_text(&mut self, name: &str, labels: &str, value: &str) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    /// Adds a histogram with these labels: what lies below each bound, and how many there are in all.
    pub(super) fn histogram_of(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        (buckets, count): (Vec<(f64, u64)>, u64),
        sum_thousandths: u64,
    ) {
        let mut text = String::new();
        for (label, value) in labels {
            super::labels::push_label(&mut text, label, value);
        }
        let before = if text.is_empty() { String::new() } else { format!("{text},") };
        for (bound, below) in buckets {
            let _ = writeln!(self.0, "{name}_bucket{{{before}le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(self.0, "{name}_bucket{{{before}le=\"+Inf\"}} {count}");
        self.sample_text(&format!("{name}_sum"), &text, &thousandths(sum_thousandths));
        self.sample_text(&format!("{name}_count"), &text, &count.to_string());
    }

    fn histogram(&mut self, name: &str, labels: &str, sum: &Summed) {
        let mut count = 0;
        for (at, bucket) in sum.buckets.iter().enumerate() {
            count += bucket;
            let _ = match BOUNDS.get(at) {
                Some(bound) => writeln!(self.0, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}"),
                None => writeln!(self.0, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}"),
            };
        }
        let _ = writeln!(self.0, "{name}_sum{{{labels}}} {}", thousandths(sum.sum_thousandths));
        let _ = writeln!(self.0, "{name}_count{{{labels}}} {count}");
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::shard::MAX_SERIES;
    use crate::telemetry::*;

    fn record<'a>(
        source: &'a Arc<WorkloadLabels>,
        destination: &'a Arc<WorkloadLabels>,
        service: &'a Arc<ServiceLabels>,
    ) -> RequestRecord<'a> {
        RequestRecord {
            reporter: Reporter::Destination,
            source,
            destination,
            service,
            protocol: RequestProtocol::Http,
            response_code: 200,
            grpc_status: None,
            flags: ResponseFlags::none(),
            security: ConnectionSecurity::MutualTls,
            duration: Duration::from_micros(2500),
            request_bytes: 100,
            response_bytes: 900,
        }
    }

    fn reviews() -> (Arc<WorkloadLabels>, Arc<WorkloadLabels>, Arc<ServiceLabels>) {
        (
            WorkloadLabels::new(
                "front-v1",
                "shop",
                "front",
                "v1",
                "Kubernetes",
                "spiffe://cluster.local/ns/shop/sa/front",
            ),
            WorkloadLabels::new(
                "reviews-v2",
                "shop",
                "reviews",
                "v2",
                "Kubernetes",
                "spiffe://cluster.local/ns/shop/sa/r",
            ),
            ServiceLabels::new("reviews.shop.svc.cluster.local", "reviews", "shop"),
        )
    }

    fn traffic(telemetry: &Telemetry) -> String {
        let mut out = Exposition::default();
        telemetry.write_traffic(&mut out);
        out.finish()
    }

    #[test]
    fn metrics_when_two_workers_count_the_same_labels_then_the_text_has_their_sum() {
        let (telemetry, shards) = Telemetry::new(2);
        for shard in shards {
            // New objects with equal text, as after a change of configuration.
            let (source, destination, service) = reviews();
            shard.record_request(&record(&source, &destination, &service));
            let (source, destination, service) = reviews();
            shard.record_request(&record(&source, &destination, &service));
            let grpc = RequestRecord {
                protocol: RequestProtocol::Grpc,
                grpc_status: Some(14),
                flags: ResponseFlags::NO_HEALTHY_UPSTREAM,
                reporter: Reporter::Source,
                security: ConnectionSecurity::Unknown,
                ..record(&source, &destination, &service)
            };
            shard.record_request(&grpc);
            let shard = Rc::new(shard);
            let connection = shard.tcp_connection(&TcpRecord {
                reporter: Reporter::Source,
                source: &source,
                destination: &destination,
                service: &service,
                security: ConnectionSecurity::Unknown,
            });
            connection.received(10);
            connection.sent(20);
        }
        insta::assert_snapshot!("metrics", traffic(&telemetry));
    }

    #[test]
    fn metrics_when_there_are_too_many_label_sets_then_the_rest_is_counted_as_overflow() {
        let (telemetry, mut shards) = Telemetry::new(1);
        let shard = shards.remove(0);
        let (_, destination, service) = reviews();
        for n in 0..MAX_SERIES + 5 {
            let source = WorkloadLabels::new(&format!("w{n}"), "", "", "", "", "");
            shard.record_request(&record(&source, &destination, &service));
        }
        let text = traffic(&telemetry);
        assert!(text.contains("leno_proxy_metric_overflow_total 5"), "{text:.400}");
        let total: u64 = text
            .lines()
            .filter(|line| line.starts_with("istio_requests_total"))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum();
        assert_eq!(total, MAX_SERIES as u64 + 5);
    }

    #[test]
    fn metrics_when_nothing_was_counted_for_long_then_they_go() {
        let (telemetry, mut shards) = Telemetry::new(1);
        let shard = shards.remove(0);
        let (source, destination, service) = reviews();
        let idle = WorkloadLabels::new("idle", "", "", "", "", "");
        shard.record_request(&record(&source, &destination, &service));
        shard.record_request(&record(&idle, &destination, &service));
        let now = std::time::Instant::now();
        shard.expire(now);
        shard.record_request(&record(&source, &destination, &service));
        shard.expire(now + shard::EXPIRY / 2);
        shard.expire(now + shard::EXPIRY);
        let text = traffic(&telemetry);
        assert!(text.contains("front-v1") && !text.contains("\"idle\""), "{text}");
        shard.record_request(&record(&source, &destination, &service));
        let text = traffic(&telemetry);
        let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap_or_default();
        assert!(line.ends_with(" 3"), "what goes on is counted on: {line}");
    }

    #[test]
    fn process_metrics_when_rendered_then_memory_and_cpu_are_there() {
        let text = Telemetry::new(1).0.render();
        for name in ["process_resident_memory_bytes ", "process_cpu_seconds_total ", "process_open_fds "] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} missing");
        }
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn access_log_when_a_worker_logs_then_the_writer_writes_its_lines() {
        let (telemetry, mut shards) = Telemetry::new(1);
        let shard = Rc::new(shards.remove(0));
        let sink = Sink::default();
        let format = LogFormat::compile("%REQ(:PATH)%\n").unwrap();
        let stdout = Arc::new(LogSink::Stdout);
        let local = tokio::task::LocalSet::new();
        let task = local.spawn_local(shard.clone().flush_logs());
        let write = {
            let (telemetry, sink) = (telemetry.clone(), sink.clone());
            tokio::spawn(async move { telemetry.write_logs_to(sink).await })
        };
        let entry =
            LogEntry { path: Some("/a"), ..LogEntry::new(std::time::SystemTime::now(), Duration::ZERO, (), ()) };
        shard.log(&stdout, &format, &entry);
        shard.log(&stdout, &format, &entry);
        local
            .run_until(async {
                tokio::time::timeout(Duration::from_secs(5), async {
                    while sink.0.lock().unwrap().as_slice() != b"/a\n/a\n" {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                })
                .await
                .expect("the lines were not written within 5 s");
            })
            .await;
        task.abort();
        drop((local, shard, task));
        tokio::time::timeout(Duration::from_secs(5), write)
            .await
            .expect("the writer did not end with its worker")
            .unwrap();
    }

    #[test]
    fn access_log_when_nobody_writes_then_lines_are_dropped_and_counted() {
        let (telemetry, mut shards) = Telemetry::new(1);
        let shard = shards.remove(0);
        let format = LogFormat::compile("%REQ(:PATH)%\n").unwrap();
        let stdout = Arc::new(LogSink::Stdout);
        let path = "x".repeat(2000);
        let entry =
            LogEntry { path: Some(&path), ..LogEntry::new(std::time::SystemTime::now(), Duration::ZERO, (), ()) };
        for _ in 0..1000 {
            shard.log(&stdout, &format, &entry);
        }
        let text = traffic(&telemetry);
        let dropped = text.lines().find(|line| line.starts_with("leno_proxy_access_log_dropped")).unwrap_or_default();
        let dropped: u64 = dropped.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_default();
        assert!(dropped > 600 && dropped < 1000, "{dropped}");
    }
}
