//! A gate between a program and the API server: reads pass, and every write that the cluster carried out is told to the test and
//! never answered, so that the program can be ended exactly there.
//!
//! `kubectl proxy` on a Unix socket speaks to the API server, in the cluster's network and with the test's rights.

use crate::bed::Bed;
use anyhow::{Context, Result};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::net::{TcpListener, UnixStream};

type Body = BoxBody<bytes::Bytes, hyper::Error>;

/// An open gate; it closes when dropped.
pub struct Gate {
    address: SocketAddr,
    folder: tempfile::TempDir,
    writes: mpsc::Receiver<String>,
    proxy: Child,
    _runtime: tokio::runtime::Runtime,
}

impl Gate {
    /// Opens a gate to the cluster of `bed`. Writes below the paths of `refused` are answered with 403 and not told.
    ///
    /// # Errors
    /// When `kubectl proxy` does not answer.
    pub fn open(bed: &Bed, refused: &'static [&'static str]) -> Result<Gate> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("api");
        let proxy = bed
            .command("kubectl")?
            .arg("proxy")
            .arg(format!("--unix-socket={}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("kubectl proxy does not start")?;
        bed.wait("kubectl proxy", Duration::from_secs(10), || {
            Ok(std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(()))
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let (told, writes) = mpsc::channel();
        runtime.spawn(serve(listener, Arc::new(Way { socket, told, refused })));
        Ok(Gate { address, folder, writes, proxy, _runtime: runtime })
    }

    /// A kubeconfig that leads through the gate.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let path = self.folder.path().join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: gate\n\
             clusters: [{{name: gate, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: gate, user: {{}}}}]\n\
             contexts: [{{name: gate, context: {{cluster: gate, user: gate}}}}]\n",
            self.address
        );
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Forgets writes of a program that has ended.
    pub fn clear(&self) {
        while self.writes.try_recv().is_ok() {}
    }

    /// The write that is held, as `METHOD path`; `None` when there was none within that time.
    pub fn held(&self, within: Duration) -> Option<String> {
        self.writes.recv_timeout(within).ok()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.proxy.kill().ok();
        self.proxy.wait().ok();
    }
}

/// What a connection through the gate needs.
struct Way {
    socket: PathBuf,
    told: mpsc::Sender<String>,
    refused: &'static [&'static str],
}

async fn serve(listener: TcpListener, way: Arc<Way>) {
    while let Ok((stream, _)) = listener.accept().await {
        let way = way.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| way.pass(request));
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

impl Way {
    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let write = !matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
        if write && self.refused.iter().any(|prefix| path.starts_with(prefix)) {
            let body = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}"#;
            let mut answer = Response::new(Full::from(body).map_err(|never| match never {}).boxed());
            *answer.status_mut() = StatusCode::FORBIDDEN;
            return Ok(answer);
        }
        let stream = TokioIo::new(UnixStream::connect(&self.socket).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        tokio::spawn(async move { connection.await.ok() });
        let answer = sender.send_request(request).await?;
        // The lease and events are not steps of anything.
        let step = write && !path.contains("/leases") && !path.contains("/events") && answer.status().is_success();
        if step {
            self.told.send(format!("{method} {path}")).ok();
            std::future::pending::<()>().await;
        }
        Ok(answer.map(BodyExt::boxed))
    }
}
