//! A client that counts: how many requests failed, which versions answered, and how long they took.

use crate::{
    Failure, net,
    ratings::shop::{RatingsRequest, ratings_client::RatingsClient},
    server,
};
use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use serde_json::json;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::task::LocalSet;

/// The longest that one request may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(15);

/// What to speak.
#[derive(Clone, Copy, ValueEnum, PartialEq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear text, with prior knowledge.
    Http2,
    /// Unary calls to the ratings service; the URL is `http://HOST:PORT`.
    Grpc,
    /// A connection a request to the inventory; the URL is `tcp://HOST:PORT`.
    Tcp,
}

#[derive(clap::Args, Clone)]
pub(crate) struct Target {
    /// What to ask, e.g. http://reviews:9080/reviews/1
    pub(crate) url: String,
    /// `NAME=VALUE`, sent with every request; may be repeated.
    #[arg(long = "header", short = 'H')]
    pub(crate) headers: Vec<String>,
    #[arg(long, value_enum, default_value = "http1")]
    pub(crate) protocol: Protocol,
    /// A new connection for every request.
    #[arg(long)]
    pub(crate) no_keep_alive: bool,
}

/// Example: `leno-demo client http://reviews:9080/reviews/1 --requests 1000 --concurrency 8 -H x-user=tester`
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// How many requests to send; with `--seconds`, at most so many.
    #[arg(long, default_value_t = 1000)]
    requests: u64,
    /// Sends for so long instead of counting requests.
    #[arg(long)]
    seconds: Option<f64>,
    /// Sends until its standard input is closed instead of counting requests.
    #[arg(long, conflicts_with = "seconds")]
    until_closed: bool,
    /// How many are under way at once.
    #[arg(long, default_value_t = 4)]
    concurrency: usize,
    /// At most so many requests a second, all together.
    #[arg(long)]
    rate: Option<f64>,
    /// Fails when a request failed: for Jobs and init containers.
    #[arg(long)]
    must_succeed: bool,
}

#[derive(clap::Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    target: Target,
    /// Milliseconds between two requests.
    #[arg(long, default_value_t = 5)]
    interval: u64,
    /// Ends by itself after so many seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
}

/// The figures of a run; times in microseconds.
#[derive(Default, Serialize)]
struct Figures {
    requests: u64,
    /// No answer, or a status of 500 and above.
    failed: u64,
    statuses: BTreeMap<String, u64>,
    versions: BTreeMap<String, u64>,
    p50_us: u64,
    p99_us: u64,
    max_us: u64,
    seconds: f64,
    /// The first few failures, in words.
    errors: Vec<String>,
}

/// One answer: its status, in words, whether it is a failure, and the version that gave it.
pub(crate) struct Outcome {
    pub(crate) status: String,
    pub(crate) failed: bool,
    pub(crate) version: String,
    /// A proxy says that it failed the request on purpose.
    pub(crate) injected: bool,
}

/// How often a call that was not sent is repeated.
const UNSENT: usize = 2;
/// What a proxy answers with when it was told to fail a request.
const INJECTED: &str = "fault filter abort";

/// Sends one request after another, in whatever protocol.
#[derive(Clone)]
pub(crate) enum Asker {
    Http(net::HttpClient, String, HeaderMap),
    Grpc(RatingsClient<tonic::transport::Channel>, HeaderMap),
    Tcp(net::Connector, String),
}

