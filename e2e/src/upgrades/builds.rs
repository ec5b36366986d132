//! Which builds are behind the two releases. The release before is the tree under another version; a bad build takes the name of one
//! of both for the time of a scenario.

use crate::{bed::Bed, cluster::images};
use anyhow::{Context, Result};
use std::{cell::RefCell, collections::BTreeSet};

/// Images, by component and release, that are no good builds now.
#[derive(Default)]
pub struct Builds(RefCell<BTreeSet<(String, String)>>);

impl Builds {
    /// Puts a bad build of a component, `proxy` or `control-plane`, in place of a release of it.
    ///
    /// # Errors
    /// When it is not built, or cannot be brought to the cluster.
    pub fn spoil(&self, bed: &Bed, component: &str, version: &str, fault: &str) -> Result<()> {
        let image = images::faulty(&bed.release.bin_dir, component, fault, version)?;
        self.0.borrow_mut().insert((component.to_owned(), version.to_owned()));
        load(bed, image).with_context(|| format!("the bad build {fault} of {component}"))
    }

    /// Puts the good builds back.
    ///
    /// # Errors
    /// When they cannot be brought to the cluster.
    pub fn restore(&self, bed: &Bed) -> Result<()> {
        for (component, version) in self.0.take() {
            put_back(bed, &component, &version)?;
        }
        Ok(())
    }

    /// Takes a component's image of a release off the node.
    ///
    /// # Errors
    /// When that is not possible; only a local cluster can.
    pub fn remove(&self, bed: &Bed, component: &str, version: &str) -> Result<()> {
        let crate::cluster::Target::Local(cluster) = &bed.target else {
            anyhow::bail!("images can be taken off the nodes of the local cluster only");
        };
        self.0.borrow_mut().insert((component.to_owned(), version.to_owned()));
        cluster.remove_image(&format!("docker.io/leno/{component}:{version}"))?;
        Ok(())
    }
}

fn put_back(bed: &Bed, component: &str, version: &str) -> Result<()> {
    let release = &bed.release;
    // As the installation made it.
    let before = if version == release.version { release.previous_version.as_str() } else { "" };
    let images = images::images(&release.bin_dir, &[component.to_owned()], version, before, version)?;
    images.into_iter().try_for_each(|image| load(bed, image))
}

fn load(bed: &Bed, image: images::Image) -> Result<()> {
    let folder = tempfile::tempdir()?;
    images::build(&[image], folder.path())?.iter().try_for_each(|archive| Ok(bed.target.load_image(archive)?))
}
