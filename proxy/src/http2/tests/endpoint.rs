//! Endpoints that refuse, leave and break, and the pool of connections to them.

use super::*;

fn head(method: &[u8]) -> RequestHead {
    let mut head = RequestHead::default();
    head.set_method(method);
    head.set_path(b"/");
    head.set_authority(b"a");
    head
}

#[tokio::test]
async fn endpoint_when_it_refuses_the_stream_then_a_repeat_is_known_to_be_safe() {
    local(async {
        let (connection, mut endpoint) = endpoint(false).await;
        let head = head(b"POST");
        let mut up = connection.open();
        up.send_head(&head);
        let (_, mut respond) = endpoint.accept().await.unwrap().unwrap();
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        spawn_local(async move { while endpoint.accept().await.is_some() {} });
        let refused = poll_fn(|cx| up.poll_head(cx, &mut ResponseHead::default())).await;
        assert!(matches!(refused, Err(SideError::Refused)), "{refused:?}");
        assert!(connection.can_take());
        drop(up);
        assert_eq!(connection.active(), 0);
    })
    .await;
}

#[tokio::test]
async fn endpoint_when_it_says_go_away_then_no_more_streams_are_opened_and_open_ones_end() {
    local(async {
        let (connection, mut endpoint) = endpoint(false).await;
        let head = head(b"GET");
        let mut up = connection.open();
        up.send_head(&head);
        let (_, mut respond) = endpoint.accept().await.unwrap().unwrap();
        endpoint.graceful_shutdown();
        spawn_local(async move { while endpoint.accept().await.is_some() {} });
        while connection.can_take() {
            tokio::task::yield_now().await;
        }
        assert!(connection.is_closed());
        let mut late = connection.open();
        late.send_head(&head);
        let refused = poll_fn(|cx| late.poll_flush(cx)).await;
        assert!(matches!(refused, Err(SideError::Refused)), "{refused:?}");
        respond.send_response(Response::new(()), true).unwrap();
        let mut response = ResponseHead::default();
        poll_fn(|cx| up.poll_head(cx, &mut response)).await.unwrap();
        assert_eq!((response.status, response.body), (200, BodyLength::Empty));
    })
    .await;
}

#[tokio::test]
async fn endpoint_when_it_sends_interim_answers_without_end_then_only_the_first_few_are_told() {
    local(async {
        let (connection, mut endpoint) = endpoint(false).await;
        let head = head(b"GET");
        let mut up = connection.open();
        up.send_head(&head);
        let (_, mut respond) = endpoint.accept().await.unwrap().unwrap();
        spawn_local(async move { while endpoint.accept().await.is_some() {} });
        for number in 0..120 {
            let hints = Response::builder().status(103).header("number", number);
            respond.send_informational(hints.body(()).unwrap()).unwrap();
        }
        respond.send_response(Response::new(()), true).unwrap();
        let mut response = ResponseHead::default();
        for number in 0..super::super::MAX_INTERIM {
            poll_fn(|cx| up.poll_any_head(cx, &mut response)).await.unwrap();
            assert_eq!(response.status, 103);
            assert_eq!(response.headers.get("number"), Some(number.to_string().as_bytes()), "in order");
        }
        poll_fn(|cx| up.poll_any_head(cx, &mut response)).await.unwrap();
        assert_eq!(response.status, 200);
    })
    .await;
}

