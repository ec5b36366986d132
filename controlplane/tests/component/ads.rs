//! The discovery service over a real TLS socket: order, reconnects, refusals, removals, and who may connect.

use std::collections::BTreeMap;

use crate::common::{Made, Proxy, names, server, versions, virtual_service};
use leno_controlplane::ads::Kind;
use tonic::Code;

fn shop() -> Made {
    Made::default()
        .with(Kind::Cluster, "reviews", "c1")
        .with(Kind::Endpoints, "reviews", "e1")
        .listener("10.0.0.1_80", "one", "reviews:80")
        .shaped_route("reviews:80", "r1")
}

/// Takes everything of [`shop`] as a proxy does that asks for it bit by bit.
async fn settle(proxy: &mut Proxy) {
    proxy.subscribe(Kind::Cluster, &[]).await;
    proxy.subscribe(Kind::Listener, &[]).await;
    proxy.next_and_ack(Kind::Cluster).await;
    proxy.subscribe(Kind::Endpoints, &["reviews"]).await;
    proxy.next_and_ack(Kind::Endpoints).await;
    proxy.next_and_ack(Kind::Listener).await;
    proxy.subscribe(Kind::Route, &["reviews:80"]).await;
    proxy.next_and_ack(Kind::Route).await;
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_it_connects_then_gets_clusters_endpoints_listeners_routes_in_that_order() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Listener, &[]).await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    let clusters = proxy.next(Kind::Cluster).await;
    assert_eq!(names(&clusters), ["reviews"]);
    // The listeners wait for the clusters and their endpoints.
    proxy.expect_nothing().await;
    proxy.ack(&clusters).await;
    proxy.subscribe(Kind::Endpoints, &["reviews"]).await;
    let endpoints = proxy.next(Kind::Endpoints).await;
    proxy.expect_nothing().await;
    proxy.ack(&endpoints).await;
    assert_eq!(names(&proxy.next_and_ack(Kind::Listener).await), ["10.0.0.1_80"]);
    proxy.subscribe(Kind::Route, &["reviews:80"]).await;
    assert_eq!(names(&proxy.next_and_ack(Kind::Route).await), ["reviews:80"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_it_reconnects_with_what_it_has_then_gets_nothing() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    let clusters = versions(&proxy.next_and_ack(Kind::Cluster).await);
    proxy.subscribe(Kind::Endpoints, &["reviews"]).await;
    let endpoints = versions(&proxy.next_and_ack(Kind::Endpoints).await);
    drop(proxy);
    // The same content made again, as a replica does that was restarted.
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    proxy.resume(Kind::Cluster, &[], &clusters).await;
    proxy.resume(Kind::Endpoints, &["reviews"], &endpoints).await;
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_it_reconnects_after_a_cluster_changed_then_gets_its_unchanged_endpoints_again() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    proxy.next_and_ack(Kind::Cluster).await;
    proxy.subscribe(Kind::Endpoints, &["reviews"]).await;
    let endpoints = versions(&proxy.next_and_ack(Kind::Endpoints).await);
    server.configs.set(&shop().with(Kind::Cluster, "reviews", "c2").resources());
    // It gets the cluster, but the connection breaks before the endpoints that the cluster waits for arrive.
    let clusters = versions(&proxy.next(Kind::Cluster).await);
    drop(proxy);
    let mut proxy = server.proxy().await;
    proxy.resume(Kind::Cluster, &[], &clusters).await;
    proxy.resume(Kind::Endpoints, &["reviews"], &endpoints).await;
    assert_eq!(names(&proxy.next(Kind::Endpoints).await), ["reviews"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_a_cluster_changes_then_its_endpoints_follow_unchanged() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    settle(&mut proxy).await;
    server.configs.set(&shop().with(Kind::Cluster, "reviews", "c2").resources());
    assert_eq!(names(&proxy.next_and_ack(Kind::Cluster).await), ["reviews"]);
    assert_eq!(names(&proxy.next_and_ack(Kind::Endpoints).await), ["reviews"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_a_listener_changes_then_its_routes_follow_unchanged() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    settle(&mut proxy).await;
    server.configs.set(&shop().listener("10.0.0.1_80", "two", "reviews:80").resources());
    assert_eq!(names(&proxy.next_and_ack(Kind::Listener).await), ["10.0.0.1_80"]);
    assert_eq!(names(&proxy.next_and_ack(Kind::Route).await), ["reviews:80"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn route_when_moved_to_a_new_cluster_then_make_comes_before_break() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    settle(&mut proxy).await;
    let moved = shop()
        .without(Kind::Cluster, "reviews")
        .without(Kind::Endpoints, "reviews")
        .with(Kind::Cluster, "reviews-v2", "c2")
        .with(Kind::Endpoints, "reviews-v2", "e2")
        .shaped_route("reviews:80", "r2");
    server.configs.set(&moved.resources());
    let clusters = proxy.next(Kind::Cluster).await;
    assert_eq!(names(&clusters), ["reviews-v2"]);
    assert!(clusters.removed_resources.is_empty(), "{:?}", clusters.removed_resources);
    proxy.ack(&clusters).await;
    proxy.expect_nothing().await;
    proxy.subscribe(Kind::Endpoints, &["reviews-v2"]).await;
    proxy.next_and_ack(Kind::Endpoints).await;
    let routes = proxy.next(Kind::Route).await;
    // The old cluster stays until the proxy says that it no longer uses it.
    proxy.expect_nothing().await;
    proxy.ack(&routes).await;
    let removal = proxy.next_and_ack(Kind::Cluster).await;
    assert_eq!(removal.removed_resources, ["reviews"]);
    let removal = proxy.next_and_ack(Kind::Endpoints).await;
    assert_eq!(removal.removed_resources, ["reviews"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn response_when_refused_then_the_bad_one_is_found_and_the_rest_gets_through() {
    let server = server().await;
    let good = |made: Made, name: &str| made.with(Kind::Cluster, name, name);
    let made = ["a", "b", "bad", "d"].into_iter().fold(Made::default(), good);
    server.configs.set(&made.resources());
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    let mut taken = Vec::new();
    let mut rounds = 0;
    while taken.len() < 3 {
        rounds += 1;
        assert!(rounds < 10, "only {taken:?} got through");
        let response = proxy.next(Kind::Cluster).await;
        if names(&response).contains(&"bad") {
            proxy.nack(&response, "bad is bad").await;
        } else {
            taken.extend(names(&response).into_iter().map(str::to_owned));
            proxy.ack(&response).await;
        }
    }
    taken.sort();
    assert_eq!(taken, ["a", "b", "d"]);
    // The last that is left is the bad one alone; once refused it is not sent again until it changes.
    if rounds < 6 {
        let rest = tokio::time::timeout(std::time::Duration::from_millis(200), proxy.next(Kind::Cluster)).await;
        if let Ok(response) = rest {
            assert_eq!(names(&response), ["bad"]);
            proxy.nack(&response, "bad is bad").await;
        }
    }
    proxy.expect_nothing().await;
    server.configs.set(&made.with(Kind::Cluster, "bad", "repaired").resources());
    assert_eq!(names(&proxy.next_and_ack(Kind::Cluster).await), ["bad"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn routes_when_refused_then_the_cluster_that_the_old_ones_use_stays() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    settle(&mut proxy).await;
    let moved =
        shop().without(Kind::Cluster, "reviews").without(Kind::Endpoints, "reviews").shaped_route("reviews:80", "bad");
    server.configs.set(&moved.resources());
    let routes = proxy.next(Kind::Route).await;
    proxy.nack(&routes, "no such thing").await;
    proxy.expect_nothing().await;
    let (reports, _) = server.configs.book.reports();
    assert!(reports.is_empty(), "no publication, no report");
    server.configs.set(
        &shop()
            .without(Kind::Cluster, "reviews")
            .without(Kind::Endpoints, "reviews")
            .shaped_route("reviews:80", "good")
            .resources(),
    );
    proxy.next_and_ack(Kind::Route).await;
    assert_eq!(proxy.next_and_ack(Kind::Cluster).await.removed_resources, ["reviews"]);
}

#[tokio::test]
async fn proxy_when_slow_then_gets_the_newest_and_nothing_in_between() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    settle(&mut proxy).await;
    server.configs.set(&shop().shaped_route("reviews:80", "r2").resources());
    let first = proxy.next(Kind::Route).await;
    for round in 3..20 {
        server.configs.set(&shop().shaped_route("reviews:80", &format!("r{round}")).resources());
    }
    proxy.expect_nothing().await;
    proxy.ack(&first).await;
    let newest = proxy.next_and_ack(Kind::Route).await;
    assert_eq!(newest.resources[0].resource.as_ref().unwrap().value, b"r19");
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_it_asks_for_what_is_not_there_then_is_told_and_gets_it_when_it_comes() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    proxy.next_and_ack(Kind::Cluster).await;
    proxy.subscribe(Kind::Endpoints, &["reviews"]).await;
    proxy.next_and_ack(Kind::Endpoints).await;
    proxy.subscribe(Kind::Route, &["ratings:80"]).await;
    assert_eq!(proxy.next_and_ack(Kind::Route).await.removed_resources, ["ratings:80"]);
    server.configs.set(&shop().shaped_route("ratings:80", "r1").resources());
    assert_eq!(names(&proxy.next_and_ack(Kind::Route).await), ["ratings:80"]);
}

#[tokio::test]
async fn proxy_when_there_is_nothing_of_a_kind_then_gets_an_empty_answer() {
    let server = server().await;
    server.configs.set(&Made::default().resources());
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    assert!(proxy.next_and_ack(Kind::Cluster).await.resources.is_empty());
    proxy.subscribe(Kind::Listener, &[]).await;
    assert!(proxy.next_and_ack(Kind::Listener).await.resources.is_empty());
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_it_declares_what_is_gone_then_is_told_to_remove_it() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    let old = BTreeMap::from([("gone".to_owned(), "v".to_owned())]);
    proxy.resume(Kind::Cluster, &[], &old).await;
    assert_eq!(names(&proxy.next_and_ack(Kind::Cluster).await), ["reviews"]);
    assert_eq!(proxy.next_and_ack(Kind::Cluster).await.removed_resources, ["gone"]);
}

#[tokio::test]
async fn stream_when_opened_without_a_certificate_or_with_one_of_no_pod_then_is_refused() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let code = |result: Result<Proxy, tonic::Status>| result.err().map(|status| status.code());
    assert_eq!(code(Proxy::open(server.channel(None).await).await), Some(Code::Unauthenticated));
    let account = server.account_certificate("shop", "default");
    assert_eq!(code(Proxy::open(server.channel(Some(account)).await).await), Some(Code::PermissionDenied));
}

#[tokio::test]
async fn stream_when_the_pod_is_another_one_now_then_ends_with_permission_denied() {
    let server = server().await;
    server.configs.set_foreign();
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    assert_eq!(proxy.end().await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn stream_when_the_replica_leaves_then_ends_so_that_the_proxy_goes_elsewhere() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    settle(&mut proxy).await;
    server.shutdown.cancel();
    assert_eq!(proxy.end().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn object_when_its_route_is_acknowledged_then_is_no_longer_outstanding() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.proxy().await;
    proxy.subscribe(Kind::Cluster, &[]).await;
    proxy.subscribe(Kind::Listener, &[]).await;
    proxy.next_and_ack(Kind::Cluster).await;
    proxy.subscribe(Kind::Endpoints, &["reviews"]).await;
    proxy.next_and_ack(Kind::Endpoints).await;
    proxy.next_and_ack(Kind::Listener).await;
    // The listener is there, its routes are not asked for yet: the VirtualService is not in force.
    proxy.expect_nothing().await;
    let outstanding =
        || serde_json::to_string(&server.configs.book.proxies()).unwrap().contains(&virtual_service().to_string());
    assert!(outstanding());
    proxy.subscribe(Kind::Route, &["reviews:80"]).await;
    let routes = proxy.next(Kind::Route).await;
    assert!(outstanding());
    proxy.ack(&routes).await;
    proxy.expect_nothing().await;
    assert!(!outstanding());
}

#[tokio::test]
async fn secret_when_asked_for_then_sent_and_when_there_is_none_then_said() {
    let bank = "kubernetes://shop/bank";
    let server = server().await;
    server.configs.set(&shop().with(Kind::Secret, bank, "s1").resources());
    let mut proxy = server.proxy().await;
    settle(&mut proxy).await;
    proxy.subscribe(Kind::Secret, &[bank, "kubernetes://shop/gone"]).await;
    assert_eq!(names(&proxy.next_and_ack(Kind::Secret).await), [bank]);
    assert_eq!(proxy.next_and_ack(Kind::Secret).await.removed_resources, ["kubernetes://shop/gone"]);
    server.configs.set(&shop().with(Kind::Secret, bank, "s2").resources());
    assert_eq!(names(&proxy.next_and_ack(Kind::Secret).await), [bank]);
    server.configs.set(&shop().resources());
    assert_eq!(proxy.next_and_ack(Kind::Secret).await.removed_resources, [bank]);
    proxy.expect_nothing().await;
}
