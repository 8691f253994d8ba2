use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde_json::json;

use super::*;

const HOST: &str = "braid-webhook.braid-system.svc";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

fn later(days: i64) -> Timestamp {
    now() + SignedDuration::from_hours(24 * days)
}

fn bundle() -> Bundle {
    Bundle::make(&[HOST.to_owned()], now(), None).unwrap()
}

/// The bundle as cert-manager would write it, without or with other parts.
fn external(bundle: &Bundle, parts: &[(&str, Option<&ByteString>)]) -> Bundle {
    let mut data: BTreeMap<String, ByteString> =
        ["ca.crt", "tls.crt", "tls.key"].map(|key| (key.to_owned(), bundle.data()[key].clone())).into();
    for (key, part) in parts {
        data.remove(*key);
        data.extend(part.map(|part| ((*key).to_owned(), part.clone())));
    }
    Bundle::from_secret(Some(data))
}

fn caller(bundle: Option<&Bundle>, injection: Option<&'static str>) -> Caller {
    Caller { kind: VALIDATING, ca: bundle.and_then(Bundle::ca).cloned(), injection }
}

#[test]
fn objects_are_told_by_their_marks() {
    let meta = |value: serde_json::Value| serde_json::from_value::<ObjectMeta>(value).unwrap();
    let name = json!({"annotations": {"cert-manager.io/certificate-name": "braid-webhook"}});
    let label = json!({"labels": {"controller.cert-manager.io/fao": "true"}});
    for theirs in [name, label] {
        assert_eq!(Custody::of(&meta(theirs)), Custody::CertManager);
    }
    let empty = json!({"annotations": {"cert-manager.io/certificate-name": ""}});
    let off = json!({"labels": {"controller.cert-manager.io/fao": "false"}});
    for ours in [json!({}), empty, off, json!({"annotations": {"cert-manager.io/issuer-name": "x"}})] {
        assert_eq!(Custody::of(&meta(ours)), Custody::Ours);
    }
    for (value, wanted) in [
        (json!({"cert-manager.io/inject-ca-from": "a/b"}), Some("cert-manager.io/inject-ca-from")),
        (
            json!({"cert-manager.io/inject-ca-from-secret": "a/b"}),
            Some("cert-manager.io/inject-ca-from-secret"),
        ),
        (json!({"cert-manager.io/inject-ca-from": ""}), None),
        (json!({}), None),
    ] {
        assert_eq!(injection(&meta(json!({"annotations": value}))), wanted);
    }
    assert_eq!(injection(&ObjectMeta::default()), None);
}

#[test]
fn another_certificate_waits_until_no_call_fails_for_it() {
    let (old, new, other) = (bundle(), bundle(), bundle());
    let both = Caller { kind: VALIDATING, ca: new.ca_beside([&old]), injection: None };
    let (for_old, for_new, for_none) =
        (caller(Some(&old), None), caller(Some(&new), None), caller(Some(&other), None));
    let when = |callers: &[&Caller]| {
        let callers: Vec<Caller> = callers.iter().map(|c| (*c).clone()).collect();
        turn(&callers, &new, Some(&old), HOST, now())
    };
    assert_eq!(when(&[&for_old, &for_old, &for_old]), Turn::Wait);
    assert_eq!(when(&[&both, &both, &for_old]), Turn::Wait, "one would fail");
    assert_eq!(when(&[&both, &both, &both]), Turn::Settled);
    assert_eq!(when(&[]), Turn::Settled, "nobody calls");
    // An injector replaces the CA instead of adding to it.
    assert_eq!(when(&[&for_new, &for_new, &for_new]), Turn::AtOnce);
    assert_eq!(when(&[&for_new, &for_new, &for_old]), Turn::AtOnce, "two fail now, one then");
    assert_eq!(when(&[&for_new, &for_old]), Turn::Wait, "as bad as before");
    assert_eq!(when(&[&for_none, &for_none]), Turn::Wait);
    // What has ended is accepted by nobody.
    assert_eq!(turn(std::slice::from_ref(&for_old), &old, None, HOST, later(400)), Turn::Wait);
    assert_eq!(turn(std::slice::from_ref(&for_new), &new, None, HOST, now()), Turn::AtOnce);
    let nonsense = external(&new, &[("tls.key", other.data().get("tls.key"))]);
    assert_eq!(turn(&[], &nonsense, Some(&old), HOST, now()), Turn::Wait);
}

