//! Constant loads of every kind, for as long as the process runs: what upgrades are tested under. What they counted is told over
//! HTTP at any time, so that whoever started them may be away meanwhile.
//!
//! Requests come at a constant rate whatever the answers take (an open loop). A lane that has [`MOST`] under way counts those
//! that it cannot send as failed.

use crate::{
    Failure,
    client::{Asker, Protocol, Target},
    net::{Connector, host_port},
    ratings::shop::{FollowRequest, ratings_client::RatingsClient},
    server,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Requests of a lane under way at once.
const MOST: usize = 512;
/// Failures of a lane that are kept in words.
const WORDS: usize = 40;
/// Different statuses of a lane that are counted apart.
const STATUSES: usize = 32;
/// How long a stream or a long connection may be silent (it says something each second) before it counts as failed.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a new stream or long connection may take to say its first word.
const FIRST_WORD: Duration = Duration::from_secs(15);
/// Between two words on a long connection, and before another one when one could not be had.
const BEAT: Duration = Duration::from_secs(1);

/// Example: `leno-demo load --listen 127.0.0.1:9100 --lane http1:20:http://echo/ --lane tcp-long:4:tcp://inventory:9000`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the figures are told, to whatever request.
    #[arg(long, default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// `KIND:RATE:URL`; may be repeated. Kinds with a rate a second: `http1`, `http1-close` (a connection a request), `http2`,
    /// `grpc`, `tcp` (a connection a request). Kinds with a number that is kept open: `grpc-stream`, `tcp-long`.
    #[arg(long = "lane", required = true)]
    lanes: Vec<Lane>,
}

#[derive(Clone)]
struct Lane {
    kind: Kind,
    rate: f64,
    url: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Http1,
    Http1Close,
    Http2,
    Grpc,
    Tcp,
    GrpcStream,
    TcpLong,
}

impl FromStr for Lane {
    type Err = String;

    fn from_str(text: &str) -> Result<Lane, String> {
        let wrong = || format!("{text} is not KIND:RATE:URL, e.g. http1:20:http://echo/");
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (rate, url) = rest.split_once(':').ok_or_else(wrong)?;
        let kind = match kind {
            "http1" => Kind::Http1,
            "http1-close" => Kind::Http1Close,
            "http2" => Kind::Http2,
            "grpc" => Kind::Grpc,
            "tcp" => Kind::Tcp,
            "grpc-stream" => Kind::GrpcStream,
            "tcp-long" => Kind::TcpLong,
            _ => return Err(wrong()),
        };
        let rate = rate.parse().ok().filter(|rate| (0.01..=10_000.0).contains(rate)).ok_or_else(wrong)?;
        Ok(Lane { kind, rate, url: url.to_owned() })
    }
}

impl Lane {
    fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Http1 => "http1",
            Kind::Http1Close => "http1-close",
            Kind::Http2 => "http2",
            Kind::Grpc => "grpc",
            Kind::Tcp => "tcp",
            Kind::GrpcStream => "grpc-stream",
            Kind::TcpLong => "tcp-long",
        };
        format!("{kind} {}", self.url)
    }
}

/// What a lane has counted since it began.
#[derive(Default, Serialize)]
struct Figures {
    /// Requests; of a stream or a long connection, the openings and the words on it.
    requests: u64,
    /// No answer, a status of 500 and above, silence.
    failed: u64,
    /// Of the failed, those that a proxy says it failed on purpose.
    injected: u64,
    /// Streams and long connections that another side ended, after they had begun.
    ended: u64,
    /// Sum of the times of answered requests, and the longest, microseconds.
    total_us: u64,
    max_us: u64,
    statuses: BTreeMap<String, u64>,
    /// The last few failures and ends: milliseconds since the Unix epoch, and words.
    words: Vec<(u64, String)>,
}

/// A lane's figures, shared by its tasks.
#[derive(Clone, Default)]
struct Book(Arc<Mutex<Figures>>);