impl Asker {
    pub(crate) fn new(target: &Target) -> Result<Asker, Failure> {
        let mut headers = HeaderMap::new();
        for header in &target.headers {
            let (name, value) = header
                .split_once('=')
                .ok_or_else(|| format!("--header {header} is not NAME=VALUE, e.g. x-user=tester"))?;
            headers.insert(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        Ok(match target.protocol {
            Protocol::Http1 | Protocol::Http2 => {
                let client = net::client(target.protocol == Protocol::Http2, !target.no_keep_alive)?;
                if target.no_keep_alive {
                    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                }
                Asker::Http(client, target.url.clone(), headers)
            }
            Protocol::Grpc => {
                let channel = tonic::transport::Endpoint::from_shared(target.url.clone())?
                    .connect_with_connector_lazy(net::Connector::new()?);
                Asker::Grpc(RatingsClient::new(channel), headers)
            }
            Protocol::Tcp => Asker::Tcp(net::Connector::new()?, target.url.trim_start_matches("tcp://").to_owned()),
        })
    }

    pub(crate) async fn ask(&self) -> Outcome {
        let failed = |status| Outcome { status, failed: true, version: String::new(), injected: false };
        match tokio::time::timeout(PATIENCE, self.ask_once()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                let mut words = error.to_string();
                let mut cause = error.source();
                while let Some(deeper) = cause {
                    words = format!("{words}: {deeper}");
                    cause = deeper.source();
                }
                failed(words)
            }
            Err(_) => failed(format!("no answer within {PATIENCE:?}")),
        }
    }

    async fn ask_once(&self) -> Result<Outcome, Failure> {
        match self {
            Asker::Http(client, url, headers) => {
                let mut request = Request::get(url).body(Full::<Bytes>::default())?;
                *request.headers_mut() = headers.clone();
                let answer = client.request(request).await?;
                let version = text(answer.headers().get("x-version"));
                let status = answer.status();
                let body = answer.into_body().collect().await?.to_bytes();
                let injected = status.is_server_error() && body == INJECTED.as_bytes();
                Ok(Outcome { status: status.as_u16().to_string(), failed: status.is_server_error(), version, injected })
            }
            Asker::Grpc(client, headers) => {
                let mut call = tonic::Request::new(RatingsRequest { product: 1 });
                *call.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers.clone());
                let mut answer = client.clone().get(call).await;
                // The connection ended before the call was sent: gRPC has clients repeat such a call by themselves, tonic does not.
                for _ in 0..UNSENT {
                    let unsent = |status: &tonic::Status| {
                        status.code() == tonic::Code::Cancelled && status.message() == "operation was canceled"
                    };
                    if !answer.as_ref().is_err_and(unsent) {
                        break;
                    }
                    let mut call = tonic::Request::new(RatingsRequest { product: 1 });
                    *call.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers.clone());
                    answer = client.clone().get(call).await;
                }
                match answer {
                    Ok(reply) => {
                        let version = reply.into_inner().version;
                        Ok(Outcome { status: "0".into(), failed: false, version, injected: false })
                    }
                    Err(status) => Ok(Outcome {
                        status: format!("grpc {:?}: {}", status.code(), status.message()),
                        failed: true,
                        version: String::new(),
                        injected: status.message() == INJECTED,
                    }),
                }
            }
            Asker::Tcp(connector, address) => {
                let stock = crate::details::in_stock(connector, address).await?;
                Ok(Outcome { status: stock.to_string(), failed: false, version: String::new(), injected: false })
            }
        }
    }
}

fn text(value: Option<&HeaderValue>) -> String {
    value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Sends the requests and prints one line of JSON. Failed requests do not fail the command unless it says so: they are counted.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let asker = Asker::new(&args.target)?;
    let figures = Rc::new(RefCell::new((Figures::default(), Vec::<u64>::new())));
    let left =
        Rc::new(RefCell::new(if args.seconds.is_some() || args.until_closed { u64::MAX } else { args.requests }));
    let start = Instant::now();
    let end = args.seconds.map(|seconds| start + Duration::from_secs_f64(seconds));
    let tasks = LocalSet::new();
    for lane in 0..args.concurrency.clamp(1, 1024) {
        let (asker, figures, left) = (asker.clone(), figures.clone(), left.clone());
        let gap = args.rate.map(|rate| Duration::from_secs_f64(args.concurrency as f64 / rate.max(0.001)));
        let concurrency = args.concurrency.max(1) as u32;
        let mut due = start + gap.unwrap_or_default() * lane as u32 / concurrency;
        tasks.spawn_local(async move {
            loop {
                if let Some(gap) = gap {
                    tokio::time::sleep_until(due.into()).await;
                    due += gap;
                }
                if *left.borrow() == 0 || end.is_some_and(|end| Instant::now() >= end) {
                    return;
                }
                *left.borrow_mut() -= 1;
                let began = Instant::now();
                let outcome = asker.ask().await;
                let took = began.elapsed().as_micros() as u64;
                let (figures, times) = &mut *figures.borrow_mut();
                figures.requests += 1;
                times.push(took);
                if outcome.failed {
                    figures.failed += 1;
                    if figures.errors.len() < 5 {
                        figures.errors.push(format!("{:.3} s: {}", start.elapsed().as_secs_f64(), outcome.status));
                    }
                }
                if figures.statuses.len() < 64 || figures.statuses.contains_key(&outcome.status) {
                    *figures.statuses.entry(outcome.status).or_default() += 1;
                }
                *figures.versions.entry(outcome.version).or_default() += 1;
            }
        });
    }
    tokio::select! {
        () = tasks => {},
        () = server::terminated() => {},
        () = closed(), if args.until_closed => {},
    }
    let (figures, times) = &mut *figures.borrow_mut();
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0);
    (figures.p50_us, figures.p99_us, figures.max_us) = (at(0.5), at(0.99), at(1.0));
    figures.seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&figures)?);
    if args.must_succeed && figures.failed > 0 {
        return Err(format!("{} of {} requests failed", figures.failed, figures.requests).into());
    }
    Ok(())
}

/// Returns at the end of the standard input.
async fn closed() {
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await.ok();
}

/// Prints `{"at_ms": …, "version": …, "status": …}` (milliseconds since the Unix epoch) at the start and at every change.
pub(crate) async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let asker = Asker::new(&args.target)?;
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let mut ticks = tokio::time::interval(Duration::from_millis(args.interval.max(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = None;
    while Instant::now() < end {
        tokio::select! { _ = ticks.tick() => {}, () = server::terminated() => return Ok(()) }
        let outcome = asker.ask().await;
        let now = Some((outcome.version.clone(), outcome.status.clone()));
        if last != now {
            let at = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
            println!("{}", json!({"at_ms": at, "version": outcome.version, "status": outcome.status}));
            last = now;
        }
    }
    Ok(())
}
