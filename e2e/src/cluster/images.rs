//! Images without a registry: one Dockerfile, built by Docker where its engine answers, else by buildah, into an
//! archive that goes straight into a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::binaries::{self, fingerprint};
use super::run::{self, Progress};
use super::{Error, Layout};

/// The recipe of all images.
const DOCKERFILE: &str = include_str!("../../../Dockerfile");
/// The program of the sandbox image.
const PAUSE_SOURCE: &str = include_str!("../../cluster/pause/pause.c");
/// What buildah asks before it writes an image; nothing is fetched, so nothing needs a signature.
const SIGNATURE_POLICY: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

/// The components that have an image, as (name in the image's name, stage of the Dockerfile, binary).
pub const COMPONENTS: [(&str, &str, &str); 5] = [
    ("operator", "leno-operator", "leno-operator"),
    ("control-plane", "leno-control-plane", "leno-control-plane"),
    ("proxy", "leno-proxy", "leno-proxy"),
    ("envoy", WITH_ENVOY, "leno-proxy"),
    ("demo", "leno-demo", "leno-demo"),
];
/// The stage that Envoy is put into besides our binary.
const WITH_ENVOY: &str = "leno-envoy";

/// One image to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The full name with its tag, such as `docker.io/leno/proxy:0.1.0`. The host part is what container runtimes
    /// complete a name without one with; nothing is ever fetched from there.
    pub name: String,
    /// The stage of the Dockerfile.
    pub stage: String,
    /// The name of the binary.
    pub binary: String,
    /// Where the binary lies.
    pub path: PathBuf,
    /// The release that the binary says it is.
    pub version: String,
    /// The release before it, or nothing.
    pub previous_version: String,
    /// What is wrong with a build that is bad on purpose; nothing for all others.
    pub fault: String,
}

/// The image of a build that is bad on purpose (`e2e/faulty`), of the component `proxy` or `control-plane`, under the name of a good
/// one.
///
/// # Errors
/// [`Error::Missing`] where its binary is not in `folder`, or the component has no bad build.
pub fn faulty(folder: &Path, component: &str, fault: &str, version: &str) -> Result<Image, Error> {
    let known =
        COMPONENTS.iter().find(|(name, ..)| *name == component && ["proxy", "envoy", "control-plane"].contains(name));
    let Some((_, stage, binary)) = known else {
        return Err(Error::Missing {
            what: format!("a bad build of component {component:?}"),
            remedy: "name proxy, envoy or control-plane".to_owned(),
        });
    };
    let path = folder.join(format!("{binary}-faulty"));
    if !path.is_file() {
        return Err(Error::Missing {
            what: path.display().to_string(),
            remedy: format!("build it (cargo build --bin {binary}-faulty)"),
        });
    }
    Ok(Image {
        name: format!("docker.io/leno/{component}:{version}"),
        stage: format!("{stage}-faulty"),
        binary: (*binary).to_owned(),
        path,
        version: version.to_owned(),
        previous_version: String::new(),
        fault: fault.to_owned(),
    })
}

/// The images of all components whose binary lies in `folder`. `tag` is usually the version.
///
/// # Errors
/// [`Error::Missing`] where a wanted binary is not there.
pub fn images(
    folder: &Path,
    only: &[String],
    version: &str,
    previous_version: &str,
    tag: &str,
) -> Result<Vec<Image>, Error> {
    let mut images = Vec::new();
    for name in only {
        if !COMPONENTS.iter().any(|(component, ..)| component == name) {
            let known: Vec<_> = COMPONENTS.iter().map(|(component, ..)| *component).collect();
            return Err(Error::Missing {
                what: format!("component {name:?}"),
                remedy: format!("name one of {}", known.join(", ")),
            });
        }
    }
    for (component, stage, binary) in COMPONENTS {
        if !only.is_empty() && !only.iter().any(|name| name == component) {
            continue;
        }
        let path = folder.join(binary);
        if !path.is_file() {
            return Err(Error::Missing {
                what: path.display().to_string(),
                remedy: format!("build it (cargo build --bin {binary}), or name other components"),
            });
        }
        images.push(Image {
            name: format!("docker.io/leno/{component}:{tag}"),
            stage: stage.to_owned(),
            binary: binary.to_owned(),
            path,
            version: version.to_owned(),
            previous_version: previous_version.to_owned(),
            fault: String::new(),
        });
    }
    Ok(images)
}

/// What builds images here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Builder {
    Docker,
    Buildah,
}

