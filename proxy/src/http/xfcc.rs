//! `x-forwarded-client-cert`: what certificates the clients on a request's way had, as Envoy writes it.

use super::{call::Call, conn::ConnInfo, headers::Known};
use crate::{
    config::{CertDetails, ClientCert},
    tls::{
        TlsInfo,
        facts::{CertificateFacts, hex, pem, url_pem},
    },
};
use serde::Serialize;
use std::rc::Rc;

/// The header's name.
const NAME: &str = "x-forwarded-client-cert";

/// Brings the header into the form that the manager wants.
pub(super) fn tell(call: &mut Call<'_>, mode: ClientCert) {
    let certified = || call.conn.tls.as_ref().is_some_and(|tls| !tls.chain().is_empty());
    match mode {
        ClientCert::AlwaysForwardOnly => {}
        ClientCert::ForwardOnly if certified() => {}
        ClientCert::AppendForward(details) if certified() => {
            let value = match before(call) {
                None => alone(&element(call, details), details.json).into_bytes(),
                Some(before) => appended(&before, |json| element(call, CertDetails { json, ..details })),
            };
            call.request.headers.set(NAME, &value);
        }
        ClientCert::SanitizeSet(details) if certified() => {
            let value = alone(&element(call, details), details.json);
            call.request.headers.set(NAME, value.as_bytes());
        }
        _ => call.request.headers.remove_known(Known::ForwardedClientCert),
    }
}

/// What proxies before have told.
fn before(call: &Call<'_>) -> Option<Vec<u8>> {
    let lines: Vec<&[u8]> = call.request.headers.known_values(Known::ForwardedClientCert).collect();
    Some(lines.join(&b","[..])).filter(|before| !before.is_empty())
}

/// The header of whoever is the first to tell.
fn alone(element: &str, json: bool) -> String {
    if json { format!("[{element}]") } else { element.to_owned() }
}

/// The header with one more element, which is written as those before it are: an array of JSON goes on as one.
fn appended(before: &[u8], element: impl FnOnce(bool) -> Rc<str>) -> Vec<u8> {
    let array = before.trim_ascii().strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    match array {
        Some(inside) if inside.trim_ascii().is_empty() => format!("[{}]", element(true)).into_bytes(),
        Some(inside) => [b"[", inside, b",", element(true).as_bytes(), b"]"].concat(),
        None => [before, b",", element(false).as_bytes()].concat(),
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
            let write = if details.json { json } else { write };
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
    if details.issuer {
        parts.push(format!("Issuer=\"{}\"", peer.issuer));
    }
    printable(&parts.join(";"))
}

/// A certificate may say anything; a header may not.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// An element as JSON: what is not wanted or not there is left out.
#[derive(Serialize)]
struct Element<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    by: &'a [Box<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    uri: &'a [Box<str>],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    dns: &'a [Box<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<&'a str>,
}

fn json(tls: &TlsInfo, own: &[Box<str>], details: CertDetails) -> String {
    let peer = tls.peer();
    let leaf = tls.chain().first().filter(|_| details.cert);
    let names =
        |wanted: bool, names: fn(&CertificateFacts) -> &[Box<str>]| peer.filter(|_| wanted).map_or(&[][..], names);
    let element = Element {
        by: own,
        hash: peer.map(|peer| hex(&peer.sha256)),
        cert: leaf.map(pem),
        chain: details.chain.then(|| tls.chain().iter().map(pem).collect()),
        subject: peer.filter(|_| details.subject).map(|peer| &*peer.subject),
        uri: names(details.uri, |peer| &peer.uris),
        dns: names(details.dns, |peer| &peer.dns),
        issuer: peer.filter(|_| details.issuer).map(|peer| &*peer.issuer),
    };
    // Texts and lists of them can always be written.
    printable(&serde_json::to_string(&element).unwrap_or_else(|_| "{}".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_when_others_have_told_before_then_it_is_written_as_theirs() {
        let element = |json: bool| -> Rc<str> { if json { "{}" } else { "By=b" }.into() };
        let appended = |before: &str| String::from_utf8(super::appended(before.as_bytes(), element)).unwrap();
        assert_eq!(appended("By=a;Hash=1"), "By=a;Hash=1,By=b");
        assert_eq!(appended("[{\"hash\":\"1\"}]"), "[{\"hash\":\"1\"},{}]");
        assert_eq!(appended(" [1, 2 ] "), "[1, 2 ,{}]");
        assert_eq!(appended("[ ]"), "[{}]");
        assert_eq!(appended("[{}"), "[{},By=b", "no array");
        assert_eq!((&*alone("x", false), &*alone("x", true)), ("x", "[x]"));
    }
}
