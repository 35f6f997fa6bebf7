//! `coproc inspect`: what a module says about itself, and whether a node would take it.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::cli::modules::Module;
use crate::cli::output::{FormatArgs, Table};
use crate::core::digest::Digest;
use crate::core::units::ByteSize;
use crate::wasm::{Contract, inspect};

/// Show what a module is and needs
#[derive(Debug, Args)]
pub struct Command {
    /// The module
    #[cfg_attr(not(feature = "oci"), arg(value_name = "FILE.wasm"))]
    #[cfg_attr(feature = "oci", arg(value_name = "FILE.wasm|IMAGE"))]
    module: PathBuf,
    #[cfg(feature = "oci")]
    #[command(flatten)]
    registry: super::registry::RegistryArgs,
    #[command(flatten)]
    output: FormatArgs,
}

#[derive(Serialize)]
struct Inspected {
    file: String,
    digest: Digest,
    bytes: usize,
    contract: String,
    uses_schema_registry: bool,
    memory_min_bytes: u64,
    memory_max_bytes: Option<u64>,
    functions: usize,
    imports: Vec<String>,
    exports: Vec<String>,
    producers: Vec<String>,
}

impl Command {
    /// Runs it.
    pub fn run(&self) -> anyhow::Result<()> {
        #[cfg(feature = "oci")]
        if let crate::oci::Subject::Image(image) = crate::oci::Subject::from_path(&self.module) {
            let found = self.registry.open(&image)?.inspect(&crate::oci::Subject::Image(image))?;
            return self.output.print(&found, |wide| image_table(&found, wide));
        }
        let module = Module::read(&self.module)?;
        #[cfg(feature = "oci")]
        if let Ok(crate::oci::binary::BinaryKind::Component) = crate::oci::binary::kind_of(&module.bytes) {
            let found = crate::oci::inspect::inspect_file(&self.module, module.bytes.len() as u64)?;
            return self.output.print(&found, |wide| image_table(&found, wide));
        }
        let info =
            inspect(&module.bytes).with_context(|| format!("{} cannot be used", self.module.display()))?;
        let Contract::Transform { version } = info.contract;
        let inspected = Inspected {
            file: self.module.display().to_string(),
            digest: module.digest,
            bytes: module.bytes.len(),
            contract: format!("transform ABI, version {version}"),
            uses_schema_registry: info.uses_schema_registry,
            memory_min_bytes: info.memory_min,
            memory_max_bytes: info.memory_max,
            functions: info.functions,
            imports: info.imports,
            exports: info.exports,
            producers: info.producers,
        };
        self.output.print(&inspected, |wide| table(&inspected, wide))
    }
}

#[cfg(feature = "oci")]
fn image_table(found: &crate::oci::Inspection, wide: bool) -> Table {
    use crate::oci::signature::Verification;
    let mut table = Table::new(&["PROPERTY", "VALUE"]);
    let mut row = |name: &str, value: String| table.push([name.to_owned(), value]);
    row(if found.image.is_some() { "image" } else { "file" }, found.subject.clone());
    row("digest", found.digest.to_string());
    row("size", format!("{} bytes", found.size));
    row("contract", format!("{:?}", found.interface.contract).to_lowercase());
    if let Some(facts) = &found.image {
        row("layout", facts.config_media_type.clone());
        row(
            "signature",
            match &facts.signature {
                Verification::NotRequired { found } => {
                    format!("{found} found, none demanded: give --key to check")
                }
                Verification::Verified { key, .. } => format!("good, by {key}"),
                Verification::Rejected { reason } => format!("NOT GOOD: {reason}"),
            },
        );
        facts.annotations.iter().for_each(|(name, value)| row(name, value.clone()));
    }
    if wide {
        found.interface.imports.iter().for_each(|name| row("import", name.clone()));
        found.interface.exports.iter().for_each(|name| row("export", name.clone()));
    }
    table
}

fn table(found: &Inspected, wide: bool) -> Table {
    let mut table = Table::new(&["PROPERTY", "VALUE"]);
    let mut row = |name: &str, value: String| table.push([name.to_owned(), value]);
    row("file", found.file.clone());
    row("digest", found.digest.to_string());
    row("size", format!("{} bytes", found.bytes));
    row("contract", found.contract.clone());
    row("schema registry", if found.uses_schema_registry { "used" } else { "not used" }.into());
    row("memory at start", ByteSize(found.memory_min_bytes).to_string());
    let most = found
        .memory_max_bytes
        .map_or_else(|| "as the deployment allows".into(), |max| ByteSize(max).to_string());
    row("memory at most", most);
    row("functions", found.functions.to_string());
    row("made by", found.producers.join(", "));
    if wide {
        found.imports.iter().for_each(|name| row("import", name.clone()));
        found.exports.iter().for_each(|name| row("export", name.clone()));
    }
    table
}
