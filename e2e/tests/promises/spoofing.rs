//! A pod sends with its own addresses and its own MAC or not at all: whole frames are forged in the pod, and what
//! arrives at its neighbour on the same node and at a pod on another node is looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail, ensure};
use braid_e2e::eventually;
use braid_e2e::stage::{PATIENCE, Stage, quiet};
use braid_e2e::workload::{FAMILIES, Pod, PodPlan};

const PORT: u16 = 9999;
/// The host end of every pod's interface has this address.
const GATEWAY_MAC: [u8; 6] = [0xee; 6];

/// Writes every datagram that arrives, one per line.
const LISTENER: [&str; 3] =
    ["sh", "-c", "exec socat -u UDP6-RECV:9999,ipv6only=0 OPEN:/tmp/arrived,creat,append"];

/// Ones' complement sum of 16-bit words (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn udp(source: &[u8], destination: &[u8], payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("short payloads");
    let mut header = [PORT.to_be_bytes(), PORT.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    // RFC 768 and RFC 8200 section 8.1: both pseudo headers add up to the same with a length below 65536.
    let pseudo = [[0, 17], length.to_be_bytes()].concat();
    let sum = checksum(&[source, destination, &pseudo, &header, payload]);
    header[6..8].copy_from_slice(&sum.to_be_bytes());
    [header, payload.to_vec()].concat()
}

/// An Ethernet frame with a UDP datagram.
fn frame(mac: [u8; 6], source: IpAddr, destination: IpAddr, payload: &str) -> Result<Vec<u8>> {
    let payload = format!("{payload}\n");
    let (ethertype, packet) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (0x0800_u16, ipv4(source, destination, payload.as_bytes()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            (0x86dd, ipv6(source, destination, payload.as_bytes()))
        }
        _ => bail!("{source} and {destination} are of two families"),
    };
    Ok([GATEWAY_MAC.to_vec(), mac.to_vec(), ethertype.to_be_bytes().to_vec(), packet].concat())
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let datagram = udp(&source.octets(), &destination.octets(), payload);
    let length = u16::try_from(20 + datagram.len()).expect("short payloads").to_be_bytes();
    let mut header = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, 17, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [header, datagram].concat()
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let datagram = udp(&source.octets(), &destination.octets(), payload);
    let length = u16::try_from(datagram.len()).expect("short payloads").to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, length[0], length[1], 17, 64];
    header.extend(source.octets());
    header.extend(destination.octets());
    [header, datagram].concat()
}

fn send(stage: &Stage, from: &Pod, frame: &[u8]) -> Result<()> {
    let hex: String = frame.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    // bash's printf knows \x; one write is one frame.
    let script = format!("printf '{hex}' | socat -u STDIN INTERFACE:eth0");
    stage.sandbox().pod_exec(&from.namespace, &from.name, &["bash", "-c", &script]).map(drop)
}

fn arrived(stage: &Stage, at: &Pod) -> Result<String> {
    stage.script(at, "cat /tmp/arrived 2>/dev/null || true")
}

fn mac_of(stage: &Stage, pod: &Pod) -> Result<[u8; 6]> {
    let text = stage.script(pod, "cat /sys/class/net/eth0/address")?;
    let bytes: Result<Vec<u8>, _> = text.trim().split(':').map(|hex| u8::from_str_radix(hex, 16)).collect();
    bytes?.try_into().ok().context("not a MAC address")
}

/// An address of the same Subnet that the pod does not have.
fn other(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from(u32::from(address) ^ 0x0000_0200)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) ^ 0x0200)),
    }
}

#[test]
fn forged_frames_go_nowhere_and_honest_ones_arrive() {
    quiet("spoofing", |stage| {
        let nodes = stage.nodes();
        let pods = stage.start(&[
            PodPlan::new("forger").on(&nodes[1]).capable(&["NET_RAW", "NET_ADMIN"]),
            PodPlan::new("beside").on(&nodes[1]).running(&LISTENER),
            PodPlan::new("afar").on(&nodes[0]).running(&LISTENER),
        ])?;
        let forger = &pods[0];
        let own_mac = mac_of(stage, forger)?;
        let mut foreign_mac = own_mac;
        foreign_mac[5] ^= 0x10;
        for target in &pods[1..] {
            for family in FAMILIES {
                let (own, to) = (forger.address(family)?, target.address(family)?);
                // Somebody else's existing address, the most wanted one to forge, and one that nobody has.
                let neighbour = pods[1].address(family)?;
                let forged = [
                    (own_mac, other(own), "forged-address"),
                    (
                        own_mac,
                        if target.name == "afar" { neighbour } else { pods[2].address(family)? },
                        "stolen-address",
                    ),
                    (foreign_mac, own, "forged-mac"),
                    (foreign_mac, other(own), "forged-both"),
                ];
                for (mac, source, word) in forged {
                    let word = format!("{word}-{family:?}");
                    send(stage, forger, &frame(mac, source, to, &word)?)?;
                }
                // What arrives in the end proves that the way is open and that the frames before it had their chance.
                let word = format!("honest-{family:?}");
                send(stage, forger, &frame(own_mac, own, to, &word)?)?;
                let all =
                    eventually(&format!("the honest {family:?} frame at {}", target.name), PATIENCE, || {
                        let all = arrived(stage, target)?;
                        Ok(all.contains(&word).then_some(all))
                    })?;
                ensure!(
                    !all.contains("forged") && !all.contains("stolen"),
                    "forged frames arrived at {}:\n{all}",
                    target.name
                );
            }
        }
        // The same with the tools that every image has: another address of one's own making.
        let forged = other(forger.addresses[0]);
        let script = format!(
            "ip addr add {forged}/32 dev eth0 && ! ping -n -q -c 3 -i 0.2 -W 1 -I {forged} {}",
            pods[2].addresses[0]
        );
        stage.script(forger, &script)?;
        stage.script(forger, &format!("ping -n -q -c 3 -i 0.2 -W 2 {}", pods[2].addresses[0])).map(drop)
    });
}
