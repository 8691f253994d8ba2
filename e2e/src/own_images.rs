//! The images that the sandbox itself brings: the pause container and a toolbox for tests, made of the machine's
//! programs and the libraries that they load.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::exec::{command, describe, run};
use crate::image::{Image, write_archive};
use crate::parts::{build, cache, repository, which};

/// Name of the pause image.
pub(crate) const PAUSE_IMAGE: &str = "localhost/pause:1";
/// Name of the toolbox image.
pub(crate) const TEST_IMAGE: &str = "localhost/braid-test:dev";

/// Programs of the toolbox, under their own names.
const TOOLS: [&str; 14] = [
    "arping",
    "bash",
    "bridge",
    "busybox",
    "conntrack",
    "curl",
    "ethtool",
    "ip",
    "iperf3",
    "nft",
    "ping",
    "socat",
    "ss",
    "tcpdump",
];

/// What the toolbox takes from busybox.
const APPLETS: [&str; 50] = [
    "arping",
    "awk",
    "basename",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "dirname",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "httpd",
    "id",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mktemp",
    "mount",
    "mv",
    "nc",
    "nslookup",
    "printf",
    "ps",
    "pwd",
    "rm",
    "sed",
    "seq",
    "sha256sum",
    "sh",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "traceroute",
    "true",
    "wc",
    "xargs",
];

/// Writes the archive with these images unless the cache has it, and returns its path.
pub(crate) fn archive(dns: bool) -> Result<PathBuf> {
    let mut images = vec![pause_image()?, toolbox()?];
    if dns {
        images.push(coredns()?);
    }
    let mut hash = Sha256::new();
    for image in &images {
        hash.update(image.fingerprint()?);
    }
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let path = cache().join(format!("images-{digest}.tar"));
    if !path.exists() {
        write_archive(&images, &path)?;
    }
    Ok(path)
}

fn coredns() -> Result<Image> {
    let mut image = Image::new("localhost/coredns:sandbox");
    image.file(&build("coredns")?.join("coredns"), Path::new("/coredns"), Some(0o755))?;
    image.entrypoint("/coredns");
    Ok(image)
}

fn pause_image() -> Result<Image> {
    let mut image = Image::new(PAUSE_IMAGE);
    image.file(&pause_program()?, Path::new("/pause"), Some(0o755))?;
    image.entrypoint("/pause");
    image.user("65535:65535");
    Ok(image)
}

/// Compiles the pause program, statically and without cargo: one file, no dependencies.
fn pause_program() -> Result<PathBuf> {
    let source = repository().join("e2e/images/pause.rs");
    let text = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
    let digest: String = Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let program = cache().join(format!("pause-{digest}"));
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(cache()).with_context(|| format!("cannot create {}", cache().display()))?;
    let work = tempfile::tempdir_in(cache())?;
    let out = work.path().join("pause");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.current_dir(repository()).args([
        "--edition=2024",
        "-Copt-level=s",
        "-Cpanic=abort",
        "-Cstrip=symbols",
    ]);
    rustc.args(["-Ctarget-feature=+crt-static", "-o"]).arg(&out).arg(&source);
    let what = describe(&rustc);
    let output = rustc.output().with_context(|| format!("cannot start '{what}'"))?;
    crate::exec::checked(&what, &output)?;
    fs::rename(&out, &program)?;
    Ok(program)
}

fn toolbox() -> Result<Image> {
    let mut image = Image::new(TEST_IMAGE);
    for (link, target) in
        [("/bin", "usr/bin"), ("/sbin", "usr/sbin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64")]
    {
        image.link(link, target)?;
    }
    let mut libraries = BTreeSet::new();
    for tool in TOOLS {
        let Some(path) = which(tool) else { continue };
        libraries.extend(libraries_of(&path)?);
        image.file(&path, &Path::new("/usr/bin").join(tool), Some(0o755))?;
    }
    for library in libraries {
        image.file(&library, &inside(&library)?, Some(0o755))?;
    }
    for applet in APPLETS.iter().filter(|applet| !TOOLS.contains(applet) || which(applet).is_none()) {
        image.link(&format!("/usr/bin/{applet}"), "busybox")?;
    }
    image.text(
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        0o644,
    )?;
    image.text("/etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    image.text("/etc/nsswitch.conf", "hosts: files dns\n", 0o644)?;
    image.text("/usr/bin/serve", SERVE, 0o755)?;
    image.text("/www/cgi-bin/whoami", WHOAMI, 0o755)?;
    image.text("/www/index.html", "braid\n", 0o644)?;
    image.text("/usr/bin/idle", IDLE, 0o755)?;
    for protocols in ["/etc/protocols", "/etc/services", "/etc/iproute2/rt_protos"] {
        if Path::new(protocols).exists() {
            image.file(Path::new(protocols), Path::new(protocols), Some(0o644))?;
        }
    }
    image.dir("/root", 0o700)?;
    image.dir("/run", 0o755)?;
    image.dir("/tmp", 0o1777)?;
    image.env("PATH=/usr/sbin:/usr/bin");
    image.entrypoint("/usr/bin/idle");
    Ok(image)
}

/// An HTTP server for both families: `/` is a fixed page, `/cgi-bin/whoami` names the pod and the caller.
const SERVE: &str = "#!/bin/bash
trap 'kill %1; exit 0' TERM INT
busybox httpd -f -p \"[::]:${1:-8080}\" -h /www &
wait
";

const WHOAMI: &str = "#!/bin/bash
caller=${REMOTE_ADDR//[\\[\\]]/}
printf 'Content-Type: text/plain\\r\\n\\r\\n%s %s\\n' \"$HOSTNAME\" \"${caller#::ffff:}\"
";

/// Waits to be ended; as the first process of a container it must answer SIGTERM itself.
const IDLE: &str = "#!/bin/bash
trap 'exit 0' TERM INT
sleep infinity &
wait
";

/// The path of a library in the image: links to folders are followed, the file keeps the name that is asked for.
fn inside(library: &Path) -> Result<PathBuf> {
    let folder = library.parent().context("a library without a folder")?;
    let name = library.file_name().context("a library without a name")?;
    Ok(folder.canonicalize()?.join(name))
}

/// Shared libraries that a program loads, its loader included.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = command(["ldd"]);
    ldd.arg(program);
    let text =
        run(&mut ldd).with_context(|| format!("cannot find the libraries of {}", program.display()))?;
    Ok(parse_ldd(&text))
}

fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let place = line.split_once("=>").map_or(line, |(_, place)| place).trim();
        let path = place.split(' ').next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines_of_all_three_forms_are_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(text), paths);
    }
}
