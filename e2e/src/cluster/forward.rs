//! A port of this machine that leads to a Service of a local cluster, whose network nothing else outside can reach:
//! what `kubectl port-forward` is for a cluster that a browser's machine can reach.

use super::{Cluster, Error, netns};
use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How long the Service may take to answer a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Connections at once; a further one is closed.
const MOST: usize = 256;

/// Serves `listen` until the process ends: every connection is led to `service` (`NAMESPACE/NAME:PORT`).
///
/// # Errors
/// When `service` is not written so or not there, or `listen` cannot be bound.
pub fn forward(cluster: &Cluster, listen: SocketAddr, service: &str) -> Result<(), Error> {
    let to = address_of(cluster, service)?;
    let listener = TcpListener::bind(listen).map_err(Error::io("listen on", listen.to_string()))?;
    println!("http://{listen} is {service} of cluster {}; end with Ctrl-C", cluster.layout().name);
    let open = Arc::new(AtomicUsize::new(0));
    for client in listener.incoming().filter_map(Result::ok) {
        let (layout, open) = (cluster.layout().clone(), open.clone());
        if open.fetch_add(1, Ordering::Relaxed) < MOST {
            std::thread::spawn(move || {
                // A socket stays in the network in which it was made.
                match netns::within(&layout, || TcpStream::connect_timeout(&to, CONNECT)) {
                    Ok(Ok(server)) => drop(join(&client, &server)),
                    Ok(Err(error)) => eprintln!("{to}: {error}"),
                    Err(error) => eprintln!("{error}"),
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        } else {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn address_of(cluster: &Cluster, service: &str) -> Result<SocketAddr, Error> {
    let wrong = || Error::Missing {
        what: format!("a service in {service:?}"),
        remedy: "write it as NAMESPACE/NAME:PORT, such as shop/front:80".to_owned(),
    };
    let (namespace, rest) = service.split_once('/').ok_or_else(wrong)?;
    let (name, port) = rest.split_once(':').ok_or_else(wrong)?;
    let ip = cluster.kubectl(["-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.clusterIP}"])?;
    format!("{ip}:{port}").parse().map_err(|_| wrong())
}

fn join(client: &TcpStream, server: &TcpStream) -> io::Result<()> {
    let one_way = |mut from: &TcpStream, mut to: &TcpStream| {
        let copied = io::copy(&mut from, &mut to);
        to.shutdown(Shutdown::Write).and(copied.map(drop))
    };
    std::thread::scope(|scope| {
        let back = scope.spawn(|| one_way(server, client));
        let there = one_way(client, server);
        there.and(back.join().unwrap_or(Ok(())))
    })
}
