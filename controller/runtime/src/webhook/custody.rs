//! Who keeps the webhook's certificates, when another one is served, and what somebody has to be told of. Pure: what the
//! watches have seen comes in, what to do comes out.
//!
//! The Secret is Braid's own, or one that cert-manager writes; the CA in a webhook configuration is written by the
//! controller, or by cert-manager's CA injector where the configuration asks for it. Each of the three objects is judged by
//! its own marks, so that one after the other can change hands.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::time::Instant;

use super::certificate::Bundle;

/// Name of the Secret with the certificates.
pub(super) const SECRET: &str = "braid-webhook-tls";
/// Name of both webhook configurations.
pub(super) const CONFIGURATION: &str = "braid";

/// On a Secret that cert-manager writes: the name of its Certificate.
const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";
/// Label of the Secrets that cert-manager looks at ("for attention of").
const FOR_ATTENTION: &str = "controller.cert-manager.io/fao";
/// Annotations by which a webhook configuration asks the CA injector for its `caBundle`.
const INJECTIONS: [&str; 3] = [
    "cert-manager.io/inject-ca-from",
    "cert-manager.io/inject-ca-from-secret",
    "cert-manager.io/inject-apiserver-ca",
];

/// How long something must be wrong before somebody is told: what changes hands is wrong for moments.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Who writes the Secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Custody {
    /// The controller.
    Ours,
    /// cert-manager: it is read only.
    CertManager,
}

impl Custody {
    /// By the marks on a Secret.
    pub(super) fn of(secret: &ObjectMeta) -> Self {
        let has = |map: &Option<std::collections::BTreeMap<String, String>>, key: &str| {
            map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
        };
        let certificate = has(&secret.annotations, CERTIFICATE_NAME);
        if certificate.is_empty() && has(&secret.labels, FOR_ATTENTION) != "true" {
            return Self::Ours;
        }
        Self::CertManager
    }
}

/// The annotation that gives a configuration's `caBundle` to the CA injector.
pub(super) fn injection(configuration: &ObjectMeta) -> Option<&'static str> {
    let annotations = configuration.annotations.as_ref()?;
    INJECTIONS.into_iter().find(|key| annotations.get(*key).is_some_and(|value| !value.is_empty()))
}

/// A webhook, as the API server is told to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caller {
    /// Kind of the configuration that it stands in.
    pub(super) kind: &'static str,
    /// Its `caBundle`.
    pub(super) ca: Option<ByteString>,
    /// The annotation by which somebody else writes that.
    pub(super) injection: Option<&'static str>,
}

impl Caller {
    fn trusts(&self, bundle: &Bundle, host: &str, now: Timestamp) -> bool {
        self.ca.as_ref().is_some_and(|ca| bundle.is_trusted_by(ca, &[host.to_owned()], now))
    }
}

/// When another certificate is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Not before more webhooks trust it.
    Wait,
    /// When API servers have had the time to hear what is trusted: until then all of them accept the old one.
    Settled,
    /// At this moment: with each one that passes, more calls fail than would with the new one.
    AtOnce,
}

/// When to serve `new` instead of `served`, by what the webhooks trust that call `host`.
pub(super) fn turn(
    callers: &[Caller],
    new: &Bundle,
    served: Option<&Bundle>,
    host: &str,
    now: Timestamp,
) -> Turn {
    let trusting = |bundle: &Bundle| callers.iter().filter(|c| c.trusts(bundle, host, now)).count();
    let (for_new, for_served) = (trusting(new), served.map_or(0, trusting));
    if new.serving().is_err() {
        Turn::Wait
    } else if for_new > for_served {
        Turn::AtOnce
    } else if for_new == callers.len() {
        Turn::Settled
    } else {
        Turn::Wait
    }
}

