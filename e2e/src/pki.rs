//! Keys and certificates of a cluster, as kubeadm would make them, valid until 2044.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, string::Ia5String,
};
use serde_json::json;

use crate::layout::{Family, Layout, Node};

/// A certificate authority that can sign.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// Who a certificate speaks for.
#[derive(Default)]
struct Subject<'a> {
    name: &'a str,
    /// Kubernetes reads it as the user's group.
    group: Option<&'a str>,
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// Writes every key, certificate and kubeconfig of the cluster.
pub(crate) fn create(layout: &Layout, nodes: &[Node], families: &[Family]) -> Result<()> {
    let pki = layout.pki();
    fs::create_dir_all(&pki).with_context(|| format!("cannot create {}", pki.display()))?;
    let cluster = authority(&pki, "ca", "kubernetes")?;
    let front_proxy = authority(&pki, "front-proxy-ca", "front-proxy")?;
    let first = &nodes[0];
    let (_, host_side) = layout.host_link_addresses();
    let mut addresses: Vec<IpAddr> = vec![[127, 0, 0, 1].into(), host_side.into()];
    addresses.push("::1".parse()?);
    for family in families {
        addresses.push(first.address(*family));
        addresses.push(first_of(family.service_cidr())?);
    }
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let mut dns: Vec<String> = names.map(str::to_owned).to_vec();
    dns.push("kubernetes.default.svc.cluster.local".to_owned());
    let server = Subject { name: "kube-apiserver", dns, addresses, ..Subject::default() };
    issue(&pki, &cluster, "apiserver", &server)?;
    let kubelet_client = Subject {
        name: "kube-apiserver-kubelet-client",
        group: Some("system:masters"),
        ..Subject::default()
    };
    issue(&pki, &cluster, "apiserver-kubelet-client", &kubelet_client)?;
    issue(
        &pki,
        &front_proxy,
        "front-proxy-client",
        &Subject { name: "front-proxy-client", ..Subject::default() },
    )?;

    let service_accounts = KeyPair::generate()?;
    secret(&pki.join("sa.key"), &service_accounts.serialize_pem())?;
    fs::write(pki.join("sa.pub"), service_accounts.public_key_pem())?;

    let inside = format!("https://{}:6443", first.address(families[0]));
    let outside = format!("https://{host_side}:6443");
    let admin = Subject { name: "kubernetes-admin", group: Some("system:masters"), ..Subject::default() };
    issue(&pki, &cluster, "admin", &admin)?;
    kubeconfig(&pki, "admin", &outside, &layout.kubeconfig())?;
    for component in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        let user = format!("system:{component}");
        issue(&pki, &cluster, component, &Subject { name: &user, ..Subject::default() })?;
        kubeconfig(&pki, component, &inside, &pki.join(format!("{component}.kubeconfig")))?;
    }
    for node in nodes {
        let subject = Subject {
            name: &format!("system:node:{}", node.name),
            group: Some("system:nodes"),
            dns: vec![node.name.clone()],
            addresses: families.iter().map(|family| node.address(*family)).collect(),
        };
        issue(&pki, &cluster, &node.name, &subject)?;
        kubeconfig(&pki, &node.name, &inside, &pki.join(format!("{}.kubeconfig", node.name)))?;
    }
    Ok(())
}

/// The first usable address of a range: the ClusterIP of the API server.
fn first_of(cidr: &str) -> Result<IpAddr> {
    let (base, _) = cidr.split_once('/').context("a range without a prefix length")?;
    Ok(match base.parse()? {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) + 1).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base) + 1).into()),
    })
}

fn params(subject: &Subject<'_>) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, subject.name);
    if let Some(group) = subject.group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.not_before = rcgen::date_time_ymd(2024, 1, 1);
    params.not_after = rcgen::date_time_ymd(2044, 1, 1);
    for name in &subject.dns {
        params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name.as_str())?));
    }
    params.subject_alt_names.extend(subject.addresses.iter().map(|address| SanType::IpAddress(*address)));
    Ok(params)
}

fn authority(pki: &Path, file: &str, name: &str) -> Result<Authority> {
    let mut params = params(&Subject { name, ..Subject::default() })?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    fs::write(pki.join(format!("{file}.crt")), certificate.pem())?;
    secret(&pki.join(format!("{file}.key")), &key.serialize_pem())?;
    Ok(Authority { issuer: Issuer::new(params, key) })
}

fn issue(pki: &Path, authority: &Authority, file: &str, subject: &Subject<'_>) -> Result<()> {
    let mut params = params(subject)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority.issuer)?;
    fs::write(pki.join(format!("{file}.crt")), certificate.pem())?;
    secret(&pki.join(format!("{file}.key")), &key.serialize_pem())
}

fn secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// A kubeconfig that holds everything it needs, so that the file alone can be handed on.
fn kubeconfig(pki: &Path, user: &str, server: &str, path: &Path) -> Result<()> {
    let data = |file: String| -> Result<String> { Ok(base64(&fs::read(pki.join(file))?)) };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "sandbox", "cluster": {
            "server": server,
            "certificate-authority-data": data("ca.crt".to_owned())?,
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": data(format!("{user}.crt"))?,
            "client-key-data": data(format!("{user}.key"))?,
        }}],
        "contexts": [{"name": "sandbox", "context": {"cluster": "sandbox", "user": user}}],
        "current-context": "sandbox",
    });
    // JSON is YAML; no reader of kubeconfigs minds.
    secret(path, &serde_json::to_string_pretty(&config)?)
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                text.push(char::from(ALPHABET[(group >> (18 - 6 * place) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::nodes;
    use crate::options::Options;

    #[test]
    fn base64_as_in_rfc_4648_section_10() {
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in vectors {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn every_file_that_a_component_names_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { name: "x".into(), index: 0, dir: dir.path().to_owned() };
        let options = Options { nodes: 1, ..Options::default() };
        create(&layout, &nodes(&options), options.families()).unwrap();
        for file in [
            "ca.crt",
            "ca.key",
            "apiserver.crt",
            "front-proxy-ca.crt",
            "sa.key",
            "sa.pub",
            "node1.kubeconfig",
        ] {
            assert!(layout.pki().join(file).exists(), "{file}");
        }
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(layout.kubeconfig()).unwrap()).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], "https://172.30.255.2:6443");
    }
}
