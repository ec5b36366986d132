//! Runs cases against both proxies, one after the other, several cases at a time.

use super::{
    case::Request,
    client::{Client, Seen},
    compare::normal,
    config::{LOG_FIELDS, Placed},
    proxies::Proxy,
    recorder::Recorder,
    tls::Pki,
};
use anyhow::Result;
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Cases that run at a time; more would make timeouts a matter of luck.
const AT_A_TIME: usize = 4;
/// How long lines of the access log are waited for.
const LOGGED: Duration = Duration::from_secs(3);

/// What was seen of one request at one proxy.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Its id in the access log.
    pub id: String,
    /// A fact a line.
    pub lines: Vec<String>,
    /// The status that the client got.
    pub status: Option<u16>,
    /// The back ends that saw it, in order.
    pub backends: Vec<String>,
}

/// What was seen of a case: by request, by proxy, by repetition.
pub type CaseSeen = Vec<[Vec<Observed>; 2]>;

/// Runs all of them.
pub async fn all(cases: &[Placed], recorders: &[Arc<Recorder>], proxies: [&Proxy; 2], pki: &Arc<Pki>) -> Vec<CaseSeen> {
    let permits = Semaphore::new(AT_A_TIME);
    let runs = cases.iter().zip(recorders).map(|(placed, recorder)| {
        let permits = &permits;
        async move {
            let _permit = permits.acquire().await;
            if proxies.iter().any(|proxy| proxy.refused.contains_key(&placed.case.name)) {
                return Vec::new();
            }
            let mut by_proxy = Vec::new();
            for (proxy, letter) in proxies.iter().zip(["e", "l"]) {
                by_proxy.push(one(placed, recorder, proxy, letter, pki).await);
            }
            let (second, first) = (by_proxy.pop().unwrap_or_default(), by_proxy.pop().unwrap_or_default());
            first.into_iter().zip(second).map(|(first, second)| [first, second]).collect()
        }
    });
    futures::future::join_all(runs).await
}

async fn one(
    placed: &Placed,
    recorder: &Arc<Recorder>,
    proxy: &Proxy,
    letter: &str,
    pki: &Arc<Pki>,
) -> Vec<Vec<Observed>> {
    let address = SocketAddr::from((proxy.own, placed.port));
    let own = proxy.own.to_string();
    let mut client = Client::new(address, pki.clone());
    // What the back ends saw while it was waited for that the proxy listens.
    recorder.forget();
    let mut all = Vec::new();
    for (number, request) in placed.case.requests.iter().enumerate() {
        let request = filled(placed, request, pki);
        tokio::time::sleep(Duration::from_millis(request.pause)).await;
        let id = |n: u32| format!("{letter}.{}.{number}.{n}", placed.case.name);
        let mut seen: Vec<(String, Seen)> = Vec::new();
        if request.together {
            let sent = (0..request.times).map(|n| {
                let (mut client, request, id) = (Client::new(address, pki.clone()), request.clone(), id(n));
                async move {
                    tokio::time::sleep(Duration::from_millis(request.stagger) * n).await;
                    (id.clone(), client.send(&request, &id).await)
                }
            });
            seen = futures::future::join_all(sent).await;
            tokio::time::sleep(Duration::from_millis(request.settle)).await;
        }
        let mut observed = Vec::new();
        for n in 0..request.times {
            let (id, seen) = match seen.get(n as usize) {
                Some(seen) => seen.clone(),
                None => (id(n), client.send(&request, &id(n)).await),
            };
            if !request.together && request.settle > 0 {
                tokio::time::sleep(Duration::from_millis(request.settle)).await;
            }
            observed.push(gather(&id, seen, recorder, &own, request.settle > 0));
        }
        all.push(observed);
    }
    all
}

fn gather(id: &str, seen: Seen, recorder: &Recorder, own: &str, copied: bool) -> Observed {
    let mut lines: Vec<String> = seen.lines.iter().map(|line| normal(line, own)).collect();
    let mut records = recorder.take(id);
    // Copies arrive before or after what they are copies of.
    if copied {
        records.sort_by(|a, b| (&a.backend, &a.lines).cmp(&(&b.backend, &b.lines)));
    }
    let backends = records.iter().map(|record| record.backend.clone()).collect();
    for record in records {
        lines.push(format!("back end {}", record.backend));
        lines.extend(record.lines.iter().map(|line| normal(&format!("back end {line}"), own)));
    }
    Observed { id: id.to_owned(), lines, status: seen.status, backends }
}

/// The request with its places filled.
fn filled(placed: &Placed, request: &Request, pki: &Pki) -> Request {
    let mut request = request.clone();
    let fill = |text: &mut String| {
        if let Ok(filled) = super::config::fill_text(placed, &pki.folder, text) {
            *text = filled;
        }
    };
    request.headers.iter_mut().for_each(fill);
    request.replies.iter_mut().flat_map(|reply| reply.headers.iter_mut()).for_each(fill);
    request.raw.iter_mut().for_each(fill);
    fill(&mut request.path);
    fill(&mut request.host);
    for lines in [&mut request.headers].into_iter().chain(request.replies.iter_mut().map(|reply| &mut reply.headers)) {
        *lines = lines.iter().flat_map(|line| line.split("\r\n").map(str::to_owned)).collect();
    }
    request
}

/// Adds what the access logs say, once all lines are there or will not come.
pub fn add_logs(cases: &mut [CaseSeen], proxies: [&Proxy; 2]) -> Result<()> {
    let start = Instant::now();
    let ids = |index: usize, cases: &[CaseSeen]| -> Vec<String> {
        cases.iter().flatten().flat_map(|both| both[index].iter().map(|one| one.id.clone())).collect()
    };
    let mut logs: [HashMap<String, Vec<String>>; 2] = [HashMap::new(), HashMap::new()];
    loop {
        for (log, proxy) in logs.iter_mut().zip(proxies) {
            *log = read_log(&proxy.process.output());
        }
        let waiting = (0..2).any(|index| ids(index, cases).iter().any(|id| !logs[index].contains_key(id)));
        if !waiting || start.elapsed() > LOGGED {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for both in cases.iter_mut().flatten() {
        for (index, log) in logs.iter().enumerate() {
            for one in &mut both[index] {
                one.lines.extend(log.get(&one.id).into_iter().flatten().cloned());
            }
        }
    }
    Ok(())
}

fn read_log(text: &str) -> HashMap<String, Vec<String>> {
    let mut by_id: HashMap<String, Vec<String>> = HashMap::new();
    for line in text.lines() {
        // Lines that a case asks for are compared as they are.
        if let Some(id) = line.strip_prefix('{').and_then(|_| serde_json::from_str::<serde_json::Value>(line).ok()) {
            if let Some(id) = id["id"].as_str() {
                let facts = format!("log json: {}", line.replace(id, "ID"));
                by_id.entry(id.to_owned()).or_default().push(facts);
            }
            continue;
        }
        if let Some((id, rest)) = line.split_once(" = ") {
            by_id.entry(id.to_owned()).or_default().push(format!("log text: {rest}"));
            continue;
        }
        let mut words = line.split(' ');
        let Some(id) = words.next() else { continue };
        let facts = LOG_FIELDS.iter().zip(words).map(|(field, value)| format!("log {field}: {value}"));
        by_id.entry(id.to_owned()).or_default().extend(facts);
    }
    by_id
}

/// How often each back end got a request (its first attempt).
pub fn shares(observed: &[Observed]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for one in observed {
        *shares.entry(one.backends.first().cloned().unwrap_or_else(|| "none".to_owned())).or_default() += 1;
    }
    shares
}
