//! `x-forwarded-client-cert`: what certificates the clients on a request's way had, as Envoy writes it.

use super::{call::Call, conn::ConnInfo, headers::Known};
use crate::{
    config::{CertDetails, ClientCert},
    tls::{
        TlsInfo,
        facts::{hex, url_pem},
    },
};
use std::rc::Rc;

/// Brings the header into the form that the manager wants.
pub(super) fn tell(call: &mut Call<'_>, mode: ClientCert) {
    let certified = || call.conn.tls.as_ref().is_some_and(|tls| !tls.chain().is_empty());
    match mode {
        ClientCert::AlwaysForwardOnly => {}
        ClientCert::ForwardOnly if certified() => {}
        ClientCert::AppendForward(details) if certified() => {
            let element = element(call, details);
            call.request.headers.append_to("x-forwarded-client-cert", b",", element.as_bytes());
        }
        ClientCert::SanitizeSet(details) if certified() => {
            let element = element(call, details);
            call.request.headers.set("x-forwarded-client-cert", element.as_bytes());
        }
        _ => call.request.headers.remove_known(Known::ForwardedClientCert),
    }
}

/// What is told about the client of this connection; made once a connection.
fn element(call: &Call<'_>, details: CertDetails) -> Rc<str> {
    let conn: &ConnInfo = call.conn;
    let mut known = conn.client_cert.borrow_mut();
    match &*known {
        Some((of, element)) if *of == details => element.clone(),
        _ => {
            let mesh = call.worker.credentials().get();
            let own = match conn.tls.as_ref().and_then(|tls| tls.local.as_ref()) {
                Some(local) => local.facts().uris.to_vec(),
                None => mesh.iter().map(|mesh| mesh.identity().uri().into()).collect(),
            };
            let text: Rc<str> = conn.tls.as_ref().map_or_else(String::new, |tls| write(tls, &own, details)).into();
            *known = Some((details, text.clone()));
            text
        }
    }
}

fn write(tls: &TlsInfo, own: &[Box<str>], details: CertDetails) -> String {
    let mut parts: Vec<String> = own.iter().map(|uri| format!("By={uri}")).collect();
    let Some(peer) = tls.peer() else { return parts.join(";") };
    parts.push(format!("Hash={}", hex(&peer.sha256)));
    if let (true, Some(leaf)) = (details.cert, tls.chain().first()) {
        parts.push(format!("Cert=\"{}\"", url_pem(leaf)));
    }
    if details.chain {
        parts.push(format!("Chain=\"{}\"", tls.chain().iter().map(url_pem).collect::<String>()));
    }
    if details.subject {
        // RFC 2253 has escaped its quotes already: to do it again would end the value early.
        parts.push(format!("Subject=\"{}\"", peer.subject));
    }
    if details.uri {
        match peer.uris.as_slice() {
            [] => parts.push("URI=".to_owned()),
            uris => parts.extend(uris.iter().map(|uri| format!("URI={uri}"))),
        }
    }
    if details.dns {
        parts.extend(peer.dns.iter().map(|name| format!("DNS={name}")));
    }
    let text = parts.join(";");
    // A certificate may say anything; a header may not.
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}
