//! Conversions of transport sockets and secrets that bring certificates of their own.

use super::{Context, Refused, secret, tls};
use crate::config::{ClientTls, ServerTls};
use crate::tls::own_tests::Ca;
use base64::Engine as _;
use serde_json::{Value, json};
use std::sync::Arc;

const PREFIX: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

fn socket(kind: &str, mut body: Value) -> Value {
    body["@type"] = json!(format!("{PREFIX}.{kind}"));
    json!({"name": "envoy.transport_sockets.tls", "typed_config": body})
}

fn server(context: &mut Context, body: Value) -> Result<Arc<ServerTls>, Refused> {
    let socket = leno_xds::json::from_value(&socket("DownstreamTlsContext", body)).unwrap();
    Ok(tls::server(context, Some(socket))?.unwrap())
}

fn client(context: &mut Context, body: Value) -> Result<Arc<ClientTls>, Refused> {
    let socket = leno_xds::json::from_value(&socket("UpstreamTlsContext", body)).unwrap();
    Ok(tls::client(context, Some(socket))?.unwrap())
}

fn certificate() -> Value {
    let (chain, key) = Ca::new("ca").leaf(&["a.example"], -1..1);
    json!({"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}})
}

fn take_secret(context: &mut Context, name: &str, mut body: Value) -> Result<(), Refused> {
    body["@type"] = json!(format!("{PREFIX}.Secret"));
    body["name"] = json!(name);
    let any: prost_types::Any = leno_xds::json::from_value(&body).unwrap();
    secret::secret(context, name, &any)
}

#[test]
fn server_with_everything_that_is_supported_is_converted() {
    let mut context = Context::new("");
    let ca = Ca::new("ca").pem();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, &ca).unwrap();
    let body = json!({
        "require_client_certificate": true,
        "prefer_client_ciphers": true,
        "full_scan_certs_on_sni_mismatch": true,
        "disable_stateless_session_resumption": true,
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
                "cipher_suites": ["ECDHE-ECDSA-AES128-GCM-SHA256", "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]"],
                "ecdh_curves": ["X25519", "P-256"]
            },
            "tls_certificates": [certificate(), certificate()],
            "validation_context": {
                "trusted_ca": {"filename": file.to_str().unwrap()},
                "verify_certificate_hash": ["DF:".repeat(31) + "6f"],
                "verify_certificate_spki": [base64::engine::general_purpose::STANDARD.encode([7u8; 32])],
                "match_typed_subject_alt_names": [
                    {"san_type": "DNS", "matcher": {"exact": "a"}}, {"san_type": "URI", "matcher": {"prefix": "spiffe://"}},
                    {"san_type": "EMAIL", "matcher": {"suffix": "@b"}}, {"san_type": "IP_ADDRESS", "matcher": {"contains": "1"}},
                    {"san_type": "DNS", "matcher": {"safe_regex": {"regex": "a+"}}}
                ],
                "allow_expired_certificate": true,
                "trust_chain_verification": "ACCEPT_UNTRUSTED",
                "max_verify_depth": 2
            }
        }
    });
    let made = server(&mut context, body.clone()).unwrap();
    let ServerTls::Own(first) = &*made else { panic!("its own") };
    assert_eq!(first.secrets().count(), 0);
    // The same again is the same context, and keeps its sessions; with another root in the file it is another one.
    let again = server(&mut context, body.clone()).unwrap();
    assert!(matches!(&*again, ServerTls::Own(again) if Arc::ptr_eq(again, first)));
    std::fs::write(&file, Ca::new("ca").pem()).unwrap();
    let other = server(&mut context, body).unwrap();
    assert!(matches!(&*other, ServerTls::Own(other) if !Arc::ptr_eq(other, first)));
}

#[test]
fn secrets_when_named_then_they_are_waited_for_and_taken_by_any_name() {
    let mut context = Context::new("");
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let made = server(&mut context, json!({"common_tls_context": {
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ads}, {"name": "static", "sds_config": ads}],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "a"}}]},
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": ads}
        }
    }}))
    .unwrap();
    assert_eq!(made.secrets(), ["default", "static", "ROOTCA"]);
    assert_eq!(context.secrets.used().len(), 3);
    take_secret(&mut context, "default", json!({"tls_certificate": certificate()})).unwrap();
    take_secret(
        &mut context,
        "ROOTCA",
        json!({"validation_context": {"trusted_ca": {"inline_string": Ca::new("ca").pem()}}}),
    )
    .unwrap();
    assert!(context.secrets.has("default") && context.secrets.has("ROOTCA") && !context.secrets.has("static"));
    let refused = take_secret(&mut context, "default", json!({"tls_certificate": {}})).unwrap_err();
    assert_eq!(refused.field, "tls_certificate.certificate_chain");
    assert!(context.secrets.has("default"), "the last good one stays");
    drop(made);
    assert!(context.secrets.used().is_empty());
}

