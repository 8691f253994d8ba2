//! The webhook's certificates: an own CA and a serving certificate, made here, kept in one Secret.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp, Zoned};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

const CA_DAYS: i64 = 3650;
const SERVING_DAYS: i64 = 365;

/// Keys of the Secret.
mod key {
    pub(super) const CA: &str = "ca.crt";
    pub(super) const CA_KEY: &str = "ca.key";
    pub(super) const CA_END: &str = "ca.not-after";
    pub(super) const CERT: &str = "tls.crt";
    pub(super) const KEY: &str = "tls.key";
    pub(super) const END: &str = "tls.not-after";
}

/// Why certificates cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The Secret lacks a part, or the part is not what it should be.
    #[error("the Secret's `{0}` is missing or unreadable")]
    Part(&'static str),
    /// The library refused.
    #[error("making a certificate failed")]
    Make(#[from] rcgen::Error),
    /// The key does not fit.
    #[error("the key of the certificate is not usable")]
    Key(#[from] rustls::Error),
    /// Who trusts the CA does not accept what it is served.
    #[error("the certificate is not accepted for {host} by who trusts that CA")]
    Rejected {
        /// The name that was called.
        host: String,
        /// What is wrong with it: it has ended, is another CA's, is for other names.
        source: rustls::Error,
    },
}

/// Contents of the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle(BTreeMap<String, ByteString>);

impl Bundle {
    /// The contents, as found in the Secret.
    pub(crate) fn from_secret(data: Option<BTreeMap<String, ByteString>>) -> Self {
        Self(data.unwrap_or_default())
    }

    /// The contents, to be written into the Secret.
    pub(crate) fn data(&self) -> &BTreeMap<String, ByteString> {
        &self.0
    }

    /// A new CA and a certificate for `hosts`, both valid from `now`. Clients that still trust the CA of
    /// `previous` go on to be served until they hear of the new one.
    pub(crate) fn make(
        hosts: &[String],
        now: Timestamp,
        previous: Option<&Self>,
    ) -> Result<Self, CertificateError> {
        let key_pair = KeyPair::generate()?;
        let (mut params, end) = params("braid webhook CA", Vec::new(), now, CA_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key_pair)?;
        // Two at most: a bundle must not grow with each renewal.
        let old = previous.and_then(|p| p.text(key::CA).ok()).and_then(first_certificate).unwrap_or_default();
        let mut bundle = Self(BTreeMap::new());
        bundle.put(key::CA, certificate.pem() + &old);
        bundle.put(key::CA_KEY, key_pair.serialize_pem());
        bundle.put(key::CA_END, end.to_string());
        bundle.serve(hosts, now)?;
        Ok(bundle)
    }

    /// What should stand in the Secret at `now`, or `None` when what stands there is good.
    ///
    /// A serving certificate is renewed when a third of its life is left; a CA when it would end before the
    /// certificate that it signs.
    pub(crate) fn renewed(&self, hosts: &[String], now: Timestamp) -> Result<Option<Self>, CertificateError> {
        let good_for = |name, days: i64| {
            self.moment(name).is_some_and(|end| end > now + SignedDuration::from_hours(24 * days))
        };
        if self.text(key::CA_KEY).is_err() || !good_for(key::CA_END, SERVING_DAYS) {
            return Self::make(hosts, now, Some(self)).map(Some);
        }
        let is_trusted = self.ca().is_some_and(|ca| self.is_trusted_by(ca, hosts, now));
        if is_trusted && good_for(key::END, SERVING_DAYS / 3) {
            return Ok(None);
        }
        let mut bundle = self.clone();
        match bundle.serve(hosts, now) {
            Ok(()) => Ok(Some(bundle)),
            // The CA and its key do not fit together.
            Err(_) => Self::make(hosts, now, Some(self)).map(Some),
        }
    }

    /// Whether a client that trusts the certificates in `ca` accepts what this bundle serves at `now`, by whichever of
    /// the names it calls.
    pub(crate) fn is_trusted_by(&self, ca: &ByteString, hosts: &[String], now: Timestamp) -> bool {
        self.verify(ca, hosts, now).is_ok()
    }

    /// As [`Bundle::is_trusted_by`], with the reason.
    ///
    /// # Errors
    /// There is nothing to serve, no CA in `ca`, or the CA's clients reject it.
    pub(crate) fn verify(
        &self,
        ca: &ByteString,
        hosts: &[String],
        now: Timestamp,
    ) -> Result<(), CertificateError> {
        let serving = self.serving()?;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&ca.0).filter_map(Result::ok));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // There is no verifier without a root.
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|_| CertificateError::Part(key::CA))?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        let (first, rest) = (&serving.cert[0], &serving.cert[1..]);
        hosts.iter().try_for_each(|host| {
            let name = ServerName::try_from(host.as_str())
                .map_err(|_| rustls::Error::General("no host name".to_owned()));
            name.and_then(|name| verifier.verify_server_cert(first, rest, &name, &[], now))
                .map(drop)
                .map_err(|source| CertificateError::Rejected { host: host.clone(), source })
        })
    }

    /// What clients have to trust while some are served by this bundle and some still by `others`.
    pub(crate) fn ca_beside<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Option<ByteString> {
        let mut ca = String::from_utf8(self.ca()?.0.clone()).ok()?;
        for pem in others.into_iter().filter_map(|o| o.text(key::CA).ok()).flat_map(certificates) {
            if !ca.contains(pem.trim()) {
                if !ca.ends_with('\n') {
                    ca.push('\n');
                }
                ca.push_str(&pem);
            }
        }
        Some(ByteString(ca.into_bytes()))
    }

    fn serve(&mut self, hosts: &[String], now: Timestamp) -> Result<(), CertificateError> {
        let ca_pem = first_certificate(self.text(key::CA)?).ok_or(CertificateError::Part(key::CA))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(self.text(key::CA_KEY)?)?)?;
        let key_pair = KeyPair::generate()?;
        let (mut params, end) = params("braid webhook", hosts.to_vec(), now, SERVING_DAYS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key_pair, &issuer)?;
        self.put(key::CERT, certificate.pem());
        self.put(key::KEY, key_pair.serialize_pem());
        self.put(key::END, end.to_string());
        Ok(())
    }

    /// What clients have to trust, PEM: one or two certificates where they were made here.
    pub(crate) fn ca(&self) -> Option<&ByteString> {
        let is_readable = |pem: &&ByteString| CertificateDer::pem_slice_iter(&pem.0).any(|c| c.is_ok());
        self.0.get(key::CA).filter(is_readable)
    }

    /// Certificate and key for the TLS server.
    pub(crate) fn serving(&self) -> Result<Arc<CertifiedKey>, CertificateError> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(self.text(key::CERT)?.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|_| CertificateError::Part(key::CERT))?;
        if chain.is_empty() {
            return Err(CertificateError::Part(key::CERT));
        }
        let private = PrivateKeyDer::from_pem_slice(self.text(key::KEY)?.as_bytes())
            .map_err(|_| CertificateError::Part(key::KEY))?;
        let certified = CertifiedKey::new(chain, any_supported_type(&private)?);
        certified.keys_match()?;
        Ok(Arc::new(certified))
    }

    fn put(&mut self, name: &str, text: String) {
        self.0.insert(name.to_owned(), ByteString(text.into_bytes()));
    }

    fn text(&self, name: &'static str) -> Result<&str, CertificateError> {
        self.0.get(name).and_then(|b| std::str::from_utf8(&b.0).ok()).ok_or(CertificateError::Part(name))
    }

    fn moment(&self, name: &'static str) -> Option<Timestamp> {
        self.text(name).ok()?.parse().ok()
    }
}

