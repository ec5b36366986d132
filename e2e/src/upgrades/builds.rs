//! Which builds are behind the two releases. The release before is the tree under another version; a bad build of it takes its name
//! for the time of a scenario.

use crate::{bed::Bed, cluster::images};
use anyhow::{Context, Result};
use std::{cell::RefCell, collections::BTreeSet};

/// Components whose image of the previous release is a bad build now.
#[derive(Default)]
pub struct Builds(RefCell<BTreeSet<String>>);

impl Builds {
    /// Puts a bad build of a component, `proxy` or `control-plane`, in place of its previous release.
    ///
    /// # Errors
    /// When it is not built, or cannot be brought to the cluster.
    pub fn spoil(&self, bed: &Bed, component: &str, fault: &str) -> Result<()> {
        let release = &bed.release;
        let image = images::faulty(&release.bin_dir, component, fault, &release.previous_version)?;
        self.0.borrow_mut().insert(component.to_owned());
        load(bed, image).with_context(|| format!("the bad build {fault} of {component}"))
    }

    /// Puts the good builds back.
    ///
    /// # Errors
    /// When they cannot be brought to the cluster.
    pub fn restore(&self, bed: &Bed) -> Result<()> {
        for component in self.0.take() {
            put_previous(bed, &component)?;
        }
        Ok(())
    }

    /// Takes a component's image of the previous release off the node.
    ///
    /// # Errors
    /// When that is not possible; only a local cluster can.
    pub fn remove(&self, bed: &Bed, component: &str) -> Result<()> {
        let crate::cluster::Target::Local(cluster) = &bed.target else {
            anyhow::bail!("images can be taken off the nodes of the local cluster only");
        };
        self.0.borrow_mut().insert(component.to_owned());
        cluster.remove_image(&format!("docker.io/leno/{component}:{}", bed.release.previous_version))?;
        Ok(())
    }
}

fn put_previous(bed: &Bed, component: &str) -> Result<()> {
    let release = &bed.release;
    let previous = &release.previous_version;
    let images = images::images(&release.bin_dir, &[component.to_owned()], previous, "", previous)?;
    images.into_iter().try_for_each(|image| load(bed, image))
}

fn load(bed: &Bed, image: images::Image) -> Result<()> {
    let folder = tempfile::tempdir()?;
    images::build(&[image], folder.path())?.iter().try_for_each(|archive| Ok(bed.target.load_image(archive)?))
}