#[test]
fn mesh_when_its_secrets_are_named_then_they_are_its_own_and_others_are_others() {
    let mut context = Context::new("cluster.local");
    let mesh = client(
        &mut context,
        json!({"common_tls_context": {
            "tls_certificate_sds_secret_configs": [{"name": "default"}],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": "spiffe://cluster.local/ns/a/sa/b"}}
                ]},
                "validation_context_sds_secret_config": {"name": "ROOTCA"}
            }
        }}),
    );
    assert!(matches!(&*mesh.unwrap(), ClientTls::Mesh(_)));
    let other = client(
        &mut context,
        json!({"sni": "a.example", "auto_sni_san_validation": true, "common_tls_context": {
            "validation_context": {"trusted_ca": {"inline_string": Ca::new("ca").pem()}}
        }}),
    );
    assert!(matches!(&*other.unwrap(), ClientTls::Own(own) if own.settings().match_server_name));
    let gateway = server(&mut context, json!({"common_tls_context": {"tls_certificates": [certificate()]}}));
    assert!(matches!(&*gateway.unwrap(), ServerTls::Own(_)));
}

#[test]
fn context_with_something_unsupported_is_refused_by_its_path() {
    let within = |mut common: Value| {
        if common.get("tls_certificates").is_none() {
            common["tls_certificates"] = json!([certificate()]);
        }
        json!({"common_tls_context": common})
    };
    for (body, field) in [
        (
            within(json!({"tls_params": {"cipher_suites": ["AES128-SHA"]}})),
            "common_tls_context.tls_params.cipher_suites[0]",
        ),
        (within(json!({"tls_params": {"ecdh_curves": ["P-521"]}})), "common_tls_context.tls_params.ecdh_curves[0]"),
        (
            within(json!({"tls_params": {"tls_minimum_protocol_version": "TLSv1_0"}})),
            "common_tls_context.tls_params.tls_minimum_protocol_version",
        ),
        (
            within(json!({"tls_params": {"signature_algorithms": ["rsa_pkcs1_sha256"]}})),
            "common_tls_context.tls_params.signature_algorithms",
        ),
        (
            within(json!({"validation_context": {"match_typed_subject_alt_names": [
                {"san_type": "DNS", "matcher": {"exact": "a"}}
            ]}})),
            "common_tls_context.validation_context.trusted_ca",
        ),
        (
            within(json!({"validation_context": {"verify_certificate_hash": ["abc"]}})),
            "common_tls_context.validation_context.verify_certificate_hash[0]",
        ),
        (
            within(json!({"validation_context": {"trusted_ca": {"filename": "/nowhere"}}})),
            "common_tls_context.validation_context.trusted_ca.filename",
        ),
        (
            within(json!({"tls_certificates": [{"certificate_chain": {"inline_string": "x"}}]})),
            "common_tls_context.tls_certificates[0].private_key",
        ),
        (json!({"common_tls_context": {}}), "common_tls_context.tls_certificates"),
        (
            within(
                json!({"tls_certificate_sds_secret_configs": [{"name": "a", "sds_config": {"api_config_source": {"api_type": "REST"}}}]}),
            ),
            "common_tls_context.tls_certificate_sds_secret_configs[0].sds_config.api_config_source.api_type",
        ),
        (
            within(json!({"tls_certificate_sds_secret_configs": [{"name": "nobody sends it"}]})),
            "common_tls_context.tls_certificate_sds_secret_configs[0].name",
        ),
        (
            json!({"ocsp_staple_policy": "MUST_STAPLE", "common_tls_context": {"tls_certificates": [certificate()]}}),
            "ocsp_staple_policy",
        ),
    ] {
        let refused = server(&mut Context::new(""), body).unwrap_err();
        assert_eq!(refused.field, format!("typed_config.{field}"), "{refused}");
    }
    let refused = client(&mut Context::new(""), json!({"sni": "not a name"})).unwrap_err();
    assert_eq!(refused.field, "typed_config.sni");
}
