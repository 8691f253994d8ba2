//! Carrying out steps.

use braid_node_core::desired::{Desired, Link, LinkKind};
use braid_node_core::plan::{self, Plan, Step};

use crate::error::{Failed, KernelError, Refusal, Report};
use crate::rt::{self, Devices};
use crate::wire::Message;
use crate::{Kernel, Scope, nft, sysctl};

impl Kernel {
    /// Carries out a plan. A step that fails keeps no other from being tried: what depended on it fails by itself
    /// and is named too.
    pub fn apply(&self, plan: &Plan) -> Report {
        let mut run = Run {
            kernel: self,
            devices: None,
            queue: Vec::new(),
            report: Report { conflicts: plan.conflicts.clone(), ..Report::default() },
        };
        for step in &plan.steps {
            run.step(step);
        }
        run.flush();
        run.report
    }

    /// Removes everything of ours, and nothing else. Pods of this node lose their network.
    ///
    /// # Errors
    /// The kernel cannot be read; single removals that fail are in the report.
    pub fn uninstall(&self) -> Result<Report, KernelError> {
        let nothing = Desired::default();
        let actual = self.dump(&Scope::all(&nothing))?;
        Ok(self.apply(&plan::diff(&nothing, &actual)))
    }

    pub(crate) fn devices(&self) -> Result<Devices, KernelError> {
        let links = self.route.with(crate::dump::links)?;
        Ok(links.into_iter().map(|(name, link)| (name, link.index)).collect())
    }

    fn add_vxlan(&self, link: &Link, devices: &Devices) -> Result<(), KernelError> {
        let LinkKind::Vxlan(vxlan) = &link.kind else { return Ok(()) };
        let add = rt::link::add_vxlan(link, vxlan, devices)?;
        // Only once it is sure that the device is the one just made, more is written to its name.
        self.exchange(vec![add], format!("make VXLAN device {}", link.name))?;
        self.exchange(rt::link::finish(link, self.has_v6()), format!("set up VXLAN device {}", link.name))
    }

    /// Sends requests of which every one has to succeed.
    pub(crate) fn exchange(&self, requests: Vec<Message>, operation: String) -> Result<(), KernelError> {
        let (outcomes, _) = self.route.with(|socket| socket.batch(requests))?;
        outcomes
            .into_iter()
            .collect::<Result<Vec<()>, Refusal>>()
            .map_err(KernelError::refused(operation))?;
        Ok(())
    }
}

/// A plan under way. Requests are gathered and sent together as long as nothing in between needs another way.
struct Run<'a> {
    kernel: &'a Kernel,
    /// Names and indexes, read again after devices were made or removed.
    devices: Option<Devices>,
    queue: Vec<(&'a Step, Vec<Message>)>,
    report: Report,
}

impl<'a> Run<'a> {
    fn step(&mut self, step: &'a Step) {
        let direct = match step {
            Step::SetSysctl { path, value } => Some(self.direct(|_| sysctl::write(path, value))),
            Step::ReplaceTable(table) => Some(self.filter(|s| nft::replace(s, table))),
            Step::DelTable => Some(self.filter(nft::delete)),
            Step::AddElements(elements) => Some(self.filter(|s| nft::add(s, elements))),
            Step::DelElements(elements) => Some(self.filter(|s| nft::remove(s, elements))),
            Step::Announce(key) => Some(self.direct(|kernel| kernel.announce(key))),
            Step::AddVxlan(link) => {
                Some(self.with_devices(|kernel, devices| kernel.add_vxlan(link, devices)))
            }
            Step::AddVeth { link, pod } => {
                Some(self.direct(|kernel| kernel.make_pair(link, pod).map(|_| ())))
            }
            _ => None,
        };
        match direct {
            Some(Ok(())) => self.report.done += 1,
            Some(Err(error)) => self.fail(step, error),
            None => match self.messages(step) {
                Ok(messages) => self.queue.push((step, messages)),
                Err(error) => self.fail(step, error),
            },
        }
        if matches!(step, Step::AddVxlan(_) | Step::AddVeth { .. } | Step::DelLink(_)) {
            self.flush();
            self.devices = None;
        }
    }

    fn fail(&mut self, step: &Step, error: KernelError) {
        self.report.failed.push(Failed { step: Box::new(step.clone()), error });
    }

    /// Runs something after all that was gathered before it.
    fn direct<T>(&mut self, f: impl FnOnce(&Kernel) -> Result<T, KernelError>) -> Result<T, KernelError> {
        self.flush();
        f(self.kernel)
    }