impl Book {
    fn write(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn count(&self, status: &str, took: Duration) {
        self.write(|figures| {
            figures.requests += 1;
            let took = took.as_micros() as u64;
            figures.total_us += took;
            figures.max_us = figures.max_us.max(took);
            if figures.statuses.len() < STATUSES || figures.statuses.contains_key(status) {
                *figures.statuses.entry(status.to_owned()).or_default() += 1;
            }
        });
    }

    fn fail(&self, why: &str, injected: bool) {
        self.write(|figures| {
            figures.failed += 1;
            figures.injected += u64::from(injected);
        });
        if !injected {
            self.say(why);
        }
    }

    fn end(&self, why: &str) {
        self.write(|figures| figures.ended += 1);
        self.say(&format!("ended: {why}"));
    }

    fn say(&self, words: &str) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |at| at.as_millis() as u64);
        self.write(|figures| {
            if figures.words.len() >= WORDS {
                figures.words.remove(0);
            }
            figures.words.push((at, words.chars().take(300).collect()));
        });
    }
}

/// Runs until SIGTERM.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let mut books = Vec::new();
    for lane in args.lanes {
        let book = Book::default();
        books.push((lane.name(), book.clone()));
        match lane.kind {
            Kind::GrpcStream | Kind::TcpLong => {
                let connector = Connector::new()?;
                for number in 0..lane.rate.round().max(1.0) as u32 {
                    let (lane, book, connector) = (lane.clone(), book.clone(), connector.clone());
                    tokio::spawn(async move {
                        // Not all at once.
                        tokio::time::sleep(BEAT * number / 4).await;
                        keep_open(&lane, &book, &connector).await;
                    });
                }
            }
            _ => {
                let asker = asker(&lane)?;
                tokio::spawn(async move { ask_at_a_rate(&asker, lane.rate, &book).await });
            }
        }
    }
    let books = Arc::new(books);
    let listen = crate::Listen { listen: args.listen, version: "v1".to_owned() };
    server::serve(listen, move |_, _| {
        let books = books.clone();
        async move {
            let figures: Result<BTreeMap<_, _>, _> = books
                .iter()
                .map(|(name, book)| {
                    let figures = book.0.lock().unwrap_or_else(PoisonError::into_inner);
                    serde_json::to_value(&*figures).map(|value| (name.clone(), value))
                })
                .collect();
            Ok(server::json(&serde_json::to_value(figures?)?))
        }
    })
    .await
}

fn asker(lane: &Lane) -> Result<Asker, Failure> {
    let protocol = match lane.kind {
        Kind::Http2 => Protocol::Http2,
        Kind::Grpc => Protocol::Grpc,
        Kind::Tcp => Protocol::Tcp,
        _ => Protocol::Http1,
    };
    let no_keep_alive = lane.kind == Kind::Http1Close;
    Asker::new(&Target { url: lane.url.clone(), headers: Vec::new(), protocol, no_keep_alive })
}

async fn ask_at_a_rate(asker: &Asker, rate: f64, book: &Book) {
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
    // After a pause of the whole machine there is no burst.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let room = Arc::new(tokio::sync::Semaphore::new(MOST));
    loop {
        ticks.tick().await;
        let Ok(place) = room.clone().try_acquire_owned() else {
            book.count("not sent", Duration::ZERO);
            book.fail("not sent: too many are under way", false);
            continue;
        };
        let (asker, book) = (asker.clone(), book.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            let outcome = asker.ask().await;
            book.count(&outcome.status, began.elapsed());
            if outcome.failed {
                let words = format!("after {:.3} s: {}", began.elapsed().as_secs_f64(), outcome.status);
                book.fail(&words, outcome.injected);
            }
            drop(place);
        });
    }
}

/// Keeps one stream or long connection open, and opens another when it has ended.
async fn keep_open(lane: &Lane, book: &Book, connector: &Connector) {
    loop {
        let began = Instant::now();
        let held = match lane.kind {
            Kind::GrpcStream => follow(lane, book, connector).await,
            _ => converse(lane, book, connector).await,
        };
        let after = began.elapsed().as_secs_f64();
        match held {
            Ended::Later(why) => book.end(&format!("after {after:.1} s: {why}")),
            Ended::AtOnce(why) => {
                book.count("not opened", began.elapsed());
                book.fail(&format!("not opened, after {after:.1} s: {why}"), why.contains("fault filter abort"));
                tokio::time::sleep(BEAT).await;
            }
            Ended::Silent => {
                book.count("silent", SILENCE);
                book.fail(&format!("nothing for {SILENCE:?}, after {after:.1} s"), false);
            }
        }
    }
}