/// What is wrong with the certificates and is not for the controller to mend. `Display` is the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Concern {
    /// There is no Secret, and it is not to be made here.
    #[error(
        "Secret {SECRET} does not exist, and {kind} {CONFIGURATION} carries {annotation}: waiting for cert-manager to \
         make it; look at its Certificate, or remove the annotation, and the controller makes certificates of its own"
    )]
    NoSecret {
        /// The configuration.
        kind: &'static str,
        /// Its annotation.
        annotation: &'static str,
    },
    /// The Secret has no certificate, or not its key.
    #[error(
        "Secret {SECRET}, which cert-manager keeps, cannot be served: {why}; look at its Certificate, or delete the Secret \
         to have it issued anew"
    )]
    Unusable {
        /// What is wrong.
        why: String,
    },
    /// The issuer does not say by which CA the certificate can be verified.
    #[error(
        "Secret {SECRET}, which cert-manager keeps, has no readable ca.crt, so nobody can be told to trust its certificate; \
         use an issuer that gives one, such as SelfSigned or CA, or write its CA into clientConfig.caBundle of both webhook \
         configurations {CONFIGURATION} by hand"
    )]
    NoAuthority,
    /// The certificate does not pass under its own CA.
    #[error(
        "Secret {SECRET}, which cert-manager keeps, has a certificate that its own ca.crt does not vouch for: {why}; correct \
         dnsNames and issuerRef of its Certificate, or delete the Secret to have it issued anew"
    )]
    Rejected {
        /// What is wrong.
        why: String,
    },
    /// A configuration does not trust the certificate, and its CA is the injector's.
    #[error(
        "{kind} {CONFIGURATION} carries {annotation}, but its caBundle does not fit the certificate in Secret {SECRET}; check \
         that cert-manager's CA injector runs and that the annotation names the Certificate of that Secret, or remove the \
         annotation, and the controller keeps caBundle"
    )]
    NotInjected {
        /// The configuration.
        kind: &'static str,
        /// Its annotation.
        annotation: &'static str,
    },
}

impl Concern {
    /// CamelCase, for Events.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::NoSecret { .. } => "CertificateMissing",
            Self::Unusable { .. } => "CertificateUnusable",
            Self::NoAuthority => "AuthorityMissing",
            Self::Rejected { .. } => "CertificateRejected",
            Self::NotInjected { .. } => "AuthorityNotInjected",
        }
    }

    /// The kind of the configuration that it is about; `None` = it is about the Secret.
    pub(super) fn configuration(&self) -> Option<&'static str> {
        match self {
            Self::NoSecret { kind, .. } | Self::NotInjected { kind, .. } => Some(kind),
            Self::Unusable { .. } | Self::NoAuthority | Self::Rejected { .. } => None,
        }
    }
}

/// Whether a missing Secret is to be waited for instead of being made.
pub(super) fn awaited(callers: &[Caller]) -> Option<Concern> {
    callers.iter().find_map(|c| Some(Concern::NoSecret { kind: c.kind, annotation: c.injection? }))
}

/// What is wrong with a Secret's contents and with the trust in them; what the controller mends itself is not.
pub(super) fn concern(
    custody: Custody,
    bundle: &Bundle,
    callers: &[Caller],
    host: &str,
    now: Timestamp,
) -> Option<Concern> {
    let distrust = callers.iter().find(|c| !c.trusts(bundle, host, now));
    let of_secret = || {
        if let Err(error) = bundle.serving() {
            return Some(Concern::Unusable { why: chain(&error) });
        }
        // Somebody may have told all callers of a CA that the Secret does not name.
        distrust?;
        let Some(ca) = bundle.ca() else { return Some(Concern::NoAuthority) };
        let verified = bundle.verify(ca, &[host.to_owned()], now);
        verified.err().map(|error| Concern::Rejected { why: chain(&error) })
    };
    let of_trust = || {
        let mut injected = callers.iter().filter(|c| !c.trusts(bundle, host, now));
        injected.find_map(|c| Some(Concern::NotInjected { kind: c.kind, annotation: c.injection? }))
    };
    match custody {
        Custody::CertManager => of_secret().or_else(of_trust),
        Custody::Ours => of_trust(),
    }
}

/// An error with its reasons, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let reasons = std::iter::successors(Some(error), |e| e.source());
    reasons.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What is wrong and for how long: transient things are not told.
#[derive(Debug, Default)]
pub(super) struct Standing {
    concern: Option<(Concern, Instant)>,
    is_logged: bool,
}

/// A concern that somebody is to be told of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due<'a> {
    pub(super) concern: &'a Concern,
    /// Whether it was not told before.
    pub(super) is_new: bool,
}

impl Standing {
    /// Takes note of what is wrong at `now`; what has been so long enough is due, again at every look.
    pub(super) fn note(&mut self, concern: Option<Concern>, now: Instant) -> Option<Due<'_>> {
        if self.concern.as_ref().map(|(known, _)| known) != concern.as_ref() {
            self.concern = concern.map(|concern| (concern, now));
            self.is_logged = false;
        }
        let (concern, since) = self.concern.as_ref()?;
        let is_new = !self.is_logged;
        (now >= *since + PATIENCE).then(|| {
            self.is_logged = true;
            Due { concern, is_new }
        })
    }

    /// When to look again because of it.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let (_, since) = self.concern.as_ref().filter(|_| !self.is_logged)?;
        Some(*since + PATIENCE)
    }
}

#[cfg(test)]
#[path = "custody_tests.rs"]
mod tests;
