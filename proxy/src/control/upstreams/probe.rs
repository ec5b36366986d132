//! Asks an endpoint whether it is well: by HTTP, by TCP, by gRPC's health protocol.

use super::events::{self, Failed, Step};
use super::machine::{Machine, Outcome, Verdict};
use super::{Event, Shared};
use crate::config::{Care, Cluster, Endpoint, HealthCheck, HttpProbe, Probe, ServiceName, pipe::Shown};
use crate::listen::Stream;
use crate::pool::{Names, establish};
use crate::tls::Alpn;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::{http1, http2};
use hyper::{Request, http::request};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

/// Bytes of an answer that are looked at.
const MAX_ANSWER: usize = 64 * 1024;
/// Who asks, as Envoy says it: back ends look at it.
const USER_AGENT: &str = "Envoy/HC";

/// What an endpoint has said of itself by `x-envoy-immediate-health-check-fail`.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// That it is not well, in an answer to a request; what checks it has not seen that yet.
    pub(super) failed: Cell<bool>,
    /// That it is on its way out: it counts for nothing until it is well again.
    pub(super) leaves: Cell<bool>,
}

/// Checks one endpoint for as long as the task lives.
#[allow(clippy::too_many_arguments)] // what a task owns
pub(super) async fn watch(
    shared: Rc<Shared>,
    cluster: Arc<Cluster>,
    check: Arc<HealthCheck>,
    endpoint: Arc<Endpoint>,
    care: Arc<Care>,
    said: Rc<Said>,
    slots: Rc<Semaphore>,
    task: u64,
) {
    let at_random = |most: Duration| {
        let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(if millis == 0 { 0 } else { shared.rng.below(millis) })
    };
    tokio::time::sleep(at_random(check.initial_jitter)).await;
    let mut machine = Machine::default();
    let mut kept = Kept::default();
    let mut degraded = false;
    let comes_back = cluster.outliers.as_ref().is_some_and(|outliers| outliers.check_brings_back);
    loop {
        let asked = {
            let Ok(_own) = slots.acquire().await else { return };
            let Ok(_slot) = shared.checks.acquire().await else { return };
            check.stats.attempt.add(1);
            let asked = ask(&shared, &cluster, &check, &endpoint, &said, &mut kept);
            tokio::time::timeout(check.timeout, asked).await
        };
        let (outcome, status, late) = match asked {
            Ok(Ok((outcome, status))) => (outcome, status, false),
            Ok(Err(error)) => {
                tracing::debug!(cluster = %cluster.name, address = %Shown(endpoint.address), %error, "no answer to a check");
                (Outcome::Silent, 0, false)
            }
            Err(_) => (Outcome::Silent, 0, true),
        };
        match outcome {
            Outcome::Good | Outcome::Degraded => check.stats.success.add(1),
            Outcome::Bad => check.stats.failure.add(1),
            Outcome::Silent => {
                check.stats.failure.add(1);
                // An answer is none, though it may be looked at like one.
                if status == 0 {
                    check.stats.network_failure.add(1);
                }
            }
        }
        if outcome == Outcome::Silent || !check.reuse_connection {
            kept = Kept::default();
        }
        if said.failed.take() {
            machine.fail();
        }
        let (first, before) = machine.is_well();
        let (verdict, wait) = machine.step(outcome, &check, care.is_used());
        let well = machine.is_well().1;
        if well {
            said.leaves.set(false);
        }
        // Each check that passes may bring back what outlier detection took out.
        let again = (well && comes_back).then_some(match outcome {
            Outcome::Degraded => Verdict::Degraded,
            _ => Verdict::Healthy,
        });
        let verdict = verdict.or(again.filter(|_| matches!(outcome, Outcome::Good | Outcome::Degraded)));
        if let Some(log) = &check.log {
            let step = Step { first, before, after: machine.is_well().1, was_degraded: degraded };
            let told = events::told(log, step, outcome, Failed::new(outcome, status, late));
            events::write(&mut shared.outputs.borrow_mut(), log, (&cluster, &check, &endpoint), &told);
            if matches!(outcome, Outcome::Good | Outcome::Degraded) {
                degraded = outcome == Outcome::Degraded;
            }
        }
        if let Some(verdict) = verdict {
            let checked = Event::Checked { cluster: cluster.id, task, address: endpoint.address, verdict };
            if shared.events.send(checked).await.is_err() {
                return;
            }
        }
        let share = wait.mul_f64(f64::from(check.jitter_percent.min(100)) / 100.0);
        tokio::time::sleep(wait + at_random(check.jitter) + at_random(share)).await;
    }
}

