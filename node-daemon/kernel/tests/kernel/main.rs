//! The real kernel is the judge: every test makes its own network namespaces and looks with `ip`, `bridge`, `nft`
//! and `ping`. Needs root and the Debian packages iproute2, iputils-ping, nftables and util-linux.

mod batch;
mod drift;
mod filter;
mod flat;
mod foreign;
mod lab;
mod overlay;
mod pod;
