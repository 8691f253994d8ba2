//! Command lines and configuration files of everything that runs in a cluster, as data.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::exec::SYSTEM_PATH;
use crate::layout::{CONTROL, Family, Layout, Node};
use crate::node_root::NodeRoot;
use crate::options::{KubeProxy, Options, Runtime};
use crate::own_images::PAUSE_IMAGE;
use crate::registry;
use crate::supervisor::{Endpoint, Spec, Unit};

/// Folders with the programs of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Programs {
    pub(crate) kubernetes: PathBuf,
    pub(crate) containerd: PathBuf,
    pub(crate) etcd: PathBuf,
    pub(crate) cni: PathBuf,
}

/// Address of the container runtime on every node.
pub(crate) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// A cluster about to be written down.
pub(crate) struct Plan<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) options: &'a Options,
    pub(crate) nodes: &'a [Node],
    pub(crate) programs: &'a Programs,
}

/// A configuration file to write.
pub(crate) struct ConfigFile {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl ConfigFile {
    fn json(path: PathBuf, value: &Value) -> Self {
        Self { path, text: format!("{value:#}\n") }
    }
}

fn joined(items: impl IntoIterator<Item = String>) -> String {
    items.into_iter().collect::<Vec<_>>().join(",")
}

impl Plan<'_> {
    pub(crate) fn families(&self) -> &'static [Family] {
        self.options.families()
    }

    fn config(&self, file: &str) -> PathBuf {
        self.layout.config().join(file)
    }

    fn pki(&self, file: &str) -> String {
        self.layout.pki().join(file).display().to_string()
    }

    fn kubernetes(&self, program: &str) -> String {
        self.programs.kubernetes.join(program).display().to_string()
    }

    /// Search path on the nodes: the built programs before the machine's.
    pub(crate) fn path(&self) -> String {
        let mut folders = vec![self.programs.kubernetes.display().to_string()];
        if self.options.runtime == Runtime::Containerd2 {
            folders.push(self.programs.containerd.display().to_string());
        }
        folders.push(SYSTEM_PATH.to_owned());
        folders.join(":")
    }

    fn spec(&self, scope: &str, root: Option<NodeRoot>, units: Vec<Unit>) -> Spec {
        Spec {
            scope: scope.to_owned(),
            socket: registry::socket(&self.layout.name, scope),
            pid_file: registry::pid_file(&self.layout.name, scope),
            logs: self.layout.logs(),
            path: self.path(),
            root,
            units,
        }
    }

    /// The control plane: it shares the network namespace of the first node.
    pub(crate) fn control(&self) -> Spec {
        let etcd = Endpoint::Tcp(([127, 0, 0, 1], 2379).into());
        let api = Endpoint::Tcp(([127, 0, 0, 1], 6443).into());
        let unit = |name: &str, argv, after| Unit { name: name.to_owned(), argv, after };
        let units = vec![
            unit("etcd", self.etcd(), None),
            unit("apiserver", self.apiserver(), Some(etcd)),
            unit("controller-manager", self.controller_manager(), Some(api.clone())),
            unit("scheduler", self.scheduler(), Some(api)),
        ];
        self.spec(CONTROL, None, units)
    }

    fn etcd(&self) -> Vec<String> {
        let data = self.layout.dir.join("etcd").display().to_string();
        let url = "http://127.0.0.1:2379";
        vec![
            // Its module builds one program, which Go names after the folder.
            self.programs.etcd.join("server").display().to_string(),
            format!("--data-dir={data}"),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            // No test here is about losing power; without it, every write waits for the disk.
            "--unsafe-no-fsync=true".to_owned(),
            "--quota-backend-bytes=4294967296".to_owned(),
            "--auto-compaction-retention=5m".to_owned(),
        ]
    }

    fn apiserver(&self) -> Vec<String> {
        let address = self.nodes[0].address(self.families()[0]);
        let services = joined(self.families().iter().map(|family| family.service_cidr().to_owned()));
        vec![
            self.kubernetes("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--advertise-address={address}"),
            format!("--bind-address={}", if self.options.dual_stack { "::" } else { "0.0.0.0" }),
            "--secure-port=6443".to_owned(),
            format!("--service-cluster-ip-range={services}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--client-ca-file={}", self.pki("ca.crt")),
            format!("--tls-cert-file={}", self.pki("apiserver.crt")),
            format!("--tls-private-key-file={}", self.pki("apiserver.key")),
            format!("--kubelet-certificate-authority={}", self.pki("ca.crt")),
            format!("--kubelet-client-certificate={}", self.pki("apiserver-kubelet-client.crt")),
            format!("--kubelet-client-key={}", self.pki("apiserver-kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-key-file={}", self.pki("sa.pub")),
            format!("--service-account-signing-key-file={}", self.pki("sa.key")),
            format!("--requestheader-client-ca-file={}", self.pki("front-proxy-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            format!("--proxy-client-cert-file={}", self.pki("front-proxy-client.crt")),
            format!("--proxy-client-key-file={}", self.pki("front-proxy-client.key")),
            "--max-requests-inflight=3000".to_owned(),
            "--max-mutating-requests-inflight=1500".to_owned(),
            "--profiling=false".to_owned(),
        ]
    }

    fn controller_manager(&self) -> Vec<String> {
        let kubeconfig = self.pki("kube-controller-manager.kubeconfig");
        let mut argv = vec![
            self.kubernetes("kube-controller-manager"),
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
            // Looking it up fails while the API server still makes its first roles, and then the program ends.
            "--authentication-skip-lookup=true".to_owned(),
            format!("--client-ca-file={}", self.pki("ca.crt")),
            "--use-service-account-credentials=true".to_owned(),
            format!("--service-account-private-key-file={}", self.pki("sa.key")),
            format!("--root-ca-file={}", self.pki("ca.crt")),
            format!("--cluster-signing-cert-file={}", self.pki("ca.crt")),
            format!("--cluster-signing-key-file={}", self.pki("ca.key")),
            format!(
                "--service-cluster-ip-range={}",
                joined(self.families().iter().map(|family| family.service_cidr().to_owned()))
            ),
            "--kube-api-qps=500".to_owned(),
            "--kube-api-burst=1000".to_owned(),
            // The default is a folder below /usr, which would be made on the machine.
            format!("--flex-volume-plugin-dir={}", self.layout.dir.join("volume-plugins").display()),
            "--profiling=false".to_owned(),
        ];
        if self.options.no_braid {
            argv.push("--allocate-node-cidrs=true".to_owned());
            let pods = joined(self.families().iter().map(|family| family.pod_cidr().to_owned()));
            argv.push(format!("--cluster-cidr={pods}"));
            argv.push("--node-cidr-mask-size-ipv4=24".to_owned());
            if self.options.dual_stack {
                argv.push("--node-cidr-mask-size-ipv6=64".to_owned());
            }
        }
        argv
    }

    fn scheduler(&self) -> Vec<String> {
        let kubeconfig = self.pki("kube-scheduler.kubeconfig");
        vec![
            self.kubernetes("kube-scheduler"),
            format!("--config={}", self.config("scheduler.json").display()),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--authentication-skip-lookup=true".to_owned(),
            format!("--client-ca-file={}", self.pki("ca.crt")),
            "--bind-address=127.0.0.1".to_owned(),
        ]
    }

    /// Configuration files of the control plane.
    pub(crate) fn control_files(&self) -> Vec<ConfigFile> {
        let scheduler = json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {
                "kubeconfig": self.pki("kube-scheduler.kubeconfig"), "qps": 500, "burst": 1000,
            },
            "leaderElection": {"leaderElect": false},
        });
        vec![ConfigFile::json(self.config("scheduler.json"), &scheduler)]
    }

    /// What runs on one node.
    pub(crate) fn node(&self, node: &Node) -> Spec {
        let containerd = match self.options.runtime {
            Runtime::Containerd2 => self.programs.containerd.join("containerd").display().to_string(),
            Runtime::Containerd1 => "/usr/bin/containerd".to_owned(),
        };
        let config = |file: &str| self.config(&format!("{}-{file}", node.name)).display().to_string();
        let mut units = vec![
            Unit {
                name: "containerd".to_owned(),
                argv: vec![containerd, "--config".to_owned(), config("containerd.toml")],
                after: None,
            },
            Unit {
                name: "kubelet".to_owned(),
                argv: self.kubelet(node, &config("kubelet.json")),
                after: Some(Endpoint::Unix(CONTAINERD_SOCKET.into())),
            },
        ];
        if self.options.kube_proxy != KubeProxy::None {
            units.push(Unit {
                name: "kube-proxy".to_owned(),
                argv: vec![
                    self.kubernetes("kube-proxy"),
                    format!("--config={}", config("kube-proxy.json")),
                    "--v=1".to_owned(),
                ],
                after: Some(Endpoint::Tcp((self.nodes[0].address(self.families()[0]), 6443).into())),
            });
        }
        let keep = vec![
            self.layout.dir.clone(),
            self.programs.kubernetes.clone(),
            self.programs.containerd.clone(),
            self.programs.cni.clone(),
        ];
        let workshop = registry::folder(&self.layout.name).join("root");
        let root = NodeRoot { dir: self.layout.node_dir(&node.name), workshop, keep };
        self.spec(&node.name, Some(root), units)
    }

    fn kubelet(&self, node: &Node, config: &str) -> Vec<String> {
        let addresses = joined(self.families().iter().map(|family| node.address(*family).to_string()));
        vec![
            self.kubernetes("kubelet"),
            format!("--config={config}"),
            format!("--kubeconfig={}", self.pki(&format!("{}.kubeconfig", node.name))),
            format!("--hostname-override={}", node.name),
            format!("--node-ip={addresses}"),
            format!("--node-labels=topology.kubernetes.io/zone=rack{}", node.rack),
        ]
    }

    /// Configuration files of one node.
    pub(crate) fn node_files(&self, node: &Node) -> Vec<ConfigFile> {
        let path = |file: &str| self.config(&format!("{}-{file}", node.name));
        let mut files = vec![
            ConfigFile::json(path("kubelet.json"), &self.kubelet_config(node)),
            ConfigFile { path: path("containerd.toml"), text: containerd_config(self.options.runtime) },
        ];
        if self.options.kube_proxy != KubeProxy::None {
            files.push(ConfigFile::json(path("kube-proxy.json"), &self.kube_proxy_config(node)));
        }
        files
    }

    fn kubelet_config(&self, node: &Node) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": self.pki(&format!("{}.crt", node.name)),
            "tlsPrivateKeyFile": self.pki(&format!("{}.key", node.name)),
            "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.layout.cgroup(&node.name),
            "failCgroupV1": false,
            "failSwapOn": false,
            "enforceNodeAllocatable": [],
            "localStorageCapacityIsolation": false,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%", "pid.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "resolvConf": "",
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "oomScoreAdj": 0,
            "maxPods": 250,
            "registryPullQPS": 0,
            "serializeImagePulls": false,
            "kubeAPIQPS": 500,
            "kubeAPIBurst": 1000,
            "eventRecordQPS": 0,
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "5s",
            "cpuCFSQuota": false,
            "cpuManagerPolicy": "none",
            "containerLogMaxSize": "5Mi",
            // The default lies below /usr, which nodes share with the machine.
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "enableProfilingHandler": false,
        })
    }

    fn kube_proxy_config(&self, node: &Node) -> Value {
        let mode = match self.options.kube_proxy {
            KubeProxy::Nftables => "nftables",
            KubeProxy::Iptables | KubeProxy::None => "iptables",
        };
        let pods = if self.options.no_braid {
            joined(self.families().iter().map(|family| family.pod_cidr().to_owned()))
        } else {
            String::new()
        };
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.pki("kube-proxy.kubeconfig"), "qps": 100, "burst": 200},
            "hostnameOverride": node.name,
            "bindAddress": "0.0.0.0",
            "metricsBindAddress": "127.0.0.1:10249",
            "mode": mode,
            "clusterCIDR": pods,
            "oomScoreAdj": 0,
            // Sizes of the connection table belong to the machine; 0 leaves them alone.
            "conntrack": {"maxPerCore": 0, "min": 0},
            "iptables": {"minSyncPeriod": "200ms", "syncPeriod": "30s"},
            "nftables": {"minSyncPeriod": "200ms", "syncPeriod": "30s"},
        })
    }
}