/// A connection that serves further checks.
#[derive(Default)]
struct Kept {
    http1: Option<http1::SendRequest<Full<Bytes>>>,
    http2: Option<http2::SendRequest<Full<Bytes>>>,
    driver: Option<AbortHandle>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

/// How it went, and the status of an answer of HTTP.
async fn ask(
    shared: &Shared,
    cluster: &Cluster,
    check: &HealthCheck,
    endpoint: &Endpoint,
    said: &Said,
    kept: &mut Kept,
) -> io::Result<(Outcome, u16)> {
    let own = endpoint.check.as_deref();
    let mut address = own.and_then(|own| own.address).unwrap_or(endpoint.address);
    // A path has no port that could be another.
    let pipe = endpoint.pipe.as_deref().filter(|_| own.is_none_or(|own| own.address.is_none()));
    if let Some(port) = own.and_then(|own| own.port).filter(|_| pipe.is_none()) {
        address.set_port(port);
    }
    let target = Target { shared, cluster, check, endpoint, said, address, pipe };
    let name = |configured: &Option<Arc<str>>| {
        let named = own.and_then(|own| own.hostname.clone()).or_else(|| configured.clone());
        named.unwrap_or_else(|| cluster.name.clone())
    };
    match &check.probe {
        Probe::Tcp { send, receive } => by_tcp(&target, send, receive).await.map(|outcome| (outcome, 0)),
        Probe::Http(probe) => by_http(&target, probe, &name(&probe.host), kept).await,
        Probe::Grpc { service, authority, headers } => {
            let authority = name(authority);
            by_grpc(&target, service, &authority, headers, kept).await.map(|outcome| (outcome, 0))
        }
    }
}

/// Whom to ask.
struct Target<'a> {
    shared: &'a Shared,
    cluster: &'a Cluster,
    check: &'a HealthCheck,
    endpoint: &'a Endpoint,
    said: &'a Said,
    address: SocketAddr,
    pipe: Option<&'a str>,
}

impl Target<'_> {
    async fn connect(&self, alpn: Alpn) -> io::Result<Stream> {
        let tls = self.check.tls.as_ref().unwrap_or(&self.endpoint.tls);
        let host = self.endpoint.hostname.as_deref();
        let names = Names { host, pipe: self.pipe, ..Names::default() };
        let limit = self.check.timeout;
        let tls = tls.as_deref();
        let made = establish(self.cluster, self.address, tls, names, alpn, limit, &self.shared.tls, None).await;
        made.map(|connected| connected.stream).map_err(io::Error::other)
    }

    async fn http1(&self, kept: &mut Kept) -> io::Result<http1::SendRequest<Full<Bytes>>> {
        if let Some(sender) = kept.http1.take().filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let io = TokioIo::new(self.connect(Alpn::Http1).await?);
        let (sender, connection) =
            http1::Builder::new().max_buf_size(MAX_ANSWER).handshake(io).await.map_err(io::Error::other)?;
        kept.driver = Some(tokio::task::spawn_local(async move { drop(connection.await) }).abort_handle());
        Ok(sender)
    }

    async fn http2(&self, kept: &mut Kept) -> io::Result<http2::SendRequest<Full<Bytes>>> {
        if let Some(sender) = kept.http2.clone().filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let io = TokioIo::new(self.connect(Alpn::H2).await?);
        let mut builder = http2::Builder::new(Local);
        builder.timer(TokioTimer::new());
        let (sender, connection) = builder.handshake(io).await.map_err(io::Error::other)?;
        kept.driver = Some(tokio::task::spawn_local(async move { drop(connection.await) }).abort_handle());
        kept.http2 = Some(sender.clone());
        Ok(sender)
    }
}