/// How a stream or long connection ended.
enum Ended {
    /// Before its first word.
    AtOnce(String),
    /// After it.
    Later(String),
    /// It was open and nothing came.
    Silent,
}

async fn follow(lane: &Lane, book: &Book, connector: &Connector) -> Ended {
    let began = Instant::now();
    let opening = async {
        let channel = tonic::transport::Endpoint::from_shared(lane.url.clone())
            .map_err(|error| error.to_string())?
            .connect_with_connector(connector.clone())
            .await
            .map_err(|error| in_full(&error))?;
        let mut stream = RatingsClient::new(channel)
            .follow(FollowRequest { product: 1, count: 3600 })
            .await
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?
            .into_inner();
        match stream.message().await {
            Ok(Some(_)) => Ok(stream),
            Ok(None) => Err("the stream is empty".to_owned()),
            Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
        }
    };
    let mut stream = match tokio::time::timeout(FIRST_WORD, opening).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Ended::AtOnce(why),
        Err(_) => return Ended::AtOnce(format!("no first word within {FIRST_WORD:?}")),
    };
    book.count("opened", began.elapsed());
    loop {
        match tokio::time::timeout(SILENCE, stream.message()).await {
            Ok(Ok(Some(_))) => book.count("word", Duration::ZERO),
            Ok(Ok(None)) => return Ended::Later("the end of the stream".to_owned()),
            Ok(Err(status)) => return Ended::Later(format!("{:?}: {}", status.code(), status.message())),
            Err(_) => return Ended::Silent,
        }
    }
}

async fn converse(lane: &Lane, book: &Book, connector: &Connector) -> Ended {
    let began = Instant::now();
    let mut line = String::new();
    let opening = async {
        let (host, port) = host_port(lane.url.trim_start_matches("tcp://")).map_err(|error| error.to_string())?;
        let mut stream = BufReader::new(connector.connect(host, port).await.map_err(|error| error.to_string())?);
        stream.read_line(&mut line).await.map_err(|error| error.to_string())?;
        if line.starts_with("220 ") { Ok(stream) } else { Err(format!("greeted with {line:?}")) }
    };
    let mut stream = match tokio::time::timeout(FIRST_WORD, opening).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => return Ended::AtOnce(why),
        Err(_) => return Ended::AtOnce(format!("no greeting within {FIRST_WORD:?}")),
    };
    book.count("opened", began.elapsed());
    for number in 0_u64.. {
        tokio::time::sleep(BEAT).await;
        let began = Instant::now();
        if let Err(error) = stream.write_all(format!("ECHO {number}\n").as_bytes()).await {
            return Ended::Later(error.to_string());
        }
        line.clear();
        match tokio::time::timeout(SILENCE, stream.read_line(&mut line)).await {
            Ok(Ok(0)) => return Ended::Later("the end of the connection".to_owned()),
            Ok(Ok(_)) if line.trim() == number.to_string() => book.count("word", began.elapsed()),
            Ok(Ok(_)) => {
                book.count("wrong", began.elapsed());
                book.fail(&format!("{number} came back as {line:?}"), false);
            }
            Ok(Err(error)) => return Ended::Later(error.to_string()),
            Err(_) => return Ended::Silent,
        }
    }
    Ended::Silent
}

fn in_full(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        words = format!("{words}: {deeper}");
        cause = deeper.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_when_written_as_kind_rate_and_url_then_is_read_and_else_refused() {
        let lane: Lane = "http1-close:2.5:http://echo:8080/".parse().unwrap();
        assert_eq!((lane.rate, lane.name().as_str()), (2.5, "http1-close http://echo:8080/"));
        for wrong in ["http1", "http1:20", "http9:20:http://echo/", "http1:0:http://echo/", "http1:x:http://echo/"] {
            assert!(wrong.parse::<Lane>().is_err(), "{wrong}");
        }
    }
}
