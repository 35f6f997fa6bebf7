//! `coproc push`: a module into a registry.

use std::path::PathBuf;

use clap::Args;

use crate::cli::arguments::key_value;
use crate::cli::modules::Module;
use crate::cli::output::{FormatArgs, Table};
use crate::cli::registry::RegistryArgs;
use crate::oci::{PushOptions, Reference};

/// Push a module to an OCI registry
///
/// Writes it in the layout of the CNCF, which `wkg`, `oras` and others read. The same module with the same
/// annotations has the same digest whenever it is pushed. Sign what is printed with `cosign sign --key`.
#[derive(Debug, Args)]
pub struct Command {
    /// The module
    #[arg(value_name = "FILE.wasm")]
    module: PathBuf,
    /// Where to: registry/name:tag
    #[arg(value_name = "IMAGE")]
    image: Reference,
    /// Annotation of the manifest; repeat it for more
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    annotation: Vec<(String, String)>,
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(flatten)]
    output: FormatArgs,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        let module = Module::read(&self.module)?;
        let options = PushOptions { annotations: self.annotation.iter().cloned().collect() };
        let pushed = self.registry.open(&self.image)?.push(&module.bytes, &self.image, &options)?;
        self.output.print(&pushed, |_| {
            let mut table = Table::new(&["PROPERTY", "VALUE"]);
            let mut row = |name: &str, value: String| table.push([name.to_owned(), value]);
            row("image", pushed.image.to_string());
            row("digest", pushed.digest.to_string());
            row("size", format!("{} bytes", pushed.size));
            table
        })
    }
}
