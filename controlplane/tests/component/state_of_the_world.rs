//! The older variant of the discovery protocol over a real TLS socket: order, what is left out, refusals.

use crate::common::{Made, WholeProxy, server};
use leno_controlplane::ads::Kind;

fn shop() -> Made {
    Made::default()
        .with(Kind::Cluster, "ratings", "c-ratings")
        .with(Kind::Endpoints, "ratings", "e-ratings")
        .with(Kind::Cluster, "reviews", "c1")
        .with(Kind::Endpoints, "reviews", "e1")
        .listener("10.0.0.1_80", "one", "reviews:80")
        .with(Kind::Route, "reviews:80", "r1")
}

/// Takes everything of [`shop`] as a stock Envoy does.
async fn settle(proxy: &mut WholeProxy) {
    proxy.ask(Kind::Cluster, &[]).await;
    assert_eq!(proxy.next_and_ack(Kind::Cluster).await, ["c-ratings", "c1"]);
    proxy.ask(Kind::Endpoints, &["ratings", "reviews"]).await;
    assert_eq!(proxy.next_and_ack(Kind::Endpoints).await, ["e-ratings", "e1"]);
    proxy.ask(Kind::Listener, &[]).await;
    assert_eq!(proxy.next_and_ack(Kind::Listener).await.len(), 1);
    proxy.ask(Kind::Route, &["reviews:80"]).await;
    assert_eq!(proxy.next_and_ack(Kind::Route).await, ["r1"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_a_cluster_changes_then_gets_all_clusters_and_the_endpoints_of_that_one() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.whole_proxy().await;
    settle(&mut proxy).await;
    server.configs.set(&shop().with(Kind::Cluster, "reviews", "c2").resources());
    assert_eq!(proxy.next_and_ack(Kind::Cluster).await, ["c-ratings", "c2"]);
    // Unchanged, but the cluster waits for them.
    assert_eq!(proxy.next_and_ack(Kind::Endpoints).await, ["e1"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn cluster_when_no_longer_used_then_is_left_out_after_its_routes_are_gone() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.whole_proxy().await;
    settle(&mut proxy).await;
    let without = shop().without(Kind::Cluster, "reviews").without(Kind::Endpoints, "reviews").with(
        Kind::Route,
        "reviews:80",
        "r2",
    );
    server.configs.set(&without.resources());
    let (routes, contents) = proxy.next(Kind::Route).await;
    assert_eq!(contents, ["r2"]);
    // The old cluster stays until the proxy says that it no longer uses it.
    proxy.expect_nothing().await;
    proxy.ack(&routes).await;
    assert_eq!(proxy.next_and_ack(Kind::Cluster).await, ["c-ratings"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn clusters_when_one_is_refused_then_the_others_count_and_it_is_sent_again_once_it_changed() {
    let server = server().await;
    server.configs.set(&shop().with(Kind::Cluster, "bad", "broken").resources());
    let mut proxy = server.whole_proxy().await;
    proxy.ask(Kind::Cluster, &[]).await;
    let (clusters, contents) = proxy.next(Kind::Cluster).await;
    assert_eq!(contents, ["broken", "c-ratings", "c1"]);
    proxy.nack(&clusters, "Error adding/updating cluster(s) bad: no such thing").await;
    proxy.ask(Kind::Endpoints, &["ratings", "reviews"]).await;
    assert_eq!(proxy.next_and_ack(Kind::Endpoints).await, ["e-ratings", "e1"]);
    proxy.expect_nothing().await;
    server.configs.set(&shop().with(Kind::Cluster, "bad", "repaired").resources());
    assert_eq!(proxy.next_and_ack(Kind::Cluster).await, ["c-ratings", "c1", "repaired"]);
}

#[tokio::test]
async fn proxy_when_it_asks_for_more_names_then_gets_those_only() {
    let server = server().await;
    server.configs.set(&shop().resources());
    let mut proxy = server.whole_proxy().await;
    proxy.ask(Kind::Cluster, &[]).await;
    proxy.next_and_ack(Kind::Cluster).await;
    proxy.ask(Kind::Endpoints, &["ratings"]).await;
    assert_eq!(proxy.next_and_ack(Kind::Endpoints).await, ["e-ratings"]);
    proxy.ask(Kind::Endpoints, &["ratings", "reviews", "nothing"]).await;
    assert_eq!(proxy.next_and_ack(Kind::Endpoints).await, ["e1"]);
    proxy.expect_nothing().await;
}

#[tokio::test]
async fn proxy_when_there_is_nothing_of_a_kind_then_gets_an_empty_answer() {
    let server = server().await;
    server.configs.set(&Made::default().resources());
    let mut proxy = server.whole_proxy().await;
    proxy.ask(Kind::Cluster, &[]).await;
    assert!(proxy.next_and_ack(Kind::Cluster).await.is_empty());
    proxy.ask(Kind::Listener, &[]).await;
    assert!(proxy.next_and_ack(Kind::Listener).await.is_empty());
    proxy.expect_nothing().await;
}
