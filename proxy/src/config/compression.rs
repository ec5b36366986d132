//! Compression of bodies by filters.

use crate::telemetry::counters::{AcceptStats, CompressorStats, DecompressorStats};
use std::sync::Arc;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// As statistics name it.
    pub fn stat_name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "brotli",
            Self::Zstd => "zstd",
        }
    }

    /// As `content-encoding` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// With this level, 1 to 9, and this logarithm of the window, 9 to 15.
    Gzip(u32, u8),
    /// With this quality, 0 to 11, and this logarithm of the window, 10 to 24.
    Brotli(u32, u32),
    /// With this level, 1 to 22, and with a checksum or without.
    Zstd(i32, bool),
}

impl Library {
    /// The coding that it makes.
    pub fn coding(self) -> Coding {
        match self {
            Self::Gzip(..) => Coding::Gzip,
            Self::Brotli(..) => Coding::Brotli,
            Self::Zstd(..) => Coding::Zstd,
        }
    }
}

/// Which bodies of one direction are compressed.
#[derive(Debug)]
pub struct Compressible {
    /// It works here, unless a route says otherwise.
    pub enabled: bool,
    /// Bytes that a body must promise at least; default 30.
    pub min_length: u64,
    /// Content types, without parameters; none is all.
    pub types: Vec<Box<str>>,
}

/// Compresses bodies for those who accept that.
#[derive(Debug)]
pub struct Compressor {
    /// How.
    pub library: Library,
    /// Where clients like several codings alike, this one is taken.
    pub choose_first: bool,
    /// What became of requests, and of responses.
    pub stats: [CompressorStats; 2],
    /// What clients accepted.
    pub accepted: AcceptStats,
    /// Which requests, if any.
    pub requests: Option<Compressible>,
    /// Which responses.
    pub responses: Compressible,
    /// Not those with an `etag`.
    pub spare_etags: bool,
    /// A strong `etag` becomes a weak one; otherwise it goes.
    pub weaken_etags: bool,
    /// Endpoints are not told what clients accept.
    pub remove_accept_encoding: bool,
    /// Not those with one of these statuses.
    pub spared_statuses: Vec<u16>,
}

/// What a route says about a compressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressorSetting {
    /// Responses are compressed.
    pub responses: bool,
    /// Replaces [`Compressor::remove_accept_encoding`].
    pub remove_accept_encoding: Option<bool>,
}

/// Decompresses bodies.
#[derive(Debug)]
pub struct Decompressor {
    /// Of this coding.
    pub coding: Coding,
    /// Its library's name, under which trailers tell of what was decompressed.
    pub name: Arc<str>,
    /// What became of requests, and of responses.
    pub stats: [DecompressorStats; 2],
    /// A body may become so many times as long as it came; more ends it. Default 100.
    pub max_ratio: u32,
    /// Requests; `None` leaves them as they are, `Some(true)` also where `cache-control` says `no-transform`.
    pub requests: Option<bool>,
    /// Responses, likewise.
    pub responses: Option<bool>,
    /// Endpoints are told that the coding is accepted.
    pub advertise: bool,
}
