//! The pod's metrics in one page: this proxy's, and the app's as its annotations say where they are
//! (`prometheus.io/scrape`, `port`, `path`).

use super::PROMETHEUS;
use crate::control::podinfo::PodInfo;
use crate::telemetry::Telemetry;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use leno_runtime::http::{Answer, with_type};
use std::time::Duration;

/// How long the app may take to tell its metrics.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of the app's metrics at most; more are left out, all of them.
const MAX_BYTES: usize = 16 << 20;

/// Where the app's metrics are: port and path; `None` where nobody asked for them.
fn place(info: &PodInfo, own: &[u16]) -> Option<(u16, String)> {
    let mut annotations = info.annotations();
    if annotations.get("prometheus.io/scrape").is_none_or(|wanted| wanted != "true") {
        return None;
    }
    let port = annotations.get("prometheus.io/port").map_or(Ok(80), |port| port.parse()).ok()?;
    // A page that were part of itself would never end.
    (!own.contains(&port))
        .then(|| (port, annotations.remove("prometheus.io/path").unwrap_or_else(|| "/metrics".into())))
}

/// Both pages. What the app does not tell is left out, and counted as such.
pub(super) async fn page(telemetry: Telemetry, info: Option<PodInfo>, own: Vec<u16>) -> Answer {
    let mut text = telemetry.render();
    let Some((port, path)) = info.as_ref().and_then(|info| place(info, &own)) else {
        return with_type(StatusCode::OK, PROMETHEUS, text);
    };
    let asked = tokio::time::timeout(LIMIT, ask(port, &path)).await;
    let told = match asked {
        Ok(Ok(told)) => Some(told),
        Ok(Err(error)) => {
            tracing::debug!(port, path, %error, "the app's metrics could not be had");
            None
        }
        Err(_) => None,
    };
    text.push_str("# TYPE leno_proxy_app_metrics_up gauge\n");
    text.push_str(if told.is_some() { "leno_proxy_app_metrics_up 1\n" } else { "leno_proxy_app_metrics_up 0\n" });
    if let Some(told) = told {
        // What ends a page of OpenMetrics would end ours in its middle.
        text.extend(told.lines().filter(|line| *line != "# EOF").flat_map(|line| [line, "\n"]));
    }
    with_type(StatusCode::OK, PROMETHEUS, text)
}

async fn ask(port: u16, path: &str) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, format!("127.0.0.1:{port}"))
        .header(header::ACCEPT, PROMETHEUS)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::OK {
        driver.abort();
        return Err(format!("answered {}", response.status()).into());
    }
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await?.to_bytes();
    driver.abort();
    Ok(String::from_utf8(body.to_vec())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[tokio::test]
    async fn merged_page_when_the_app_has_metrics_then_both_are_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let count = stream.read(&mut asked).unwrap();
            assert!(asked[..count].starts_with(b"GET /m HTTP/1.1"));
            let body = "app_things 7\n# EOF\n";
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
        });
        let folder = tempfile::tempdir().unwrap();
        let lines =
            format!("prometheus.io/scrape=\"true\"\nprometheus.io/port=\"{port}\"\nprometheus.io/path=\"/m\"\n");
        std::fs::write(folder.path().join("annotations"), lines).unwrap();
        let info = PodInfo::new(folder.path());
        let body = |answer: Answer| async { answer.into_body().collect().await.unwrap().to_bytes() };
        let telemetry = Telemetry::new(1).0;
        let text = body(page(telemetry.clone(), Some(info.clone()), vec![15020]).await).await;
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("app_things 7\n") && text.contains("leno_proxy_workers 1") && !text.contains("# EOF"));
        let text = body(page(telemetry, Some(info), vec![port]).await).await;
        assert!(!String::from_utf8_lossy(&text).contains("app_metrics_up"), "never from a port of our own");
    }
}
