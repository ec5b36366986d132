//! The two slots with real sockets: copies travel, crashes and hand-overs lose nothing.

use leno_proxy::slots::Folder;
use leno_proxy::slots::active::{Active, HandOver, Refusal};
use leno_proxy::slots::desk::{self, Drain, Phase};
use leno_proxy::slots::lock::{lock_within, try_lock};
use leno_proxy::slots::sockets::Sockets;
use leno_proxy::slots::standby::{Event, Standby};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(10);

fn folder() -> (tempfile::TempDir, Folder) {
    let directory = tempfile::tempdir().unwrap();
    let folder = Folder::new(directory.path());
    (directory, folder)
}

/// A listening socket on a port that nobody has.
fn sockets() -> (Sockets, SocketAddr) {
    let probe = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = probe.local_addr().unwrap();
    drop(probe);
    let mut sockets = Sockets::default();
    sockets.add(&[address]).unwrap();
    (sockets, address)
}

/// Accepts one connection that is waiting already and answers it.
fn answer(sockets: &Sockets, address: SocketAddr, text: &str) {
    let listener = sockets.copy(address).unwrap();
    listener.set_nonblocking(false).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
}

fn read(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn active(folder: &Folder, sockets: &Sockets) -> Active {
    let lock = try_lock(folder).unwrap().expect("nobody else is active");
    Active::start(folder, lock, sockets.try_clone().unwrap()).unwrap()
}

#[tokio::test]
async fn standby_when_the_active_slot_crashes_answers_what_waited_in_its_queue() {
    let (_directory, folder) = folder();
    let (sockets, address) = sockets();
    let active = active(&folder, &sockets);
    let (mut standby, held) = connect(&folder).await;
    assert!(try_lock(&folder).unwrap().is_none(), "one slot is active at a time");

    let waiting = TcpStream::connect(address).unwrap();
    // A crash: everything of the active one is closed at once.
    drop(active);
    drop(sockets);
    assert_eq!(timeout(LIMIT, standby.event()).await.unwrap(), Event::Lost);
    assert!(lock_within(&folder, LIMIT).await.unwrap().is_some(), "the standby becomes active");
    answer(&held, address, "from the standby");
    assert_eq!(read(waiting), "from the standby");
}

/// The standby connects with blocking calls, so the active one must be on another thread.
async fn connect(folder: &Folder) -> (Standby, Sockets) {
    let folder = folder.clone();
    let handle = tokio::runtime::Handle::current();
    let connecting = tokio::task::spawn_blocking(move || {
        let _context = handle.enter();
        Standby::connect(&folder)
    });
    timeout(LIMIT, connecting).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn active_when_it_hands_over_waits_for_the_standby_to_serve_and_lets_go() {
    let (_directory, folder) = folder();
    let (sockets, _) = sockets();
    let active = active(&folder, &sockets);
    let (mut standby, _held) = connect(&folder).await;
    let relieved = tokio::spawn(async move {
        assert_eq!(standby.event().await, Event::TakeOver);
        standby.serving().await.unwrap();
        // The end of the connection: the lock is free.
        assert_eq!(standby.event().await, Event::Lost);
    });
    assert!(matches!(timeout(LIMIT, active.hand_over(LIMIT)).await.unwrap(), HandOver::Done(_)));
    timeout(LIMIT, relieved).await.unwrap().unwrap();
    assert!(try_lock(&folder).unwrap().is_some());
}

#[tokio::test]
async fn active_when_nobody_can_take_over_goes_on() {
    let (_directory, folder) = folder();
    let (sockets, _) = sockets();
    let active = active(&folder, &sockets);
    assert_eq!(active.hand_over(LIMIT).await.refusal(), Some(Refusal::Nobody), "there is no standby");

    let (mut leaving, _held) = connect(&folder).await;
    leaving.leaving().await.unwrap();
    let refusal = Some(Refusal::Leaving);
    assert_eq!(timeout(LIMIT, refused(&active)).await.unwrap(), refusal, "the standby leaves as well");

    let (mut slow, _held) = connect(&folder).await;
    let warming = async {
        assert_eq!(timeout(LIMIT, slow.event()).await.unwrap(), Event::TakeOver);
        slow.warming("it has\nno certificate").await.unwrap();
    };
    let (refused, ()) = tokio::join!(active.hand_over(Duration::from_millis(300)), warming);
    let (limit, waits_for) = (Duration::from_millis(300), "it has no certificate".to_owned());
    assert_eq!(refused.refusal(), Some(Refusal::Late { limit, waits_for }), "the standby is too slow");
    assert_eq!(timeout(LIMIT, slow.event()).await.unwrap(), Event::Lost, "and it is told to begin anew");
    assert!(try_lock(&folder).unwrap().is_none(), "the slot is still active");
}

#[tokio::test]
async fn active_when_the_standby_ends_while_it_takes_over_says_why() {
    let (_directory, folder) = folder();
    let (sockets, _) = sockets();
    let active = active(&folder, &sockets);
    let (mut standby, _held) = connect(&folder).await;
    let since = active.standby().wait_for(Option::is_some).await.unwrap().to_owned();
    assert!(since.is_some());
    let failing = tokio::spawn(async move {
        assert_eq!(standby.event().await, Event::TakeOver);
        standby.failed("the engine cannot serve").await.unwrap();
    });
    let refused = timeout(LIMIT, active.hand_over(LIMIT)).await.unwrap();
    assert_eq!(refused.refusal(), Some(Refusal::Ended("the engine cannot serve".to_owned())));
    failing.await.unwrap();
    assert_eq!(*active.standby().borrow(), None);
}

/// What the standby said may still be on its way.
async fn refused(active: &Active) -> Option<Refusal> {
    active.hand_over(Duration::from_millis(100)).await.refusal()
}

#[tokio::test]
async fn desk_when_asked_tells_the_phase_and_drains_once_it_is_done() {
    let (_directory, folder) = folder();
    let (phase, phases) = watch::channel(Phase::Starting);
    let drained = Arc::new(AtomicUsize::new(0));
    let count = drained.clone();
    let drain: Drain = Arc::new(move || {
        let count = count.clone();
        Box::pin(async move {
            count.fetch_add(1, Ordering::Relaxed);
        })
    });
    // A slot without a process has nothing to drain, and is waited for in vain.
    desk::drain(&folder, 1, LIMIT).await.unwrap();
    let error = desk::wait(&folder, 1, Duration::from_millis(500)).await.unwrap_err();
    assert!(error.to_string().contains("slot 1"), "{error}");

    let serving = tokio::spawn(desk::serve(&folder, 0, phases, drain).unwrap());
    let waiting = tokio::spawn({
        let folder = folder.clone();
        async move { desk::wait(&folder, 0, LIMIT).await }
    });
    let error = desk::wait(&folder, 0, Duration::from_millis(500)).await.unwrap_err();
    assert!(error.to_string().contains("starting"), "{error}");
    phase.send_replace(Phase::Serving);
    assert_eq!(waiting.await.unwrap().unwrap(), "serving");
    desk::drain(&folder, 0, LIMIT).await.unwrap();
    assert_eq!(drained.load(Ordering::Relaxed), 1);
    serving.abort();
}

#[test]
fn sockets_when_the_message_is_something_else_are_refused() {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.write_all(b"HELLO 127.0.0.1:1\n").unwrap();
    assert!(Sockets::receive(&theirs).is_err());
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.write_all(b"SOCKETS 127.0.0.1:1\n").unwrap();
    let error = Sockets::receive(&theirs).unwrap_err();
    assert!(error.to_string().contains("0 sockets came"), "{error}");
}