fn containerd_config(runtime: Runtime) -> String {
    // Raising the oom score needs a capability that the machine may lack; runc would die without a useful word.
    let common = "root = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\noom_score = 0\n";
    let grpc = format!("[grpc]\n  address = \"{CONTAINERD_SOCKET}\"\n");
    match runtime {
        Runtime::Containerd2 => format!(
            r#"version = 3
{common}disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp"]
{grpc}[plugins."io.containerd.cri.v1.images"]
  max_concurrent_downloads = 3
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
        ),
        Runtime::Containerd1 => format!(
            r#"version = 2
{common}{grpc}[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"#
        ),
    }
}

/// Folder of the node's CNI plugins, as the machine sees it.
pub(crate) fn cni_bin(layout: &Layout, node: &str) -> PathBuf {
    layout.node_dir(node).join("opt/cni/bin")
}

/// Folder of the node's CNI configuration, as the machine sees it.
pub(crate) fn cni_conf(layout: &Layout, node: &str) -> PathBuf {
    layout.node_dir(node).join("etc/cni/net.d")
}

/// Names of the programs of a part that nodes are given as CNI plugins.
pub(crate) fn is_plugin(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name != "cnitool")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::nodes;

    fn with_plan<T>(options: &Options, check: impl Fn(&Plan<'_>) -> T) -> T {
        let layout = Layout { name: "t".into(), index: 3, dir: "/state/t".into() };
        let programs = Programs {
            kubernetes: "/k".into(),
            containerd: "/c".into(),
            etcd: "/e".into(),
            cni: "/p".into(),
        };
        check(&Plan { layout: &layout, options, nodes: &nodes(options), programs: &programs })
    }

    #[test]
    fn only_the_reference_plugins_need_node_ranges() {
        for no_braid in [false, true] {
            let options = Options { no_braid, ..Options::default() };
            let argv = with_plan(&options, |plan| plan.control().units[2].argv.clone());
            assert_eq!(argv.iter().any(|word| word.starts_with("--allocate-node-cidrs")), no_braid);
        }
    }

    #[test]
    fn single_stack_clusters_name_no_ipv6_range() {
        let options = Options { dual_stack: false, no_braid: true, ..Options::default() };
        with_plan(&options, |plan| {
            for unit in plan.control().units.iter().chain(&plan.node(&plan.nodes[0]).units) {
                assert!(!unit.argv.iter().any(|word| word.contains("fd00")), "{:?}", unit.argv);
            }
        });
    }

    #[test]
    fn a_kubelet_waits_for_its_runtime() {
        with_plan(&Options::default(), |plan| {
            let spec = plan.node(&plan.nodes[1]);
            let kubelet = spec.units.iter().find(|unit| unit.name == "kubelet").unwrap();
            assert!(
                matches!(&kubelet.after, Some(Endpoint::Unix(path)) if path == Path::new(CONTAINERD_SOCKET))
            );
            assert_eq!(spec.log_file("kubelet"), Path::new("/state/t/logs/kubelet@node2.log"));
        });
    }

    #[test]
    fn without_kube_proxy_there_is_no_unit_for_it() {
        let options = Options { kube_proxy: KubeProxy::None, ..Options::default() };
        with_plan(&options, |plan| {
            assert!(plan.node(&plan.nodes[0]).units.iter().all(|unit| unit.name != "kube-proxy"));
        });
    }
}