fn builder() -> Result<Builder, Error> {
    // The engine must answer, the command alone is not enough.
    if run::output(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"])).is_ok() {
        return Ok(Builder::Docker);
    }
    if run::output(Command::new("buildah").arg("--version")).is_ok() {
        super::error::require_root("building images with buildah", "it sets up file systems of images")?;
        return Ok(Builder::Buildah);
    }
    Err(Error::Missing {
        what: "a program that builds images".to_owned(),
        remedy: "run e2e/install-deps.sh, which installs buildah, or start Docker".to_owned(),
    })
}

/// The name of an image's archive.
fn archive_name(image: &Image) -> String {
    let short = image.name.trim_start_matches("docker.io/");
    format!("{}.tar", short.replace(['/', ':'], "-"))
}

/// Builds `images` and writes each as an archive into `folder`; returns the archives in the same order.
///
/// # Errors
/// [`Error::Missing`] without a builder, [`Error::NeedsRoot`] where buildah would need it, [`Error::Command`] where a
/// build fails.
pub fn build(images: &[Image], folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let builder = builder()?;
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    // Everything that a builder keeps is in here, and goes with it.
    let work = tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(folder)
        .map_err(Error::io("create a folder in", folder))?;
    let policy = work.path().join("policy.json");
    std::fs::write(&policy, SIGNATURE_POLICY).map_err(Error::io("write", &policy))?;
    let mut archives = Vec::new();
    for image in images {
        let mut progress = Progress::new(&image.name);
        let context = work.path().join("context");
        let _ = std::fs::remove_dir_all(&context);
        std::fs::create_dir_all(&context).map_err(Error::io("create", &context))?;
        let binary = context.join(&image.binary);
        let dockerfile = context.join("Dockerfile");
        std::fs::write(&dockerfile, DOCKERFILE).map_err(Error::io("write", &dockerfile))?;
        // Without symbols, which a debug build has hundreds of megabytes of.
        run::output(Command::new("strip").arg("-o").arg(&binary).arg(&image.path))?;
        if image.stage.starts_with(WITH_ENVOY) {
            add_envoy(&context.join("envoy"))?;
        }
        let archive = folder.join(archive_name(image));
        // Docker and buildah refuse to write over an archive.
        if archive.exists() {
            std::fs::remove_file(&archive).map_err(Error::io("remove", &archive))?;
        }
        match builder {
            Builder::Docker => {
                run::output(Command::new("docker").arg("build").args(arguments(image)).arg(&context))?;
                run::output(Command::new("docker").args(["save", "--output"]).arg(&archive).arg(&image.name))?;
                run::output(Command::new("docker").args(["image", "rm", &image.name]))?;
            }
            Builder::Buildah => {
                run::output(
                    buildah(work.path())
                        .args(["build", "--signature-policy"])
                        .arg(&policy)
                        .args(["--isolation", "chroot", "--format", "docker", "--timestamp", "0"])
                        .args(arguments(image))
                        .arg(&context),
                )?;
                let target = format!("docker-archive:{}:{}", archive.display(), image.name);
                run::output(
                    buildah(work.path())
                        .args(["push", "--quiet", "--signature-policy"])
                        .arg(&policy)
                        .args([&image.name, &target]),
                )?;
            }
        }
        progress.done("built");
        archives.push(archive);
    }
    Ok(archives)
}

fn arguments(image: &Image) -> Vec<String> {
    let mut arguments = vec![
        format!("--tag={}", image.name),
        format!("--target={}", image.stage),
        format!("--build-arg=BIN={}", image.binary),
        format!("--build-arg=VERSION={}", image.version),
        format!("--build-arg=PREVIOUS_VERSION={}", image.previous_version),
    ];
    if !image.fault.is_empty() {
        arguments.push(format!("--build-arg=FAULT={}", image.fault));
    }
    arguments
}

/// Puts Envoy and the libraries that it is linked to into a folder, each file where it will be in the image.
fn add_envoy(folder: &Path) -> Result<(), Error> {
    let program = binaries::envoy(&Layout::from_environment("images".parse()?)?)?;
    let linked = run::output(Command::new("ldd").arg(&program))?;
    let copy = |from: &Path, to: &Path| {
        let target = folder.join(to.strip_prefix("/").unwrap_or(to));
        let parent = target.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        std::fs::copy(from, &target).map(drop).map_err(Error::io("copy", from))
    };
    for library in libraries(&linked) {
        copy(&library, &library)?;
    }
    copy(&program, Path::new("/envoy"))
}

