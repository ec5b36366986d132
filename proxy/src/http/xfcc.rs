//! `x-forwarded-client-cert`: what certificates the clients on a request's way had, as Envoy writes it.

use super::{call::Call, headers::Known};
use crate::config::ClientCert;

/// Brings the header into the form that the manager wants.
pub(super) fn tell(call: &mut Call<'_>, mode: ClientCert) {
    match mode {
        ClientCert::AlwaysForwardOnly => {}
        ClientCert::ForwardOnly if call.conn.peer.is_some() => {}
        ClientCert::Sanitize | ClientCert::ForwardOnly => {
            call.request.headers.remove_known(Known::ForwardedClientCert);
        }
    }
}
