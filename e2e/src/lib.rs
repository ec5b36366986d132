//! The local cluster, scenario tests on it, benchmarks against peers.
