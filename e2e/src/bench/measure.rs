//! Measures one proxy in one case.

use super::{
    backend::{self, Backend},
    cases::{Case, Load},
    client::{self, Samples},
    peers::{Peer, Programs, Running, Wanted},
    shapes::{Shape, target},
    tools::{H2load, wrk},
    usage,
};
use crate::differential::tls::Pki;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::{net::SocketAddr, sync::Arc, thread, time::Duration};

/// The core of the proxy, where it has one worker.
const PROXY_CORE: usize = 0;
/// The core of the back end and of the client.
pub const OTHER_CORE: usize = 1;
/// How much of Envoy's rate latency is measured at.
const SHARE: f64 = 0.7;

/// A row of `latest.json`. What was not measured is null.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The case.
    pub case: &'static str,
    /// The proxy.
    pub proxy: &'static str,
    /// CPU time of all of the proxy's threads by request, in microseconds.
    pub cpu_us_per_request: Option<f64>,
    /// What of it the kernel used for the proxy; null where too little was used to tell.
    pub kernel_us_per_request: Option<f64>,
    /// Requests a second, as many as there could be.
    pub rps: Option<f64>,
    /// Latency that half of the requests had at most, at [`Measurement::latency_rps`].
    pub p50_us: Option<f64>,
    /// The same of 99 %.
    pub p99_us: Option<f64>,
    /// The same of 99.9 %.
    pub p999_us: Option<f64>,
    /// The fixed rate at which latency was measured; null where it was as many as there could be.
    pub latency_rps: Option<f64>,
    /// Resident memory afterwards.
    pub rss_bytes: u64,
    /// System calls by request.
    pub syscalls_per_request: Option<f64>,
    /// CPU time of the second busiest thread by that of the busiest: 1 is an even spread.
    pub spread: Option<f64>,
    /// The proxy's threads.
    pub workers: usize,
    /// Connections of the client.
    pub connections: usize,
    /// What counts as a request.
    pub unit: &'static str,
    /// Requests that failed.
    pub failed: u64,
}

/// What a run shares.
pub struct Bench {
    /// The programs.
    pub programs: Programs,
    /// The back end.
    pub backend: Backend,
    /// Keys and certificates.
    pub pki: Arc<Pki>,
    /// How long a case is measured.
    pub time: Duration,
    /// Whether system calls are counted.
    pub calls: bool,
}

/// What a load brought.
pub(super) struct Brought {
    done: u64,
    failed: u64,
    rate: f64,
    quantiles: [Option<f64>; 3],
}

impl From<Samples> for Brought {
    fn from(samples: Samples) -> Self {
        let quantiles = [0.5, 0.99, 0.999].map(|part| samples.quantile(part));
        Brought { done: samples.done, failed: samples.failed, rate: samples.rate(), quantiles }
    }
}

impl Bench {
    /// Starts the proxy of a case; none where it cannot do it.
    ///
    /// # Errors
    /// Where it refuses the configuration, or ends.
    pub fn start(&self, case: &Case, peer: Peer) -> Result<Option<Running>> {
        let grpc = matches!(case.load, Load::Unary(..) | Load::Streams(..));
        // nginx speaks HTTP/2 to no back end but of gRPC; its HTTP/1.1 stands in.
        let shape = if peer == Peer::Nginx && !grpc && case.shape == Shape::Http2 { Shape::Http1 } else { case.shape };
        self.programs.start(
            peer,
            Wanted {
                shape: case.shape,
                to: target(shape, &self.backend),
                workers: case.workers,
                grpc,
                core: (case.workers == 1).then_some(PROXY_CORE),
            },
        )
    }