    fn filter(
        &mut self,
        f: impl FnOnce(&mut crate::socket::Socket) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        self.direct(|kernel| kernel.filter.with(f))
    }

    fn with_devices<T>(
        &mut self,
        f: impl FnOnce(&Kernel, &Devices) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        if self.devices.is_none() {
            self.flush();
            self.devices = Some(self.kernel.devices()?);
        }
        f(self.kernel, self.devices.get_or_insert_default())
    }

    fn messages(&mut self, step: &Step) -> Result<Vec<Message>, KernelError> {
        self.with_devices(|kernel, devices| {
            Ok(match step {
                Step::DelLink(name) => vec![rt::link::del(name)],
                Step::SetLink { link, mac } => rt::link::set(link, *mac, kernel.has_v6()),
                other => vec![on_device(other, devices)?],
            })
        })
    }

    fn flush(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        if queue.is_empty() {
            return;
        }
        let mut lengths = Vec::with_capacity(queue.len());
        let mut requests = Vec::with_capacity(queue.len());
        for (step, messages) in queue {
            lengths.push((step, messages.len()));
            requests.extend(messages);
        }
        match self.kernel.route.with(|socket| socket.batch(requests)) {
            Ok((outcomes, _)) => {
                let mut outcomes = outcomes.into_iter();
                for (step, n) in lengths {
                    let failure =
                        outcomes.by_ref().take(n).filter_map(Result::err).find(|r| !harmless(step, r));
                    match failure {
                        None => self.report.done += 1,
                        Some(refusal) => self.fail(step, KernelError::refused(step.to_string())(refusal)),
                    }
                }
            }
            Err(error) => {
                // The exchange itself broke: what became of each step is unknown until the next dump.
                let text = error.to_string();
                for (step, _) in lengths {
                    let source = std::io::Error::other(text.clone());
                    self.fail(step, KernelError::System { operation: step.to_string(), source });
                }
            }
        }
    }
}

/// The request of a step that is about something on a device.
pub(crate) fn on_device(step: &Step, devices: &Devices) -> Result<Message, KernelError> {
    Ok(match step {
        Step::AddAddr(key) => rt::addr::add(key, devices.index(&key.dev)?),
        Step::DelAddr(key) => rt::addr::del(key, devices)?,
        Step::PutNeigh(key, mac) => rt::neigh::put(key.addr, *mac, devices.index(&key.dev)?),
        Step::DelNeigh(key) => rt::neigh::del(key.addr, devices.index(&key.dev)?),
        Step::PutProxy(key) => rt::neigh::put_proxy(key.addr, devices.index(&key.dev)?),
        Step::DelProxy(key) => rt::neigh::del_proxy(key.addr, devices.index(&key.dev)?),
        Step::PutFdb(key, dst) => rt::neigh::put_fdb(key, *dst, devices.index(&key.dev)?),
        Step::DelFdb(key, dst) => rt::neigh::del_fdb(key, *dst, devices.index(&key.dev)?),
        Step::PutRoute(key, route) => rt::route::put(key, route, devices)?,
        Step::DelRoute(key) => rt::route::del(key),
        Step::AddRule(rule) => rt::rule::add(rule),
        Step::DelRule(rule) => rt::rule::del(rule),
        Step::SetSysctl { .. }
        | Step::ReplaceTable(_)
        | Step::DelTable
        | Step::AddElements(_)
        | Step::DelElements(_)
        | Step::DelLink(_)
        | Step::AddVxlan(_)
        | Step::AddVeth { .. }
        | Step::Announce(_)
        | Step::SetLink { .. } => unreachable!("{step} is no step on a device"),
    })
}

/// A refusal that says that the work is done already: what is to go is gone, what is to be is there.
fn harmless(step: &Step, refusal: &Refusal) -> bool {
    use nix::libc::{EADDRNOTAVAIL, EEXIST, ENODEV, ENOENT, ESRCH};
    match step {
        Step::DelLink(_)
        | Step::DelAddr(_)
        | Step::DelNeigh(_)
        | Step::DelProxy(_)
        | Step::DelFdb(..)
        | Step::DelRoute(_)
        | Step::DelRule(_) => matches!(refusal.errno, ENODEV | ENOENT | ESRCH | EADDRNOTAVAIL),
        Step::AddAddr(_) | Step::AddRule(_) => refusal.errno == EEXIST,
        _ => false,
    }
}