#[tokio::test]
async fn endpoint_when_its_connection_breaks_then_the_request_fails_as_broken() {
    local(async {
        let (connection, mut endpoint) = endpoint(false).await;
        let head = head(b"GET");
        let mut up = connection.open();
        up.send_head(&head);
        let taken = endpoint.accept().await.unwrap().unwrap();
        drop((taken, endpoint));
        let broken = poll_fn(|cx| up.poll_head(cx, &mut ResponseHead::default())).await;
        assert!(matches!(broken, Err(SideError::Broken(_) | SideError::Ended)), "{broken:?}");
        while !connection.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn connection_when_it_has_as_many_streams_as_allowed_then_it_takes_no_more() {
    local(async {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let options = Http2Options { max_concurrent_streams: 2, ..Http2Options::default() };
        let (connection, drive) = connect(near, false, None, options).await.unwrap();
        spawn_local(drive);
        let _endpoint = h2::server::handshake::<_>(far).await.unwrap();
        let one = connection.open();
        assert!(connection.can_take());
        let two = connection.open();
        assert!(!connection.can_take());
        drop(one);
        assert!(connection.can_take());
        drop(two);
        assert!(connection.idle_since().is_some());
        connection.drain();
        assert!(!connection.can_take() && connection.is_closed());
    })
    .await;
}

/// Connects to an endpoint that answers nothing, and counts how often.
async fn dial(count: &std::cell::Cell<u32>, streams: u32, works: bool) -> Result<Connection, &'static str> {
    count.set(count.get() + 1);
    tokio::task::yield_now().await;
    if !works {
        return Err("refused");
    }
    let (near, far) = tokio::io::duplex(16 * 1024);
    let options = Http2Options { max_concurrent_streams: streams, ..Http2Options::default() };
    let (connection, drive) = connect(near, false, None, options).await.unwrap();
    spawn_local(drive);
    spawn_local(async move {
        let mut endpoint: Endpoint = h2::server::handshake(far).await.unwrap();
        while endpoint.accept().await.is_some() {}
    });
    Ok(connection)
}

#[tokio::test]
async fn pool_when_many_ask_at_once_then_they_share_as_few_connections_as_hold_them() {
    local(async {
        let (pool, dials) = (Pool::default(), std::cell::Cell::new(0));
        let ask = || pool.acquire(0, async || dial(&dials, 3, true).await);
        let ups = futures::future::join_all((0..7).map(|_| ask())).await;
        assert!(ups.iter().all(Result::is_ok));
        assert_eq!((dials.get(), pool.len()), (3, 3));
        drop(ups);
        assert!(pool.take(0).is_some());
        // Connections that have served enough take no more.
        assert!(pool.take(1).is_none());
        assert!(pool.is_empty());
    })
    .await;
}

#[tokio::test]
async fn pool_when_the_endpoint_cannot_be_reached_then_nobody_waits_for_more_than_one_other() {
    local(async {
        let (pool, dials) = (Pool::default(), std::cell::Cell::new(0));
        let ask = || pool.acquire(0, async || dial(&dials, 3, false).await);
        let ups = futures::future::join_all((0..7).map(|_| ask())).await;
        assert!(ups.iter().all(Result::is_err));
        assert_eq!(dials.get(), 7);
        // And it recovers.
        pool.acquire(0, async || dial(&dials, 3, true).await).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn pool_when_connections_are_idle_or_retired_then_they_are_closed() {
    local(async {
        let (pool, dials) = (Pool::default(), std::cell::Cell::new(0));
        let up = pool.acquire(0, async || dial(&dials, 3, true).await).await.unwrap();
        let now = tokio::time::Instant::now();
        pool.sweep(now + LIMIT, Duration::from_secs(1));
        assert_eq!(pool.len(), 1, "a connection with a stream was closed");
        drop(up);
        pool.sweep(now, Duration::from_secs(60));
        pool.sweep(now + LIMIT, Duration::ZERO);
        assert_eq!(pool.len(), 1);
        pool.sweep(now + LIMIT, Duration::from_secs(1));
        assert!(pool.is_empty());
        pool.retire();
        pool.acquire(0, async || dial(&dials, 3, true).await).await.unwrap();
        assert!(pool.is_empty());
    })
    .await;
}

#[tokio::test]
async fn connection_when_pings_are_configured_and_not_answered_then_it_is_given_up() {
    local(async {
        let (near, far) = tokio::io::duplex(16 * 1024);
        let millis = std::time::Duration::from_millis;
        let keepalive = crate::config::Http2Keepalive {
            interval: millis(10),
            timeout: millis(20),
            jitter: 0,
            idle: std::time::Duration::ZERO,
        };
        let options = Http2Options::default();
        let (connection, drive) = connect_with(near, false, None, options, (4096, 100), Some(keepalive)).await.unwrap();
        // Nobody drives the other side after this, so no ping is ever answered; and no stream is open.
        let silent = h2::server::handshake::<_>(far);
        let silent = tokio::spawn(async move {
            let held: Endpoint = silent.await.unwrap();
            std::future::pending::<()>().await;
            drop(held);
        });
        tokio::time::timeout(std::time::Duration::from_secs(5), drive).await.expect("it is given up");
        assert!(connection.is_closed());
        silent.abort();
    })
    .await;
}

#[tokio::test]
async fn connection_when_it_is_too_old_then_it_takes_no_more_streams() {
    local(async {
        let (pool, dials) = (Pool::default(), std::cell::Cell::new(0));
        let aged = async || {
            let connection = dial(&dials, 3, true).await?;
            connection.serve_until(Some(tokio::time::Instant::now()));
            Ok::<_, &'static str>(connection)
        };
        let first = pool.acquire(0, aged).await.unwrap();
        let second = pool.acquire(0, aged).await.unwrap();
        assert_eq!(dials.get(), 2);
        drop((first, second));
    })
    .await;
}

#[tokio::test]
async fn connection_when_nobody_uses_it_any_more_then_it_ends_by_itself() {
    local(async {
        let (near, far) = tokio::io::duplex(65536);
        let options = Http2Options::default();
        let (connection, drive) = connect(near, false, None, options).await.unwrap();
        let driver = spawn_local(drive);
        let mut endpoint = h2::server::handshake(far).await.unwrap();
        spawn_local(async move { while endpoint.accept().await.is_some() {} });
        // The driver rests when nobody does anything.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        connection.drain();
        drop(connection);
        let end = tokio::time::timeout(std::time::Duration::from_secs(5), driver).await;
        let end = end.expect("the connection did not end within 5 s").unwrap();
        assert_eq!((end.remote, end.active, end.served), (false, false, 0));
    })
    .await;
}
