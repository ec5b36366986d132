//! HTTP through the proxy.
//!
//! [`h1`] reads and writes HTTP/1 connections, [`pipeline`] is the way of a request, [`body`] is what the two have in common
//! with HTTP/2. Framing is the most attacked code of a proxy: everything ambiguous is refused ([`parse`], [`chunked`]).

mod admit;
mod ahead;
mod attempt;
mod attempted;
pub mod body;
pub mod buffer;
pub mod call;
mod choose;
pub mod chunked;
mod client;
mod conn;
mod connecting;
mod edit;
pub mod filter;
mod forget;
mod framing;
pub mod h1;
pub mod hash;
pub mod head;
pub mod headers;
mod known;
mod limits;
mod local_reply;
mod mirror;
mod outcome;
mod pace;
pub mod parse;
pub mod path;
pub mod pipeline;
pub mod pump;
mod query;
mod raw;
mod recode;
mod redirect;
pub mod reply;
pub mod retry;
mod router;
pub mod rules;
pub(crate) mod target;
mod timeout;
mod trace;
mod tracked;
mod trailing;
pub mod upstream;
mod whole;
mod xfcc;

pub use admit::uuid;
pub use body::{Downstream, Piece, SideError, Upstream};
pub use call::{Call, Tally, grpc_status};
pub use conn::ConnInfo;
pub(crate) use connecting::{aim, connection, server_name, speaks_http2};
pub use head::{BodyLength, RequestHead, ResponseHead, Version};
pub use headers::{Headers, Known};
pub(crate) use pipeline::decimal;
