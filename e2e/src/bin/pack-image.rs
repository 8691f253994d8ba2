//! `pack-image`: container images from files, without a container engine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use braid_e2e::{Image, write_archive};

const USAGE: &str = "\
usage: pack-image --out ARCHIVE --image NAME [what the image holds] [--image NAME ...]

  --out ARCHIVE            the docker-archive to write; all images go into it
  --image NAME             begins an image, such as localhost/braid:dev
  --entrypoint WORD        one word of the command it runs; repeat for arguments
  --file SRC:DST[:MODE]    a file of this machine, with an octal mode (default: the file's own)
  --link PATH:TARGET       a symbolic link
  --dir PATH[:MODE]        an empty folder (default mode: 755)
  --env NAME=VALUE         an environment variable
  --user UID[:GID]         the user that it runs as (default: root)

The same inputs give the same bytes.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.is_empty() || arguments.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    match parse(&arguments).and_then(|(images, out)| write_archive(&images, &out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pack-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

// By hand, because the order of the options says which image they belong to.
fn parse(arguments: &[String]) -> Result<(Vec<Image>, PathBuf)> {
    let (mut images, mut out) = (Vec::<Image>::new(), None);
    let mut words = arguments.iter();
    while let Some(option) = words.next() {
        let value = words.next().with_context(|| format!("{option} needs a value; see --help"))?;
        match option.as_str() {
            "--out" => out = Some(PathBuf::from(value)),
            "--image" => images.push(Image::new(value)),
            _ => {
                let image =
                    images.last_mut().with_context(|| format!("{option} stands before the first --image"))?;
                describe(image, option, value)?;
            }
        }
    }
    ensure!(!images.is_empty(), "no --image is given; see --help");
    Ok((images, out.context("no --out is given; see --help")?))
}

fn describe(image: &mut Image, option: &str, value: &str) -> Result<()> {
    let parts: Vec<&str> = value.split(':').collect();
    match (option, parts.as_slice()) {
        ("--entrypoint", _) => image.entrypoint(value),
        ("--env", _) => image.env(value),
        ("--user", _) => image.user(value),
        ("--file", [source, target]) => image.file(Path::new(source), Path::new(target), None)?,
        ("--file", [source, target, mode]) => {
            image.file(Path::new(source), Path::new(target), Some(octal(mode)?))?;
        }
        ("--link", [path, target]) => image.link(path, target)?,
        ("--dir", [path]) => image.dir(path, 0o755)?,
        ("--dir", [path, mode]) => image.dir(path, octal(mode)?)?,
        ("--file" | "--link" | "--dir", _) => {
            bail!("{option} {value} does not have the right form; see --help")
        }
        _ => bail!("unknown option {option}; see --help"),
    }
    Ok(())
}

fn octal(mode: &str) -> Result<u32> {
    u32::from_str_radix(mode, 8).with_context(|| format!("'{mode}' is not an octal mode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn several_images_go_into_one_archive() {
        let (images, out) =
            parse(&words("--image a:1 --entrypoint /a --dir /tmp:1777 --out x.tar --image b:1")).unwrap();
        assert_eq!((images.len(), out), (2, PathBuf::from("x.tar")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("--entrypoint /a --image a:1 --out x", "--entrypoint"),
            ("--image a:1", "--out"),
            ("--out x", "--image"),
            ("--image a:1 --file /etc/passwd --out x", "--file"),
            ("--image a:1 --dir /d:9z --out x", "9z"),
            ("--image a:1 --colour red --out x", "--colour"),
            ("--image", "--image"),
        ];
        for (line, named) in cases {
            let error = format!("{:#}", parse(&words(line)).unwrap_err());
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