/// Runs what hyper spawns on this thread.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

fn bad(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

/// The head of a check.
fn asking(probe: &HttpProbe, host: &str) -> request::Builder {
    let mut request = Request::builder().method(&*probe.method);
    // Whoever else is to be named as asking stands on the same line.
    let is_agent = |name: &str| name.eq_ignore_ascii_case("user-agent");
    let others = probe.headers.iter().filter(|(name, _)| is_agent(name)).map(|(_, value)| &**value);
    let agents: Vec<&str> = (!probe.anonymous).then_some(USER_AGENT).into_iter().chain(others).collect();
    if !agents.is_empty() {
        request = request.header("user-agent", agents.join(","));
    }
    request = match probe.http2 {
        true => request.uri(format!("http://{host}{}", probe.path)),
        false => request.uri(&*probe.path).header("host", host),
    };
    // Methods that may have a body tell that there is none.
    let is_bare = matches!(&*probe.method, "GET" | "HEAD" | "DELETE" | "TRACE" | "CONNECT");
    if !probe.http2 && !is_bare && probe.send.is_empty() {
        request = request.header("content-length", "0");
    }
    for (name, value) in probe.headers.iter().filter(|(name, _)| !is_agent(name)) {
        request = request.header(&**name, &**value);
    }
    request
}

async fn by_http(target: &Target<'_>, probe: &HttpProbe, host: &str, kept: &mut Kept) -> io::Result<(Outcome, u16)> {
    let request = asking(probe, host).body(Full::new(Bytes::copy_from_slice(&probe.send))).map_err(bad)?;
    let response = if probe.http2 {
        target.http2(kept).await?.send_request(request).await.map_err(bad)?
    } else {
        let mut sender = target.http1(kept).await?;
        let response = sender.send_request(request).await.map_err(bad)?;
        kept.http1 = Some(sender);
        response
    };
    let status = response.status().as_u16();
    let degraded = response.headers().contains_key("x-envoy-degraded");
    target.said.leaves.set(response.headers().contains_key("x-envoy-immediate-health-check-fail"));
    let closes =
        response.headers().get("connection").is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    let named = response.headers().get("x-envoy-upstream-healthchecked-cluster");
    let is_other = probe
        .service
        .as_ref()
        .is_some_and(|ServiceName(wanted)| !named.is_some_and(|name| wanted.matches(name.as_bytes())));
    // All of the answer, so that the connection can serve another check.
    let body = match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(body) => Some(body),
        Err(error) if error.is::<LengthLimitError>() => None,
        // One that breaks off is no answer.
        Err(error) => return Err(io::Error::other(error)),
    };
    if body.is_none() || closes {
        *kept = Kept::default();
    }
    let said = body.map(|body| body.to_bytes()).unwrap_or_default();
    if is_other || !contains_in_order(&said, &probe.receive) {
        return Ok((Outcome::Bad, status));
    }
    let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(start, end)| (*start..*end).contains(&status));
    let outcome = match (within(&probe.expected), degraded) {
        (true, false) => Outcome::Good,
        (true, true) => Outcome::Degraded,
        (false, _) if within(&probe.retriable) => Outcome::Silent,
        (false, _) => Outcome::Bad,
    };
    Ok((outcome, status))
}

