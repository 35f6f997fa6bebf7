//! How commands reach registries: the flags, and the store that they make.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::cli::exit::{Exit, coded};
use crate::cli::modules::Module;
use crate::cli::output::note;
use crate::oci::config::RawVerification;
use crate::oci::{OciConfig, OciStore, RawOciConfig, Reference};

/// Flags of every command that speaks to a registry.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// Registry to speak to without TLS: host or host:port; repeat it for more
    #[arg(long, value_name = "REGISTRY")]
    insecure: Vec<String>,
    /// PEM file with certificates to trust besides the system's; repeat it for more
    #[arg(long, value_name = "FILE")]
    ca_file: Vec<PathBuf>,
    /// File with registry logins as `docker login` writes it; ~/.docker/config.json unless given
    #[arg(long, value_name = "FILE", env = "COPROC_PULL_SECRET", hide_env_values = true)]
    pull_secret: Vec<PathBuf>,
    /// Public key (PEM, ECDSA P-256) that has to have signed the image; repeat it for more, one is enough
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// YAML file with everything that can be said about registries; flags add to it
    #[arg(long, value_name = "FILE", env = "COPROC_REGISTRY_CONFIG", hide_env_values = true)]
    registry_config: Option<PathBuf>,
}

impl RegistryArgs {
    /// A store for this image. Who names a registry on the command line means it, wherever it is.
    pub fn open(&self, image: &Reference) -> anyhow::Result<OciStore> {
        let mut raw = self.raw()?;
        raw.private_hosts.push(image.registry().host_pattern());
        if raw.cache_dir.as_os_str().is_empty() {
            raw.cache_dir = home().join(".cache/coproc");
        }
        Ok(OciStore::open(OciConfig::read(&raw)?)?)
    }

    /// The module of an image: its bytes, and the image by the digest that its name led to. Its signatures are
    /// checked where a key is given.
    pub fn module(&self, image: &Reference) -> anyhow::Result<Module> {
        let store = self.open(image)?;
        let found = store.resolve_image(image)?;
        let bytes = store.fetch_module(&found.module)?;
        let pinned = found.module.image.unwrap_or_else(|| image.to_string());
        note(&match found.verified_by {
            Some(key) => format!("{image} is {pinned}, signed by {key}"),
            None => format!("{image} is {pinned}"),
        });
        Ok(Module { image: Some(pinned), ..Module::new(image.to_string().into(), bytes) })
    }

    /// What the file and the flags say.
    pub fn raw(&self) -> anyhow::Result<RawOciConfig> {
        let mut raw = self.registry_config.as_deref().map(read).transpose()?.unwrap_or_default();
        raw.insecure.extend_from_slice(&self.insecure);
        raw.ca_files.extend_from_slice(&self.ca_file);
        raw.pull_secret_files.extend_from_slice(&self.pull_secret);
        if raw.pull_secret_files.is_empty() {
            let login = home().join(".docker/config.json");
            raw.pull_secret_files.extend(login.exists().then_some(login));
        }
        if !self.key.is_empty() {
            let keys =
                raw.verification.get_or_insert_with(|| RawVerification { public_key_files: Vec::new() });
            keys.public_key_files.extend_from_slice(&self.key);
        }
        Ok(raw)
    }
}

fn home() -> PathBuf {
    std::env::home_dir().unwrap_or_else(std::env::temp_dir)
}

fn read(path: &Path) -> anyhow::Result<RawOciConfig> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| coded(Exit::NotFound, format!("cannot read {}: {error}", path.display())))?;
    serde_yaml::from_str(&text)
        .map_err(|error| coded(Exit::Usage, error.to_string()))
        .with_context(|| format!("{} is not as it has to be", path.display()))
}