    /// Measures; none where the proxy cannot do it. `envoy` is Envoy's rate in this case, where that is known.
    ///
    /// # Errors
    /// Where the proxy refuses the configuration, answers something else, or ends.
    pub fn measure(&self, case: &Case, peer: Peer, envoy: Option<f64>) -> Result<Option<Measurement>> {
        let Some(mut running) = self.start(case, peer)? else { return Ok(None) };
        let (to, pids) = (running.listen, running.pids());
        self.check(case, to).with_context(|| format!("{} does not answer as it must", peer.name()))?;
        let mut row = Measurement {
            case: case.name,
            proxy: peer.name(),
            cpu_us_per_request: None,
            kernel_us_per_request: None,
            rps: None,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            latency_rps: None,
            rss_bytes: 0,
            syscalls_per_request: None,
            spread: None,
            workers: case.workers,
            connections: case.load.connections(),
            unit: case.load.unit(),
            failed: 0,
        };
        let resident = || pids.iter().map(|&pid| usage::resident(pid)).sum();
        match case.load {
            Load::Nothing => {
                thread::sleep(Duration::from_millis(500));
                row.rss_bytes = resident();
            }
            Load::Idle(count) => {
                let held = self.http1(case, to, "/1k", 1, None, self.time).idle(count)?;
                thread::sleep(Duration::from_millis(500));
                row.rss_bytes = resident();
                drop(held);
            }
            _ => self.under_load(case, &mut row, to, &pids, envoy)?,
        }
        running.alive()?;
        if row.rss_bytes == 0 {
            row.rss_bytes = resident();
        }
        Ok(Some(row))
    }

    fn under_load(
        &self,
        case: &Case,
        row: &mut Measurement,
        to: SocketAddr,
        pids: &[u32],
        envoy: Option<f64>,
    ) -> Result<()> {
        let reading = || pids.iter().map(|&pid| usage::cpu(pid)).collect::<Vec<_>>();
        let modes = || pids.iter().map(|&pid| usage::modes(pid)).sum::<usage::Modes>();
        // Pools fill, buffers grow; it is not counted.
        self.load(case, to, None, Duration::from_millis(300)).ok();
        let (before, modes_before) = (reading(), modes());
        let brought = self.load(case, to, None, self.time)?;
        let (after, modes_after) = (reading(), modes());
        ensure!(brought.done > 0, "nothing was answered");
        let threads: Vec<u64> =
            before.iter().zip(&after).flat_map(|(before, after)| usage::spent(before, after)).collect();
        let cpu = threads.iter().sum::<u64>() as f64 / 1000.0 / brought.done as f64;
        row.cpu_us_per_request = Some(cpu);
        row.kernel_us_per_request = modes_after.since(modes_before).kernel_share().map(|share| cpu * share);
        row.rps = Some(brought.rate);
        row.failed = brought.failed;
        [row.p50_us, row.p99_us, row.p999_us] = brought.quantiles;
        row.rss_bytes = pids.iter().map(|&pid| usage::resident(pid)).sum();
        if case.workers > 1 {
            let mut sorted = threads;
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            row.spread = sorted.first().zip(sorted.get(1)).map(|(&most, &second)| second as f64 / most.max(1) as f64);
        }
        if case.rated {
            let rate = envoy.unwrap_or(brought.rate) * SHARE;
            let steady = self.load(case, to, Some(rate), self.time)?;
            [row.p50_us, row.p99_us, row.p999_us] = steady.quantiles;
            row.latency_rps = Some(rate);
            row.failed += steady.failed;
        }
        if case.rated && self.calls {
            let second = Duration::from_secs(1);
            let counted = thread::scope(|scope| -> Result<Option<f64>> {
                let load = scope.spawn(|| self.load(case, to, None, second * 2));
                thread::sleep(second / 2);
                let calls: Option<u64> =
                    pids.iter().map(|&pid| usage::system_calls(pid, second / pids.len() as u32)).sum();
                let load = load.join().map_err(|_| anyhow::anyhow!("the load ended"))??;
                Ok(calls.map(|calls| calls as f64 * pids.len() as f64 / load.rate))
            })?;
            row.syscalls_per_request = counted;
        }
        Ok(())
    }