/// The files that `ldd` names: `name => /path (address)`, or for the loader `/path (address)`.
fn libraries(linked: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let named = line.split_once("=>").map_or(line, |(_, path)| path);
        named.split_whitespace().next().filter(|path| path.starts_with('/')).map(PathBuf::from)
    };
    linked.lines().filter_map(path).collect()
}

/// A buildah that keeps everything in `work`.
fn buildah(work: &Path) -> Command {
    let mut command = Command::new("buildah");
    command.arg("--root").arg(work.join("images")).arg("--runroot").arg(work.join("run"));
    command.args(["--storage-driver", "vfs"]);
    command.env("BUILDAH_ISOLATION", "chroot").env("CONTAINERS_STORAGE_CONF", "/dev/null");
    command.env("TMPDIR", work).env("XDG_RUNTIME_DIR", work);
    command
}

/// The archive of the sandbox image; builds it where it is not in the cache.
///
/// # Errors
/// As [`build`], and where the C compiler fails.
pub fn pause(layout: &Layout) -> Result<PathBuf, Error> {
    let key = fingerprint(&[PAUSE_SOURCE.as_bytes(), DOCKERFILE.as_bytes()]);
    let folder = layout.cache.join("bin").join(format!("pause-{key}"));
    let archive = folder.join("leno-pause-1.tar");
    if archive.is_file() {
        return Ok(archive);
    }
    std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
    let source = folder.join("pause.c");
    let binary = folder.join("pause");
    std::fs::write(&source, PAUSE_SOURCE).map_err(Error::io("write", &source))?;
    run::output(Command::new("gcc").args(["-Os", "-static", "-o"]).arg(&binary).arg(&source))?;
    let image = Image {
        name: super::settings::PAUSE_IMAGE.to_owned(),
        stage: "pause".to_owned(),
        binary: "pause".to_owned(),
        path: binary,
        version: "1".to_owned(),
        previous_version: String::new(),
        fault: String::new(),
    };
    build(&[image], &folder)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerfile_when_a_component_has_an_image_then_there_is_a_stage_for_its_binary() {
        for (_, stage, binary) in COMPONENTS {
            assert!(DOCKERFILE.contains(&format!("FROM base AS {stage}\n")), "{stage}");
            assert!(DOCKERFILE.contains(&format!("ENTRYPOINT [\"/{binary}\"]")), "{binary}");
        }
    }

    #[test]
    fn dockerfile_when_a_build_is_bad_on_purpose_then_its_stage_adds_the_fault_and_no_other_has_one() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("leno-proxy-faulty"), "").unwrap();
        let image = faulty(folder.path(), "proxy", "errors", "0.0.9").unwrap();
        assert_eq!((image.name.as_str(), image.binary.as_str()), ("docker.io/leno/proxy:0.0.9", "leno-proxy"));
        assert!(arguments(&image).contains(&"--build-arg=FAULT=errors".to_owned()));
        let beside_envoy = faulty(folder.path(), "envoy", "unready", "0.0.9").unwrap();
        assert!(DOCKERFILE.contains(&format!("FROM {WITH_ENVOY} AS {}\n", beside_envoy.stage)));
        assert!(faulty(folder.path(), "control-plane", "errors", "0.0.9").is_err());
        assert!(faulty(folder.path(), "operator", "errors", "0.0.9").is_err());
        for stage in DOCKERFILE.split("\nFROM ").filter(|stage| stage.contains("LENO_FAULT")) {
            let head = stage.lines().next().unwrap_or_default();
            assert!(head.ends_with("-faulty"), "{head} says LENO_FAULT");
        }
        assert!(DOCKERFILE.contains(&format!("AS {}\n", image.stage)));
    }

    #[test]
    fn libraries_when_ldd_names_them_then_are_those_with_a_path() {
        let said =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(libraries(said), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
    }

    #[test]
    fn images_when_a_binary_is_missing_then_the_error_names_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("leno-proxy"), "").unwrap();
        let error = images(folder.path(), &[], "0.1.0", "", "0.1.0").unwrap_err().to_string();
        assert!(error.contains("leno-operator"), "{error}");
        let found = images(folder.path(), &["proxy".to_owned()], "0.1.0", "0.0.9", "dev").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "docker.io/leno/proxy:dev");
        assert_eq!(archive_name(&found[0]), "leno-proxy-dev.tar");
        assert!(images(folder.path(), &["other".to_owned()], "0.1.0", "", "x").is_err());
    }
}
