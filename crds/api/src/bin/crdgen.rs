//! Writes the CustomResourceDefinitions to `crds/yaml`, or with `--check` says whether they are up to date.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use braid_api::crd;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect::<Vec<_>>().as_slice()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("crdgen: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let check = match args {
        [] => false,
        [one] if one == "--check" => true,
        _ => bail!("usage: crdgen [--check]"),
    };
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../yaml");
    for (name, text) in crd::files()? {
        let path = folder.join(&name);
        if !check {
            std::fs::write(&path, text).with_context(|| format!("write {name}"))?;
        } else if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            bail!("crds/yaml/{name} is stale; run `make crds`");
        }
    }
    Ok(())
}
