//! Writes the CustomResourceDefinitions that the Rust types in this crate describe, or checks that they are up to date.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use leno_crds::generate::{CHART_DIR, CHART_PREFIX, CONFIG_DIR, GenerateError, files};

/// Writes Leno's CustomResourceDefinitions to config/crd and into the Helm chart.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  crdgen            write the files (what `make generate` does)\n  \
    crdgen --check    fail when a committed file is stale\n  \
    crdgen --print    print the definitions, for example for `kubectl apply --server-side -f -`"
)]
struct Args {
    /// Write nothing; fail when a file is missing, differs, or is no longer made.
    #[arg(long, conflicts_with = "print")]
    check: bool,
    /// Print the plain definitions instead of writing files.
    #[arg(long)]
    print: bool,
    /// The root of the repository.
    #[arg(long, default_value = ".", value_name = "DIR")]
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error("cannot {verb} {path}: {source}")]
    File { verb: &'static str, path: PathBuf, source: std::io::Error },
    #[error("these generated files are not up to date:\n{}\nrun `make generate` and commit the result", .0.join("\n"))]
    Stale(Vec<String>),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let files = files()?;
    if args.print {
        for text in files.iter().filter(|(path, _)| path.starts_with(CONFIG_DIR)).map(|(_, text)| text) {
            println!("---\n{text}");
        }
        return Ok(());
    }
    let orphans = orphans(&args.root, &files)?;
    if args.check {
        return check(&args.root, &files, &orphans);
    }
    for orphan in &orphans {
        let path = args.root.join(orphan);
        fs::remove_file(&path).map_err(|source| Error::File { verb: "remove", path, source })?;
        println!("removed {orphan}");
    }
    for (name, text) in &files {
        let path = args.root.join(name);
        if fs::read_to_string(&path).is_ok_and(|present| present == *text) {
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| Error::File { verb: "create", path: folder.into(), source })?;
        }
        fs::write(&path, text).map_err(|source| Error::File { verb: "write", path, source })?;
        println!("wrote {name}");
    }
    Ok(())
}

/// Compares what is there with what would be written.
fn check(root: &Path, files: &BTreeMap<String, String>, orphans: &[String]) -> Result<(), Error> {
    let mut stale: Vec<String> = orphans.iter().map(|orphan| format!("  {orphan} (no longer made)")).collect();
    for (name, text) in files {
        match fs::read_to_string(root.join(name)) {
            Ok(present) if present == *text => {}
            Ok(_) => stale.push(format!("  {name} (differs)")),
            Err(_) => stale.push(format!("  {name} (missing)")),
        }
    }
    if stale.is_empty() { Ok(()) } else { Err(Error::Stale(stale)) }
}

/// Files of ours that are no longer made: a kind was renamed or removed.
fn orphans(root: &Path, files: &BTreeMap<String, String>) -> Result<Vec<String>, Error> {
    let mut orphans = Vec::new();
    for (folder, prefix) in [(CONFIG_DIR, ""), (CHART_DIR, CHART_PREFIX)] {
        let path = root.join(folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::File { verb: "list", path, source }),
        };
        for entry in entries {
            let entry = entry.map_err(|source| Error::File { verb: "list", path: path.clone(), source })?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let relative = format!("{folder}/{name}");
            if name.starts_with(prefix) && name.ends_with(".yaml") && !files.contains_key(&relative) {
                orphans.push(relative);
            }
        }
    }
    orphans.sort();
    Ok(orphans)
}