async fn by_grpc(
    target: &Target<'_>,
    service: &str,
    authority: &str,
    headers: &[(Box<str>, Box<str>)],
    kept: &mut Kept,
) -> io::Result<Outcome> {
    let mut request = Request::builder()
        .method("POST")
        .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", format!("{}m", target.check.timeout.as_millis()))
        .header("user-agent", USER_AGENT);
    for (name, value) in headers {
        request = request.header(&**name, &**value);
    }
    let request = request.body(Full::new(question(service))).map_err(bad)?;
    let response = target.http2(kept).await?.send_request(request).await.map_err(bad)?;
    let status = |headers: &hyper::HeaderMap| headers.get("grpc-status").map(|value| value.as_bytes() == b"0");
    if response.status() != 200 {
        return Ok(Outcome::Bad);
    }
    let early = status(response.headers());
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
    let ended_well = early.or_else(|| body.trailers().and_then(status));
    let serving = answer(&body.to_bytes());
    Ok(if ended_well == Some(true) && serving { Outcome::Good } else { Outcome::Bad })
}

/// A `HealthCheckRequest` as gRPC frames it.
fn question(service: &str) -> Bytes {
    use prost::encoding;
    let mut message = Vec::new();
    if !service.is_empty() {
        encoding::string::encode(1, &service.to_owned(), &mut message);
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Whether a framed `HealthCheckResponse` says SERVING.
fn answer(framed: &[u8]) -> bool {
    // Not compressed, one field: the status, 1.
    matches!(framed, [0, 0, 0, 0, 2, 0x08, 1])
}

async fn by_tcp(target: &Target<'_>, send: &[u8], receive: &[Box<[u8]>]) -> io::Result<Outcome> {
    let mut stream = target.connect(Alpn::Tcp).await?;
    if !send.is_empty() {
        stream.write_all(send).await?;
        stream.flush().await?;
    }
    let mut got = Vec::new();
    while !contains_in_order(&got, receive) {
        if got.len() >= MAX_ANSWER || stream.read_buf(&mut got).await? == 0 {
            return Ok(Outcome::Silent);
        }
    }
    Ok(Outcome::Good)
}

/// Whether the parts come one after the other in what was received, with anything between.
fn contains_in_order(received: &[u8], parts: &[Box<[u8]>]) -> bool {
    let mut rest = received;
    for part in parts.iter().filter(|part| !part.is_empty()) {
        match rest.windows(part.len()).position(|window| window == &**part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_when_received_in_order_then_they_match() {
        let parts: Vec<Box<[u8]>> = vec![Box::from(&b"ab"[..]), Box::from(&b"cd"[..])];
        assert!(contains_in_order(b"xxabyycdzz", &parts));
        assert!(!contains_in_order(b"cdab", &parts));
        assert!(contains_in_order(b"", &[]));
    }

    #[test]
    fn question_when_a_service_is_asked_about_then_it_is_framed_as_grpc_does() {
        assert_eq!(&question("a")[..], [0, 0, 0, 0, 3, 0x0a, 1, b'a']);
        assert_eq!(&question("")[..], [0; 5]);
        assert!(answer(&[0, 0, 0, 0, 2, 8, 1]) && !answer(&[0, 0, 0, 0, 2, 8, 2]));
    }

    #[test]
    fn asking_when_agents_are_added_and_the_method_may_have_a_body_then_one_line_names_all_and_no_body_is_told() {
        let mut probe = HttpProbe {
            send: Box::default(),
            receive: Vec::new(),
            service: None,
            anonymous: false,
            host: None,
            path: "/".into(),
            method: "PUT".into(),
            headers: vec![("User-Agent".into(), "v".into()), ("x-check".into(), "1".into())],
            expected: vec![(200, 201)],
            retriable: Vec::new(),
            http2: false,
        };
        let sent = |probe: &HttpProbe, name: &str| -> Vec<String> {
            let request = asking(probe, "host").body(()).unwrap();
            request.headers().get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(sent(&probe, "user-agent"), ["Envoy/HC,v"]);
        assert_eq!((sent(&probe, "x-check"), sent(&probe, "content-length")), (vec!["1".into()], vec!["0".into()]));
        probe.anonymous = true;
        probe.method = "GET".into();
        assert_eq!(sent(&probe, "user-agent"), ["v"]);
        assert_eq!(sent(&probe, "content-length"), [""; 0]);
    }
}
