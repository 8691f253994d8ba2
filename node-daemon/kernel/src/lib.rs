//! The only crate that talks to the kernel: rtnetlink, nftables, network namespaces, kernel parameters.
//!
//! [`Kernel::dump`] reads, [`Kernel::apply`] carries out a plan that `braid-node-core` made, [`Kernel::attach`] and
//! [`Kernel::detach`] wire one pod, [`Kernel::probe`] and [`Kernel::announce`] speak of its addresses on the physical network,
//! [`Monitor`] tells when something changed behind our back. All calls block and
//! are meant for threads that may.
//!
//! **Invariant:** nothing is decided here. What a step says is done; what no step names is left alone.

mod announce;
mod apply;
mod attach;
mod dump;
mod error;
mod frame;
mod monitor;
pub mod netns;
mod nft;
mod pool;
mod rt;
mod socket;
pub mod sysctl;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;

use braid_types::Family;

pub use announce::Holder;
pub use attach::Mismatch;
pub use dump::Scope;
pub use error::{AttachError, Failed, KernelError, Refusal, Report, Side};
pub use monitor::{Dirty, Monitor};

use pool::{OwnPorts, Pool};

/// Access to the kernel of one network namespace: the one in which it was opened. Its methods must be called by
/// threads in that namespace, and may be called by many at once.
#[derive(Debug)]
pub struct Kernel {
    route: Pool,
    filter: Pool,
    families: BTreeSet<Family>,
    v6_built_in: bool,
    own: Arc<OwnPorts>,
}

impl Kernel {
    /// Opens the calling thread's network namespace.
    ///
    /// # Errors
    /// A netlink socket cannot be opened, for example without `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, KernelError> {
        let v6_off = sysctl::read("ipv6/conf/all/disable_ipv6")?;
        let own = Arc::new(OwnPorts::default());
        let kernel = Self {
            route: Pool::new(socket::ROUTE, Arc::clone(&own)),
            filter: Pool::new(socket::NETFILTER, Arc::clone(&own)),
            families: Family::ALL
                .into_iter()
                .filter(|f| *f == Family::V4 || v6_off.as_deref() == Some("0"))
                .collect(),
            v6_built_in: v6_off.is_some(),
            own,
        };
        kernel.route.with(|_| Ok(()))?;
        kernel.filter.with(|_| Ok(()))?;
        Ok(kernel)
    }

    /// The families that can be used: IPv6 may be compiled out or switched off.
    #[must_use]
    pub fn families(&self) -> &BTreeSet<Family> {
        &self.families
    }

    /// Whether devices have IPv6 properties, be it in use or switched off.
    fn has_v6(&self) -> bool {
        self.v6_built_in
    }

    /// Starts to watch for changes.
    ///
    /// # Errors
    /// The sockets or the thread cannot be made.
    pub fn monitor(&self) -> Result<Monitor, KernelError> {
        self.monitor_with_room(monitor::BUFFER)
    }

    /// As [`Kernel::monitor`], with so many bytes for events that nobody has read yet. The kernel throws away what
    /// finds no room there; [`Dirty::lost`] tells of it.
    ///
    /// # Errors
    /// As [`Kernel::monitor`].
    pub fn monitor_with_room(&self, bytes: usize) -> Result<Monitor, KernelError> {
        Monitor::start(Arc::clone(&self.own), bytes)
    }
}