#[test]
fn a_missing_secret_is_waited_for_where_somebody_else_makes_it() {
    let injection = Some("cert-manager.io/inject-ca-from");
    assert_eq!(awaited(&[caller(None, None), caller(None, None)]), None);
    let concern = awaited(&[caller(None, None), caller(None, injection)]).unwrap();
    assert_eq!((concern.reason(), concern.configuration()), ("CertificateMissing", Some(VALIDATING)));
    let sentence = concern.to_string();
    let parts = ["braid-webhook-tls", "cert-manager.io/inject-ca-from", "remove the annotation"];
    assert!(parts.iter().all(|part| sentence.contains(part)), "{sentence}");
}

#[test]
fn what_cert_manager_wrote_is_judged_with_a_remedy() {
    let (good, other) = (bundle(), bundle());
    let check = |bundle: &Bundle, callers: &[Caller], at: Timestamp, wanted: Option<(&str, &str)>| {
        let found = concern(Custody::CertManager, bundle, callers, HOST, at);
        let Some((reason, part)) = wanted else { return assert_eq!(found, None) };
        let found = found.unwrap_or_else(|| panic!("no {reason}"));
        assert_eq!((found.reason(), found.configuration()), (reason, None));
        let sentence = found.to_string();
        assert!(sentence.contains(part) && sentence.contains("braid-webhook-tls"), "{sentence}");
        // The controller's own are made anew without a word.
        assert_eq!(concern(Custody::Ours, bundle, callers, HOST, at), None);
    };
    let (mine, nobodys) = ([caller(Some(&good), None)], [caller(None, None)]);
    check(&external(&good, &[]), &mine, now(), None);
    // The leader is about to tell of the CA.
    check(&external(&good, &[]), &nobodys, now(), None);
    for part in ["tls.crt", "tls.key"] {
        check(&external(&good, &[(part, None)]), &mine, now(), Some(("CertificateUnusable", part)));
    }
    let foreign_key = external(&good, &[("tls.key", other.data().get("tls.key"))]);
    check(&foreign_key, &mine, now(), Some(("CertificateUnusable", "the key of the certificate")));
    for nothing in [None, Some(&ByteString(Vec::new())), Some(&ByteString(b"nonsense".to_vec()))] {
        let without = external(&good, &[("ca.crt", nothing)]);
        check(&without, &nobodys, now(), Some(("AuthorityMissing", "clientConfig.caBundle")));
        check(&without, &mine, now(), None);
    }
    let foreign_ca = external(&good, &[("ca.crt", other.ca())]);
    check(&foreign_ca, &nobodys, now(), Some(("CertificateRejected", "BadSignature")));
    check(&external(&good, &[]), &mine, later(400), Some(("CertificateRejected", "expired")));
    let elsewhere = Bundle::make(&["elsewhere.svc".to_owned()], now(), None).unwrap();
    check(&external(&elsewhere, &[]), &nobodys, now(), Some(("CertificateRejected", HOST)));
}

#[test]
fn an_injector_that_does_not_follow_is_named() {
    let (new, old) = (bundle(), bundle());
    let injection = Some("cert-manager.io/inject-ca-from-secret");
    for custody in [Custody::Ours, Custody::CertManager] {
        let callers = [caller(Some(&new), None), caller(Some(&old), injection)];
        let found = concern(custody, &external(&new, &[]), &callers, HOST, now()).unwrap();
        assert_eq!((found.reason(), found.configuration()), ("AuthorityNotInjected", Some(VALIDATING)));
        assert!(found.to_string().contains("inject-ca-from-secret"), "{found}");
        let callers = [caller(Some(&new), None), caller(Some(&new), injection)];
        assert_eq!(concern(custody, &external(&new, &[]), &callers, HOST, now()), None);
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_lasts_is_told_and_that_again() {
    let mut standing = Standing::default();
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    assert_eq!(standing.note(Some(Concern::NoAuthority), at(0)), None);
    assert_eq!(standing.due_at(), Some(at(5)));
    assert_eq!(standing.note(None, at(4)), None);
    assert_eq!((standing.due_at(), standing.note(Some(Concern::NoAuthority), at(6))), (None, None));
    let due = |is_new| Some(Due { concern: &Concern::NoAuthority, is_new });
    assert_eq!(standing.note(Some(Concern::NoAuthority), at(11)), due(true));
    assert_eq!(standing.due_at(), None);
    assert_eq!(standing.note(Some(Concern::NoAuthority), at(600)), due(false));
    assert_eq!(standing.note(Some(Concern::Unusable { why: "x".to_owned() }), at(601)), None);
    assert_eq!(standing.due_at(), Some(at(606)));
}