/// Each certificate of a PEM text, with a line break at its end.
fn certificates(pem: &str) -> impl Iterator<Item = String> {
    const END: &str = "-----END CERTIFICATE-----";
    let parts = pem.split_inclusive(END).filter(|part| part.ends_with(END));
    parts.map(|part| format!("{}\n", part.trim_start()))
}

fn first_certificate(pem: &str) -> Option<String> {
    certificates(pem).next()
}

/// Parameters of a certificate that is valid from the day before `now`, as clocks differ, and its end.
fn params(
    name: &str,
    hosts: Vec<String>,
    now: Timestamp,
    days: i64,
) -> Result<(CertificateParams, Timestamp), CertificateError> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let day = |t: Timestamp| {
        let date = Zoned::new(t, jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    let end = now + SignedDuration::from_hours(24 * days);
    params.not_before = day(now - SignedDuration::from_hours(24));
    params.not_after = day(end);
    // Certificates end at midnight of their last day.
    Ok((params, end - SignedDuration::from_hours(24)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> Vec<String> {
        vec!["braid-webhook.braid-system.svc".into(), "braid-webhook.braid-system.svc.cluster.local".into()]
    }

    fn start() -> Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn later(days: i64) -> Timestamp {
        start() + SignedDuration::from_hours(24 * days)
    }

    #[test]
    fn a_new_bundle_serves_and_needs_nothing() {
        let bundle = Bundle::make(&hosts(), start(), None).unwrap();
        bundle.serving().unwrap();
        assert_eq!(bundle.renewed(&hosts(), later(200)).unwrap(), None);
    }

    #[test]
    fn the_serving_certificate_is_renewed_in_time_under_the_same_ca() {
        let bundle = Bundle::make(&hosts(), start(), None).unwrap();
        let renewed = bundle.renewed(&hosts(), later(250)).unwrap().expect("a third is left");
        assert_eq!(renewed.ca(), bundle.ca());
        assert_ne!(renewed.data()[key::CERT], bundle.data()[key::CERT]);
        renewed.serving().unwrap();
        assert_eq!(renewed.renewed(&hosts(), later(251)).unwrap(), None);
    }

    #[test]
    fn a_new_ca_stands_beside_the_old_one_and_never_more_than_two() {
        let first = Bundle::make(&hosts(), start(), None).unwrap();
        let second = first.renewed(&hosts(), later(3300)).unwrap().unwrap();
        let old = first.text(key::CA).unwrap();
        assert!(second.text(key::CA).unwrap().contains(old.trim()));
        let third = second.renewed(&hosts(), later(6600)).unwrap().unwrap();
        assert_eq!(third.text(key::CA).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
        assert!(!third.text(key::CA).unwrap().contains(old.trim()));
        third.serving().unwrap();
    }

    #[test]
    fn a_damaged_bundle_is_made_anew() {
        let good = Bundle::make(&hosts(), start(), None).unwrap();
        for part in [key::CA_KEY, key::CERT, key::KEY, key::CA_END] {
            let mut broken = good.clone();
            broken.0.remove(part);
            let healed = broken.renewed(&hosts(), later(1)).unwrap().expect(part);
            healed.serving().unwrap();
        }
        let mut mixed = good.clone();
        let other = Bundle::make(&hosts(), start(), None).unwrap();
        mixed.0.insert(key::KEY.into(), other.data()[key::KEY].clone());
        assert!(mixed.renewed(&hosts(), later(1)).unwrap().is_some(), "a key of another certificate");
        assert!(Bundle::from_secret(None).renewed(&hosts(), start()).unwrap().is_some());
    }

    #[test]
    fn a_client_that_trusts_the_ca_accepts_the_certificate() {
        let bundle = Bundle::make(&hosts(), start(), None).unwrap();
        let ca = bundle.ca().unwrap();
        assert!(bundle.is_trusted_by(ca, &hosts(), later(1)));
        assert!(!bundle.is_trusted_by(ca, &["other.braid-system.svc".to_owned()], later(1)));
        assert!(!bundle.is_trusted_by(ca, &hosts(), later(366)), "it has ended");
        assert!(!bundle.is_trusted_by(&ByteString(Vec::new()), &hosts(), later(1)));
        assert!(!bundle.is_trusted_by(&ByteString(b"no certificate".to_vec()), &hosts(), later(1)));
    }

    #[test]
    fn why_a_certificate_is_not_accepted_is_said() {
        let bundle = Bundle::make(&hosts(), start(), None).unwrap();
        let why = |ca: &ByteString, days| match bundle.verify(ca, &hosts()[..1], later(days)).unwrap_err() {
            CertificateError::Rejected { host, source } => format!("{host}: {source}"),
            other => other.to_string(),
        };
        let own = bundle.ca().unwrap();
        assert!(why(own, 366).starts_with("braid-webhook.braid-system.svc: "), "{}", why(own, 366));
        assert!(why(own, 366).contains("expired"), "{}", why(own, 366));
        let other = Bundle::make(&hosts(), start(), None).unwrap();
        assert_ne!(why(other.ca().unwrap(), 1), why(own, 366));
        assert!(why(&ByteString(Vec::new()), 1).contains("ca.crt"));
    }

    #[test]
    fn a_certificate_that_the_ca_did_not_sign_is_replaced() {
        let (good, other) =
            (Bundle::make(&hosts(), start(), None).unwrap(), Bundle::make(&hosts(), start(), None).unwrap());
        let mut swapped = good.clone();
        for part in [key::CERT, key::KEY] {
            swapped.0.insert(part.into(), other.data()[part].clone());
        }
        let healed = swapped.renewed(&hosts(), later(1)).unwrap().expect("another CA's");
        assert_eq!(healed.ca(), good.ca());
        assert!(healed.is_trusted_by(good.ca().unwrap(), &hosts(), later(1)));
    }

    #[test]
    fn while_certificates_change_both_are_trusted() {
        let old = Bundle::make(&hosts(), start(), None).unwrap();
        let new = Bundle::make(&hosts(), start(), None).unwrap();
        let both = new.ca_beside([&old]).unwrap();
        for bundle in [&old, &new] {
            assert!(bundle.is_trusted_by(&both, &hosts(), later(1)));
        }
        assert_eq!(new.ca_beside([&new]).as_ref(), new.ca());
        let third = Bundle::make(&hosts(), start(), None).unwrap();
        let all = new.ca_beside([&old, &third, &old]).unwrap();
        assert!(old.is_trusted_by(&all, &hosts(), later(1)) && third.is_trusted_by(&all, &hosts(), later(1)));
        assert_eq!(String::from_utf8(all.0).unwrap().matches("BEGIN CERTIFICATE").count(), 3);
        // Made after the old one, it names the old CA itself.
        let next = Bundle::make(&hosts(), start(), Some(&old)).unwrap();
        assert_eq!(next.ca_beside([&old]).as_ref(), next.ca());
        assert!(old.is_trusted_by(next.ca().unwrap(), &hosts(), later(1)));
    }
}