    fn http1(
        &self,
        case: &Case,
        to: SocketAddr,
        path: &'static str,
        connections: usize,
        rate: Option<f64>,
        time: Duration,
    ) -> client::Load {
        let tls = match case.shape {
            Shape::Tls => Some((self.pki.clone(), false)),
            Shape::Mtls => Some((self.pki.clone(), true)),
            _ => None,
        };
        client::Load { to, path, connections, tls, rate, time }
    }

    /// Has a proxy do what a case wants of it.
    pub(super) fn load(&self, case: &Case, to: SocketAddr, rate: Option<f64>, time: Duration) -> Result<Brought> {
        let core = Some(OTHER_CORE).filter(|_| thread::available_parallelism().is_ok_and(|cores| cores.get() > 1));
        let log = self.programs.folder.join("h2load.log");
        let h2load = |path, connections, streams, message| {
            let streams = if rate.is_some() { 100 } else { streams };
            H2load { core, to, path, connections, streams, rate, message, log: &log }.run(time).map(Brought::from)
        };
        match case.load {
            // wrk counts in whole seconds, and shows no certificate.
            Load::Http1(path, connections)
                if rate.is_none() && time >= Duration::from_secs(1) && case.shape != Shape::Mtls =>
            {
                let scheme = if case.shape == Shape::Tls { "https" } else { "http" };
                let said = wrk(core, scheme, to, path, connections, time.as_secs(), false)?;
                let quantiles = [Some(said.p50), Some(said.p99), None];
                Ok(Brought { done: said.done, failed: said.failed, rate: said.rate, quantiles })
            }
            Load::Http1(path, connections) => {
                let load = self.http1(case, to, path, connections, rate, time);
                // The client's threads inherit the core of the one that makes them.
                let ran = thread::spawn(move || -> Result<Samples> {
                    usage::pin(OTHER_CORE)?;
                    load.run()
                });
                Ok(ran.join().map_err(|_| anyhow::anyhow!("the client ended"))??.into())
            }
            Load::Handshakes(connections) => {
                let said = wrk(core, "https", to, "/0", connections, time.as_secs().max(1), true)?;
                let quantiles = [Some(said.p50), Some(said.p99), None];
                Ok(Brought { done: said.done, failed: said.failed, rate: said.rate, quantiles })
            }
            Load::Http2(path, connections, streams) => h2load(path, connections, streams, None),
            Load::Unary(connections, streams) => {
                let message = self.programs.folder.join("message");
                std::fs::write(&message, [&[0, 0, 0, 0, 100][..], &[7; 100]].concat())?;
                h2load("/bench.Echo/Unary", connections, streams, Some(&message))
            }
            Load::Streams(connections, each) => {
                let ran = thread::spawn(move || -> Result<Samples> {
                    usage::pin(OTHER_CORE)?;
                    client::streams(to, connections, each, time)
                });
                Ok(ran.join().map_err(|_| anyhow::anyhow!("the client ended"))??.into())
            }
            Load::Bulk(connections) => {
                let ran = thread::spawn(move || -> Result<Samples> {
                    usage::pin(OTHER_CORE)?;
                    client::bulk(to, connections, time)
                });
                Ok(ran.join().map_err(|_| anyhow::anyhow!("the client ended"))??.into())
            }
            Load::Nothing | Load::Idle(_) => anyhow::bail!("there is no load in {}", case.name),
        }
    }

    /// Every proxy must give the answer of the back end.
    fn check(&self, case: &Case, to: SocketAddr) -> Result<()> {
        match case.shape {
            Shape::Tcp => {
                let got = client::bulk(to, 1, Duration::from_millis(500))?;
                ensure!(got.done > 0, "no bytes");
            }
            Shape::Http2 => {
                let (status, content) = client::once2(to, "/1k")?;
                ensure!(status == 200 && content == backend::body(1024), "status {status}, {} bytes", content.len());
            }
            _ => {
                for (path, bytes) in backend::PATHS {
                    let (status, content) = self.http1(case, to, path, 1, None, self.time).once()?;
                    let right = status == 200 && content == backend::body(bytes);
                    ensure!(right, "{path}: status {status}, {} bytes", content.len());
                }
            }
        }
        Ok(())
    }
}
